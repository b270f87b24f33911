"""What ``lookless optimize`` leaves in its folder, and where.

==========================  =======================================================================================
run.json                    :class:`Run`: model, data, splits, target, machine, seconds, and what was chosen
scores/TASK.MEASURE.json    :class:`lookless.Scores` of one task, on its calibration samples
fitted.json                 :class:`lookless.search.fitting.Choices`: what layers may be given, with fitted cells
additive.json               :class:`lookless.search.additive.Additive`: what every single change risks
effects.json                what of that is measured so far, while it is
latency.json                :class:`lookless.bench.latency.LatencyTable`, measured here
front.json                  :class:`lookless.search.Front`: every plan that was run on the tuning samples
chain.json                  :class:`Chain`: the plans to be tested, from mild to aggressive
points/N/TASK.json          :class:`lookless.Evaluation` of the chain's N-th plan on the certification samples
certificate.json            :class:`lookless.certification.Certificate`
plan/lookless_plan.json     the :class:`lookless.Plan` to serve
report.html                 one page on all of it
searches/NAME/              of ``lookless search --method NAME``: ``plan/``, and the result in a file or two
attention.json, kept.json   for the page: :class:`lookless.calibration.attention_maps.AttentionProfiles` and
                            :class:`lookless.calibration.kept_tokens.KeptTokens`
methods/NAME/               for the page: another method at the price of the plan, and its answers
==========================  =======================================================================================

Every file but run.json may be missing: a run that was interrupted goes on from what is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .. import files, weights
from ..calibration.replay import Position
from ..data import AS_IS, Reading
from ..errors import PlanError
from ..evaluation import Evaluation
from ..geometry import Geometry
from ..search.front import Candidate, Price, bound

SCHEMA_VERSION = 1
#: A part of file names: no other folder's.
Name = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$")]
#: What is written in the folder of a run.
OWN = (
    *("run.json", "latency.json", "front.json", "additive.json", "fitted.json", "effects.json", "chain.json"),
    *("certificate.json", "report.html", "attention.json", "kept.json", weights.ARCHIVE),
    *("plan", "scores", "points", "searches", "methods", "unfinished"),
)


class Part(BaseModel):
    """Some samples of one task.

    Attributes:
        hash: of all of them, :attr:`lookless.Samples.hash`.
        sample_hashes: of each prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hash: str
    sample_hashes: tuple[str, ...]

    @property
    def samples(self) -> int:
        return len(self.sample_hashes)


class TaskData(BaseModel):
    """One data set in four parts that share no prompt.

    Attributes:
        task: the short name in file names and tables, unique in its run.
        data: as given: a file, or ``reference:TASK``.
        calibration: scores and full runs are of these.
        tuning: plans are searched on these.
        selection: the best plans of the search are compared on these, to choose and to order those to be tested.
        certification: nothing is chosen by these; they test.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Name
    data: str
    calibration: Part
    tuning: Part
    selection: Part
    certification: Part


class Target(BaseModel):
    """What the user wants.

    Attributes:
        kind: ``flops`` or ``latency``: the least loss at this share of the stock prefill; ``retention``: the lowest
            price at which this share of the dense model's right answers stays right.
        value: the share.
        by: what a retention is bought with: milliseconds on this machine, or FLOPs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["flops", "latency", "retention"]
    value: float = Field(gt=0, lt=1)
    by: Price = "time"

    @property
    def price(self) -> Price:
        """What the plan is to be cheap in."""
        return {"flops": "kept", "latency": "time", "retention": self.by}[self.kind]  # type: ignore[return-value]


class Run(BaseModel):
    """What was to be done, on what, and what came out.

    Attributes:
        model, revision: as given, and its hub commit.
        geometry: of the model.
        data: the data sets, each in four parts.
        reading: how they were read and scored, where they do not say it themselves.
        target, confidence: what the plan has to hold, and how sure that has to be.
        loss: what counts as a loss in the certificate: ``lost``, a right answer of the dense model that is now wrong,
            or ``changed``, where the data have no labels.
        engine: ``vllm``: of plans that it can serve alone.
        fitted: whether maps of low rank are among what layers may be given.
        position: where distributions were compared.
        seed: of the draw from files.
        machine, dtype, device, threads, versions: on what it ran.
        seconds: of each stage that ran, by name.
        chosen: the chain's plan that was written to ``plan``; None: the full model's, or none yet.
        lines: the result in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: str
    revision: str | None = None
    geometry: Geometry
    data: tuple[TaskData, ...] = Field(min_length=1)
    reading: Reading = AS_IS
    target: Target
    confidence: float = Field(default=0.95, gt=0, lt=1)
    loss: Literal["lost", "changed"] = "lost"
    engine: Literal["transformers", "vllm"] = "transformers"
    fitted: bool = False
    position: Position = "answer"
    seed: int = 0
    machine: str = ""
    dtype: str = ""
    device: str = ""
    threads: int = 1
    versions: dict[str, str] = {}
    seconds: dict[str, float] = {}
    chosen: int | None = None
    lines: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(data.task for data in self.data)

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Raises: PlanError: there is no run in the folder, or it cannot be read. LooklessError: a part of it is a link
        that leaves the folder."""
        files.check_inside(Path(folder), OWN)
        return files.load(Folder(Path(folder)).run, cls, PlanError, SCHEMA_VERSION)


class Chain(BaseModel):
    """The plans that the certification tests in turn, from mild to aggressive, each cheaper than the one before.

    Attributes:
        price: what they are cheap in.
        points: the plans; where time is the price, with the times that were measured for each.
        made_from: of the front and the samples that chose them, 16 hex digits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    price: Price
    points: tuple[Candidate, ...] = ()
    made_from: str = ""

    @classmethod
    def load(cls, folder: str | Path) -> Chain:
        """Raises: PlanError: there is none in the folder, or it cannot be read."""
        path = Folder(Path(folder)).chain
        read = files.load(path, cls, PlanError, SCHEMA_VERSION)
        held = weights.found(path, (each for one in read.points for each in one.plan.weights))
        return read.model_copy(update={"points": bound(read.points, held)}) if held else read

    def save(self, folder: Path) -> None:
        """Write it, and the numbers of fitted cells before it."""
        weights.store(folder, (each for one in self.points for each in one.plan.weights))
        files.write_text(Folder(folder).chain, files.dump(self))


class Folder:
    """The paths of one run.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def latency(self) -> Path:
        return self.root / "latency.json"

    @property
    def front(self) -> Path:
        return self.root / "front.json"

    @property
    def additive(self) -> Path:
        return self.root / "additive.json"

    @property
    def fitted(self) -> Path:
        return self.root / "fitted.json"

    @property
    def effects(self) -> Path:
        return self.root / "effects.json"

    @property
    def chain(self) -> Path:
        return self.root / "chain.json"

    @property
    def certificate(self) -> Path:
        return self.root / "certificate.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def search(self, name: str) -> Path:
        return self.root / "searches" / name

    def scores(self, task: str, measure: str) -> Path:
        return self.root / "scores" / f"{task}.{measure}.json"

    def point(self, index: int) -> Path:
        return self.root / "points" / str(index)

    def evaluation(self, index: int, task: str) -> Path:
        return self.point(index) / f"{task}.json"

    def evaluations(self, index: int, tasks: Sequence[str]) -> dict[str, Evaluation]:
        """Of the chain's plan number ``index``, those that are there, by task."""
        paths = {task: self.evaluation(index, task) for task in tasks}
        return {task: files.load(path, Evaluation, PlanError, 1) for task, path in paths.items() if path.exists()}


def task_names(data: Sequence[str]) -> tuple[str, ...]:
    """Short names for data sets, for files and tables: ``chart`` for ``reference:chart``, ``mine`` for ``mine.jsonl``;
    numbered where two are alike."""
    names: list[str] = []
    for where in data:
        plain = where.removeprefix("reference:") if where.startswith("reference:") else Path(where).stem
        plain = re.sub(r"[^\w-]+", "-", plain).strip("-") or "data"
        alike = sum(name == plain or re.fullmatch(rf"{re.escape(plain)}-\d+", name) is not None for name in names)
        names.append(f"{plain}-{alike + 1}" if alike else plain)
    return tuple(names)
