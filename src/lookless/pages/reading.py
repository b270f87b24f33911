"""The files of a run, or any of them by themselves, as the material of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from .. import files
from ..bench.latency import LatencyTable
from ..calibration.attention_maps import AttentionProfiles
from ..calibration.kept_tokens import KeptTokens
from ..certification.certificate import Certificate
from ..data import Reading
from ..errors import LooklessError
from ..evaluation import Evaluation
from ..optimize.folder import Chain, Folder, Run
from ..plan import FILE_NAME, Plan
from ..scores import Scores
from ..search.front import Front
from .material import Material, Other, Point

#: What a page adds to a run's folder: attention, kept tokens, and a folder for each other method.
ATTENTION, KEPT, METHODS = "attention.json", "kept.json", "methods"
#: Plans of a front that a page shows; from more, these many are taken at equal steps.
MOST_POINTS = 40

Record = TypeVar("Record", bound=BaseModel)


def read(where: Sequence[Path], places: Sequence[str] = (), reading: Reading | None = None) -> Material:
    """The material in the folder of a run and in other evaluations beside it; or in scores, evaluations, plans and
    other files given one by one.

    Args:
        where: the folder, or the files.
        places: where the samples are, if not where the files say: TASK=DATA, or the data of the only task, or of the
            one that has the file's name.
        reading: how samples are read, if not as the run says.

    Raises:
        LooklessError: a file is missing, damaged or none of ours; the files are of different models; or a place is of
            no task.
    """
    if (where[0] / "run.json").is_file():
        material = read_run(where[0])
        for path in where[1:]:
            material = _with_answers(material, path, _record(path))
    else:
        material = _loose(where)
    data = {**material.data, **_placed(material.data, places)}
    return replace(material.checked(), data=data, reading=reading or material.reading)


def _placed(known: Mapping[str, str], places: Sequence[str]) -> dict[str, str]:
    found = {}
    for place in places:
        task, is_named, data = place.partition("=")
        named = [name for name, old in known.items() if len(known) == 1 or Path(place).name in (name, Path(old).name)]
        if is_named and task in known:
            found[task] = data
        elif len(named) == 1 and not (is_named and not Path(place).exists()):
            found[named[0]] = place
        else:
            raise LooklessError(
                f"--data {place} is of no task here: give TASK=DATA; tasks are {', '.join(known) or 'none'}."
            )
    return found


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
    plan = _present(plan_path, Plan)
    shown = chosen if chosen is not None else next((i for i, point in enumerate(points) if point.evaluations), None)
    material = Material(
        name=str(root),
        run=run,
        scores=_scores(root / "scores", run.tasks),
        points=points,
        candidates=front.candidates if front else (),
        chosen=chosen,
        plan=plan,
        plan_path=str(plan_dir) if plan_path.exists() else None,
        examined=plan if shown is None else points[shown].plan,
        evaluations={} if shown is None else points[shown].evaluations,
        latency=_present(folder.latency, LatencyTable),
        certificate=_present(folder.certificate, Certificate),
        attention=_present(root / ATTENTION, AttentionProfiles),
        kept_tokens=_present(root / KEPT, KeptTokens),
        data={data.task: data.data for data in run.data},
        reading=run.reading,
    )
    return replace(material, others=_methods(root / METHODS, material))


def _methods(folder: Path, material: Material) -> tuple[Other, ...]:
    """Other methods that a run has kept: each a plan's folder, with the evaluations beside the plan."""
    found = []
    for path in sorted(folder.glob(f"*/{FILE_NAME}")):
        plan = Plan.from_pretrained(path.parent)
        answers = {task: _present(path.parent / f"{task}.json", Evaluation) for task in material.evaluations}
        known = {task: one for task, one in answers.items() if one is not None and one.plan_hash == plan.hash}
        found.append(material.other(path.parent.name, plan, known))
    return tuple(found)


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
    "kept": KeptTokens,
}


def _loose(where: Sequence[Path]) -> Material:
    """Each file by what is in it; a folder by the plan in it. Of several plans the first is the plan. Of several
    evaluations of one task its own is the plan's, or else the first; the others are other methods, by the names of
    their files."""
    material = Material(", ".join(map(str, where)))
    answers, plans = list[tuple[Path, Evaluation]](), dict[Path, Plan]()
    for path in where:
        if path.is_dir() and not (path / FILE_NAME).is_file():
            raise LooklessError(
                f"{path} is neither a run's folder nor a plan's: it has no run.json and no {FILE_NAME}."
            )
        record = _record(path / FILE_NAME if path.is_dir() else path)
        if isinstance(record, Evaluation):
            answers.append((path, record))
        elif isinstance(record, Plan):
            plans[path] = record
        else:
            material = _with(material, path, record)
    for path, plan in [*plans.items()][:1]:
        material = replace(material, plan=plan, examined=plan, plan_path=str(path))
    own = None if material.plan is None else material.plan.hash
    for path, evaluation in sorted(answers, key=lambda pair: pair[1].plan_hash != own):
        material = _with_answers(material, path, evaluation)
    return _with_plans(material, [*plans.items()][1:])


def _with_plans(material: Material, plans: Sequence[tuple[Path, Plan]]) -> Material:
    """``material`` with the plans of its other methods.

    Raises:
        LooklessError: a plan is of none of them.
    """
    for path, plan in plans:
        known = next((o for o in material.others if plan.hash in {e.plan_hash for e in o.evaluations.values()}), None)
        if known is None:
            raise LooklessError(
                f"{path} is a second plan, and none of these files has its answers: a page shows one, and beside it "
                f"those that were evaluated, too."
            )
        new = material.other(known.name, plan, known.evaluations)
        material = replace(material, others=tuple(new if one is known else one for one in material.others))
    return material


def _with_answers(material: Material, path: Path, record: BaseModel) -> Material:
    """``material`` and one more evaluation: the first of its task is the plan's, later ones are another method's.

    Raises:
        LooklessError: it is none, or has no answers to the questions of the first.
    """
    if not isinstance(record, Evaluation):
        raise LooklessError(f"{path} is no evaluation: beside a run's folder give those alone (lookless eval --json).")
    task = record.data.removesuffix(" (test)")
    if material.run is None and task not in material.evaluations:
        data = {**material.data, task: material.data.get(task, task)}
        return replace(material, evaluations={**material.evaluations, task: record}, data=data)
    asked = {one.sample_hash for one in record.answers if one.plan is not None} - {None}
    alike = {name: len(asked & {a.sample_hash for a in one.answers}) for name, one in material.evaluations.items()}
    task = max(alike, key=lambda name: alike[name], default="")
    if not alike.get(task):
        raise LooklessError(
            f"{path} has no answers under a plan to questions that the plan of {material.name} was asked: evaluate it "
            f"on the same data, with --plan."
        )
    known = next((other for other in material.others if other.name == path.stem), Other(path.stem, {}))
    _once(path, f"evaluation of {path.stem} on {task}", known.evaluations, task)
    new = replace(known, evaluations={**known.evaluations, task: record})
    return replace(material, others=(*(one for one in material.others if one is not known), new))


def _record(path: Path) -> BaseModel:
    """Raises: LooklessError: it cannot be read, or is of no kind that a page shows."""
    try:
        content = files.parse(files.read_bytes(path))
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
        data = {task: task, **material.data}
        return replace(material, scores={**material.scores, task: {**of_task, record.name: record}}, data=data)
    if isinstance(record, Front):
        best = thinned(record.pareto(record.price), MOST_POINTS)
        points = tuple(Point(f"point {i}", candidate) for i, candidate in enumerate(best))
        return replace(material, candidates=record.candidates, points=points)
    if isinstance(record, Certificate):
        return replace(material, certificate=record)
    if isinstance(record, KeptTokens):
        return replace(material, kept_tokens=record)
    assert isinstance(record, AttentionProfiles)
    return replace(material, attention=record)


def _once(path: Path, what: str, known: Iterable[str], name: str) -> None:
    if name in known:
        raise LooklessError(f"{path} is a second {what}: a page shows one, so give one of them.")
