"""What a page is made of: the files of a run, or any of them by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from .. import files
from ..bench.latency import LatencyTable
from ..calibration.attention_maps import AttentionProfiles
from ..certification.certificate import Certificate
from ..errors import LooklessError
from ..evaluation import Evaluation
from ..geometry import Geometry
from ..optimize.folder import Chain, Folder, Run
from ..plan import FILE_NAME, Plan
from ..scores import Scores
from ..search.front import Candidate, Front

ATTENTION = "attention.json"
#: Plans of a front that a page shows; from more, these many are taken at equal steps.
MOST_POINTS = 40

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Point:
    """A plan with what is known of it: one place of the slider.

    Attributes:
        name: ``point 3``, as in the certificate.
        evaluations: by task; empty where its answers were not compared.
    """

    name: str
    candidate: Candidate
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return self.candidate.plan


@dataclass(frozen=True)
class Material:
    """All that there is; everything may be missing.

    Attributes:
        name: of the run's folder, or of the files, as typed by the user.
        scores: by task and measure.
        points: plans from mild to aggressive: the chain, or else the Pareto front.
        candidates: every plan of the search.
        chosen: the point whose plan is served; None if it is not among them.
        plan: the plan that is served.
        plan_path: its folder or file, as the user would type it.
        evaluations: of ``plan``, by task.
        data: where samples are, by task: a file, or ``reference:TASK``.
    """

    name: str
    run: Run | None = None
    scores: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    chosen: int | None = None
    plan: Plan | None = None
    plan_path: str | None = None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    latency: LatencyTable | None = None
    certificate: Certificate | None = None
    attention: AttentionProfiles | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the run; then those that only a file names."""
        named = [*(self.run.tasks if self.run else ()), *self.scores, *self.evaluations]
        named += [task for point in self.points for task in point.candidate.by_task]
        return tuple(dict.fromkeys(named))

    @property
    def all_scores(self) -> tuple[Scores, ...]:
        return tuple(scores for of_task in self.scores.values() for scores in of_task.values())

    @property
    def model(self) -> str | None:
        """The model's name, from whichever file has it."""
        named: list[str | None] = [self.run.model] if self.run else []
        named += [scores.model for scores in self.all_scores]
        named += [evaluation.model for evaluation in self.evaluations.values()]
        named += [self.plan.provenance.model] if self.plan else []
        return next((name for name in named if name), None)

    @property
    def geometry(self) -> Geometry | None:
        return next(iter(self._geometries().values()), None)

    def _geometries(self) -> dict[str, Geometry]:
        """By what it is of."""
        found = {"the run": self.run.geometry} if self.run else {}
        found |= {f"the scores {scores.name} of {scores.data}": scores.geometry for scores in self.all_scores}
        plans = {"the plan": self.plan} | {point.name: point.plan for point in self.points}
        found |= {name: plan.geometry for name, plan in plans.items() if plan and plan.geometry}
        return found

    @property
    def tokens(self) -> tuple[float, float] | None:
        """Visual and text tokens of a prompt, mean over the tasks that were scored."""
        counts = [(s.visual, s.text) for s in self.all_scores if s.visual is not None and s.text is not None]
        return (sum(v for v, _ in counts) / len(counts), sum(t for _, t in counts) / len(counts)) if counts else None

    def checked(self) -> Material:
        """This material, if all of it is of one model.

        Raises:
            LooklessError: two files are of different architectures.
        """
        known = self._geometries()
        first = next(iter(known), None)
        for name, geometry in known.items():
            if first is not None and geometry != known[first]:
                raise LooklessError(
                    f"{first} and {name} are of different architectures ({known[first]}; {geometry}): a page shows one "
                    f"model, so make one for each."
                )
        if self.plan and self.geometry and len(self.plan.layers) != self.geometry.layers:
            raise LooklessError(
                f"the plan has {len(self.plan.layers)} layers and the model {self.geometry.layers}: a page shows one "
                f"model, so give the plan that was made for it."
            )
        return self


def read(where: Sequence[Path], places: Mapping[str, str] | None = None) -> Material:
    """The material in the folder of a run, or in scores, evaluations, plans and other files given one by one.

    Args:
        where: the folder, or the files.
        places: where the samples of a task are, if not where the files say.

    Raises:
        LooklessError: a file is missing, damaged or none of ours; the files are of different models; or a place is of
            no task.
    """
    is_run = len(where) == 1 and (where[0] / "run.json").is_file()
    material = (read_run(where[0]) if is_run else _loose(where)).checked()
    for task in places or {}:
        if task not in material.data:
            raise LooklessError(f"there is no task {task!r} here; tasks are {', '.join(material.data) or 'none'}.")
    return replace(material, data={**material.data, **(places or {})})


def read_run(root: Path) -> Material:
    """The folder that ``lookless optimize`` leaves. Only run.json has to be there."""
    folder = Folder(root)
    run = Run.load(root)
    chain = _present(folder.chain, Chain)
    front = _present(folder.front, Front)
    points = _points(folder, run, chain, front)
    chosen = run.chosen if run.chosen is not None and run.chosen < len(points) and chain is not None else None
    plan_dir = folder.plan if folder.plan.is_dir() else folder.search("joint") / "plan"  # a search certifies nothing
    plan_path = plan_dir / FILE_NAME
    return Material(
        name=str(root),
        run=run,
        scores=_scores(root / "scores", run.tasks),
        points=points,
        candidates=front.candidates if front else (),
        chosen=chosen,
        plan=_present(plan_path, Plan),
        plan_path=str(plan_dir) if plan_path.exists() else None,
        evaluations=points[chosen].evaluations if chosen is not None else {},
        latency=_present(folder.latency, LatencyTable),
        certificate=_present(folder.certificate, Certificate),
        attention=_present(root / ATTENTION, AttentionProfiles),
        data={data.task: data.data for data in run.data},
    )


def _present(path: Path, kind: type[Record]) -> Record | None:
    """The record at ``path``; None if there is no file."""
    if not path.exists():
        return None
    schema = kind.model_fields.get("schema_version")
    return files.load(path, kind, LooklessError, schema.default if schema else 1)


def _scores(folder: Path, tasks: Sequence[str]) -> dict[str, dict[str, Scores]]:
    """Of ``TASK.MEASURE.json``: tasks in their order, then measures by name."""
    found: dict[str, dict[str, Scores]] = {task: {} for task in tasks}
    for path in sorted(folder.glob("*.json")):
        task = path.stem.partition(".")[0]
        scores = Scores.load(path)
        found.setdefault(task, {})[scores.name] = scores
    return {task: measures for task, measures in found.items() if measures}


def _points(folder: Folder, run: Run, chain: Chain | None, front: Front | None) -> tuple[Point, ...]:
    if chain is not None:
        return tuple(
            Point(f"point {i}", candidate, folder.evaluations(i, run.tasks)) for i, candidate in enumerate(chain.points)
        )
    best = front.pareto(run.target.price) if front else ()
    return tuple(Point(f"point {i}", candidate) for i, candidate in enumerate(thinned(best, MOST_POINTS)))


def thinned(items: Sequence[Any], most: int) -> tuple[Any, ...]:
    """At most ``most`` of ``items`` at equal steps, the first and the last among them."""
    if len(items) <= most:
        return tuple(items)
    return tuple(items[round(i * (len(items) - 1) / (most - 1))] for i in range(most))


#: A key that only this kind of file has.
_KINDS: dict[str, type[BaseModel]] = {
    "per_sample": Scores,
    "accuracy_dense": Evaluation,
    "layers": Plan,
    "candidates": Front,
    "tests": Certificate,
    "profiles": AttentionProfiles,
}


def _loose(where: Sequence[Path]) -> Material:
    """Each file by what is in it; a folder by the plan in it."""
    material = Material(", ".join(map(str, where)))
    for path in where:
        if path.is_dir() and not (path / FILE_NAME).is_file():
            raise LooklessError(
                f"{path} is neither a run's folder nor a plan's: it has no run.json and no {FILE_NAME}."
            )
        material = _with(material, path, _record(path / FILE_NAME if path.is_dir() else path))
    return material


def _record(path: Path) -> BaseModel:
    """Raises: LooklessError: it cannot be read, or is of no kind that a page shows."""
    try:
        content = files.parse(path.read_bytes())
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise LooklessError(f"{path} cannot be read: {reason}.") from problem
    keys = content.keys() if isinstance(content, dict) else ()
    kind = next((kind for key, kind in _KINDS.items() if key in keys), None)
    if kind is None:
        raise LooklessError(
            f"{path} holds nothing that a page shows: give a run's folder, a plan, or the JSON of scores (lookless "
            f"calibrate --out), an evaluation (lookless eval --json), a front or a certificate."
        )
    found = _present(path, kind)
    assert found is not None
    return found


def _with(material: Material, path: Path, record: BaseModel) -> Material:
    """``material`` and one more file.

    Raises:
        LooklessError: it has such a file already.
    """
    if isinstance(record, Scores):
        task = (record.data or path.stem).removesuffix(" (calibration)")
        of_task = material.scores.get(task, {})
        _once(path, f"scores {record.name} of {task}", of_task, record.name)
        return replace(material, scores={**material.scores, task: {**of_task, record.name: record}})
    if isinstance(record, Evaluation):
        task = record.data.removesuffix(" (test)")
        _once(path, f"evaluation on {task}", material.evaluations, task)
        return replace(material, evaluations={**material.evaluations, task: record}, data={**material.data, task: task})
    if isinstance(record, Front):
        best = thinned(record.pareto(record.price), MOST_POINTS)
        points = tuple(Point(f"point {i}", candidate) for i, candidate in enumerate(best))
        return replace(material, candidates=record.candidates, points=points)
    if isinstance(record, Plan):
        _once(path, "plan", {"plan": material.plan} if material.plan else {}, "plan")
        return replace(material, plan=record, plan_path=str(path))
    if isinstance(record, Certificate):
        return replace(material, certificate=record)
    assert isinstance(record, AttentionProfiles)
    return replace(material, attention=record)


def _once(path: Path, what: str, known: Iterable[str], name: str) -> None:
    if name in known:
        raise LooklessError(f"{path} is a second {what}: a page shows one, so give one of them.")
