"""``lookless optimize``: calibrate, time, search, test, certify, and write the plan.

Every stage leaves a file in the run's folder (:mod:`lookless.optimize.folder`). A run that finds one goes on from it,
if it is of the same model and the same samples; a run of others is refused. The search saves its front as it grows, and
the tests are saved task by task, so that a run that is killed loses little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .. import files
from ..bench.latency import LatencyTable, measure_latency
from ..calibration.affine import Fitter
from ..data import Sample, Samples
from ..errors import PlanError
from ..evaluation import Evaluation, evaluate
from ..geometry import Geometry
from ..loading import Loaded
from ..plan import Plan
from ..provenance import Provenance
from ..runtime.families import locate
from ..scores import Scores, pooled
from ..search.additive import Additive, measure_additive
from ..search.depthwise import dop_depths
from ..search.fitting import Choices, with_fitted
from ..search.front import Front
from ..search.joint import PROPOSALS, joint_search
from ..search.menu import Menu
from ..search.objective import Objective
from ..search.price import by_flops
from ..search.recorded import Recorded
from ..unfinished import Unfinished
from .chain import chain_of, compared, finalists
from .folder import Chain, Folder, Run, Target
from .scored import MEASURES, task_scores
from .split import PARTS, Task
from .timed import timed

#: Budgets at which plans are searched for a retention.
LADDER = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.15)
#: Of proposals, at the one budget that was given.
MANY = 160


@dataclass
class Optimization:
    """One run, stage by stage.

    Attributes:
        loaded: the model, without a plan on it.
        tasks: the data, each in four parts.
        folder: where everything is left.
        run: what is to be done.
        batch: questions answered together.
        timed: prompts in a call that is timed.
        proposals: plans tried at each budget; None: as many as the target is worth.
        record: what run.json says of a run that is there, if this one only uses what it has measured; None: ``run``.
        progress: show bars on standard error.
        log: is called with each stage, in words, as it begins.
    """

    loaded: Loaded
    tasks: Sequence[Task]
    folder: Folder
    run: Run
    batch: int = 25
    timed: int = 1
    proposals: int | None = None
    record: Run | None = None
    progress: bool = True
    log: Callable[[str], None] = lambda _: None
    _tuning: Objective | None = field(default=None, init=False)

    @property
    def geometry(self) -> Geometry:
        return self.run.geometry

    @property
    def full(self) -> Plan:
        return Plan.full(self.geometry)

    def save(self, **fields: Any) -> None:
        """Write run.json with ``fields`` set."""
        self.run = self.run.model_copy(update=fields)
        if self.record is not None:
            self.record = self.record.model_copy(update=fields)
        files.write_text(self.folder.run, files.dump(self.record or self.run))

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Say ``what``, and note how long it took."""
        self.log(what)
        started = perf_counter()
        yield
        seconds = self.run.seconds.get(name, 0.0) + perf_counter() - started
        self.save(seconds={**self.run.seconds, name: round(seconds, 2)})

    @cached_property
    def measured(self) -> list[Samples]:
        """Of each task the calibration samples on which single changes are measured: nothing is fitted on them."""
        return [halves(task.calibration)[1] if self.run.fitted else task.calibration for task in self.tasks]

    @cached_property
    def fitter(self) -> Fitter:
        """Fits maps on the other half of the calibration samples."""
        items = tuple(item for task in self.tasks for item in halves(task.calibration)[0])
        return Fitter(self.loaded, Samples("calibration", items), position=self.run.position, progress=self.progress)

    def choices(self, visual: float) -> Menu:
        """What layers may be given, with maps of low rank where they are wanted."""
        menu, path = self.menu(visual), self.folder.fitted
        if not self.run.fitted:
            return menu
        made_on = tuple(one for task in self.tasks for one in halves(task.calibration)[0].hashes)
        if path.exists():
            found = Choices.load(path)
            _check_same(path, found.provenance.sample_hashes == made_on)
            return menu.having(found.rows)
        with self.stage("fit", f"fitting maps of low rank, on {len(made_on)} samples"):
            try:
                menu = with_fitted(menu, self.fitter)
            except torch.OutOfMemoryError as problem:
                raise PlanError(
                    "fitting maps of low rank needs the memory of a backward pass, which is not there: add --no-fitted."
                ) from problem
            made = Provenance(method="fitted", model=self.run.model, sample_hashes=made_on)
            Choices(provenance=made, rows=tuple(map(menu.at, range(menu.layers)))).save(path)
        return menu

    def menu(self, visual: float) -> Menu:
        """What layers may be given without fitting."""
        if self.run.engine == "vllm":
            return Menu.served(self.geometry.layers).within(self.geometry)
        tower = locate(self.loaded.model).family.capture is not None
        return Menu.standard(self.geometry.layers, visual, tower=tower).within(self.geometry)

    def additive(self) -> Additive:
        """What every single change risks on the calibration samples, and the scores that methods need."""
        hashes = tuple(one for samples in self.measured for one in samples.hashes)
        if self.folder.additive.exists():
            found = Additive.load(self.folder.additive)
            _check_same(self.folder.additive, found.provenance.sample_hashes == hashes)
            return found
        objective = self.recorded(self.measured, self.folder.effects)
        menu = self.choices(objective.visual)
        with self.stage("calibrate", f"measuring what single changes risk, on {len(hashes)} samples"):
            made = measure_additive(objective, menu, progress=self.progress)
            for task, samples, places in zip(self.tasks, self.measured, objective.tasks, strict=True):
                for measure in MEASURES:
                    task_scores(objective, samples, places, measure).save(self.folder.scores(task.name, measure))
            made = made.model_copy(update={"seconds": made.seconds + objective.earlier})
            made.save(self.folder.additive)
            self.folder.effects.unlink(missing_ok=True)
        return made

    def recorded(self, samples: Sequence[Samples], path: Path) -> Recorded:
        """Measures plans on ``samples``, and writes what it measures to ``path`` as it goes."""
        return Recorded(self.loaded, samples, path, position=self.run.position, progress=self.progress)

    def scores(self) -> dict[str, Scores]:
        """By measure, those of all tasks together."""
        return {
            measure: pooled([Scores.load(self.folder.scores(task.name, measure)) for task in self.tasks])
            for measure in MEASURES
        }

    def latency(self) -> LatencyTable:
        """This machine's prices, at the length of the data's middle prompt."""
        data_hash = self.tasks[0].calibration.hash
        if self.folder.latency.exists():
            found = LatencyTable.load(self.folder.latency)
            is_same = (found.data_hash, found.model, found.geometry) == (data_hash, self.run.model, self.geometry)
            _check_same(self.folder.latency, is_same)
            return found
        with self.stage("time", "timing this machine"):
            table = measure_latency(
                self.loaded,
                self._middle(),
                self.menu(self.tuning.visual),
                data_hash=data_hash,
                progress=self.progress,
            )
            table.save(self.folder.latency)
        return table

    def _middle(self) -> list[Sample]:
        """The prompts to time: those of the middle length."""
        samples = [item for task in self.tasks for item in task.calibration][:20]
        by_length = sorted(samples, key=lambda one: self.loaded.inputs([one])["input_ids"].shape[1])
        first = max(0, (len(by_length) - self.timed) // 2)
        return by_length[first : first + self.timed]

    @property
    def tuning(self) -> Objective:
        """Measures plans on the tuning samples; its full runs are made once."""
        if self._tuning is None:
            samples = [task.tuning for task in self.tasks]
            self._tuning = Objective(self.loaded, samples, position=self.run.position, progress=self.progress)
        return self._tuning

    def record_tuning(self, path: Path) -> Recorded:
        """:attr:`tuning`, which writes what it measures to ``path`` from now on."""
        self._tuning = made = self.recorded([task.tuning for task in self.tasks], path)
        return made

    def search(self) -> Front:
        """Every plan tried, on the tuning samples."""
        additive, table, objective = self.additive(), self.latency(), self.tuning
        target = self.run.target
        with self.stage("search", f"searching plans on {len(objective)} samples"):
            searched = {"dop": self._dop} if self.run.engine == "transformers" and target.price == "kept" else {}
            return joint_search(
                objective,
                self.menu(objective.visual).having(additive.rows),
                additive,
                tasks=self.run.tasks,
                budgets=budgets_of(target),
                kept=by_flops(self.geometry, objective.visual, objective.text),
                time=table.pricing,
                price=target.price,
                scores=self.scores(),
                searched=searched,
                proposals=self._proposals(),
                refit=(lambda plan: self.fitter.again(plan)) if self.run.fitted else None,
                seed=self.run.seed,
                path=self.folder.front,
                progress=self.progress,
            )

    def _dop(self, budget: float) -> Plan:
        return dop_depths(self.tuning, kept=budget, every=max(1, self.geometry.layers // 12), progress=False).plan

    def _proposals(self) -> int | Mapping[float, int]:
        if self.proposals is not None:
            return self.proposals
        return PROPOSALS if self.run.target.kind == "retention" else {self.run.target.value: MANY}

    def chain(self) -> Chain:
        """The plans to test, and their order; what was tested of another chain is removed."""
        front = self.search()
        parts = [task.selection for task in self.tasks]
        key = _key(front, self.run.target, parts)
        if self.folder.chain.exists():
            known = Chain.load(self.folder.root)
            if known.made_from == key:
                return known
        plans = finalists(front, self.run.target)
        count = sum(map(len, parts))
        with self.stage("select", f"comparing {len(plans)} plans on {count} samples more"):
            if self.run.target.price == "time":
                plans = timed(self.loaded, self._middle(), plans, progress=self.progress)
            found = compared(self.loaded, parts, plans, position=self.run.position, progress=self.progress)
            chain = chain_of(found, self.run.target).model_copy(update={"made_from": key})
        self._forget()
        chain.save(self.folder.root)
        return chain

    def _forget(self) -> None:
        """Remove what was tested of another chain."""
        index = 0
        while self.folder.point(index).is_dir():
            for task in self.run.tasks:
                self.folder.evaluation(index, task).unlink(missing_ok=True)
            index += 1
        self.folder.certificate.unlink(missing_ok=True)

    def evaluated(self, chain: Chain, index: int) -> dict[str, Evaluation]:
        """The chain's plan number ``index`` on the certification samples, by task."""
        plan = self.certifiable(chain.points[index].plan)
        found = self.folder.evaluations(index, self.run.tasks)
        for task in self.tasks:
            if task.name in found and _is_of(found[task.name], task, plan):
                continue
            path = self.folder.evaluation(index, task.name)
            kept = Unfinished.inside(self.folder.point(index))
            result = evaluate(
                self.loaded,
                task.certification,
                plan,
                batch=self.batch,
                dense=self._dense(chain, task),
                progress=self.progress,
                kept=kept,
            )
            files.write_text(path, files.dump(result))
            kept.remove()
            found[task.name] = result
        return found

    def _dense(self, chain: Chain, task: Task) -> list[str] | None:
        """The dense model's answers, where a plan has been tested before."""
        for index in range(len(chain.points)):
            one = self.folder.evaluations(index, [task.name]).get(task.name)
            if one is not None and _is_of(one, task):
                return [answer.dense for answer in one.answers]
        return None

    def certifiable(self, plan: Plan) -> Plan:
        """``plan`` with the provenance of the whole run."""
        return self.named(plan, knobs={"confidence": self.run.confidence})

    def named(
        self,
        plan: Plan,
        method: str = "optimize",
        parts: Sequence[str] = PARTS[:-1],
        knobs: Mapping[str, int | float | str] | None = None,
    ) -> Plan:
        """``plan`` with its provenance: how it was found, and every prompt of the ``parts`` that chose it."""
        seen = [getattr(task, part) for task in self.tasks for part in parts]
        return plan.made_by(
            method=method,
            knobs={self.run.target.kind: self.run.target.value, **(knobs or {}), "seed": self.run.seed},
            model=self.run.model,
            revision=self.run.revision,
            data=" + ".join(task.tuning.name for task in self.tasks),
            sample_hashes=tuple(dict.fromkeys(one for part in seen for one in part.hashes)),
            samples=sum(len(part) for part in seen),
        )


def halves(samples: Samples) -> tuple[Samples, Samples]:
    """To fit on, and to measure on; of one sample none to fit on."""
    half = len(samples) // 2
    return replace(samples, items=samples.items[:half]), replace(samples, items=samples.items[half:])


def _is_of(evaluation: Evaluation, task: Task, plan: Plan | None = None) -> bool:
    """Whether it is of these samples, scored alike, and of this plan if one is given."""
    samples = task.certification
    same = (evaluation.data_hash, evaluation.metric) == (samples.hash, samples.metric)
    return same and (plan is None or evaluation.plan_hash == plan.hash)


def _key(front: Front, target: Target, parts: Sequence[Samples]) -> str:
    """16 hex digits that differ where a chain would be chosen otherwise."""
    found = "".join(f"{one.kept:.9f} {one.risk:.9f} {one.time}" for one in front.candidates)
    digest = hashlib.sha256((found + target.model_dump_json() + "".join(part.hash for part in parts)).encode())
    return digest.hexdigest()[:16]


def budgets_of(target: Target) -> tuple[float, ...]:
    """The ladder for a retention; else the budget, and a few milder ones."""
    if target.kind == "retention":
        return LADDER
    return (*(budget for budget in (0.9, 0.75, 0.6, 0.45, 0.3) if budget > target.value + 0.05), target.value)


def _check_same(path: Path, is_same: bool) -> None:
    """Raises: PlanError: what is at ``path`` is of another model or of other samples."""
    if not is_same:
        raise PlanError(
            f"{path} is of another model or of other samples than this run: give another folder, or remove the file."
        )
