"""What every experiment measures with: scores of layers and answers under plans, on one model, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..answers import side_by_side
from ..calibration.gradients import scores_by_name
from ..comparison.entry import Entry
from ..comparison.results import Outcome
from ..comparison.run import per_question
from ..comparison.workspace import Workspace
from ..data import AS_IS, Reading, Samples
from ..errors import DataError
from ..evaluation import dense_answers, evaluate
from ..geometry import Geometry
from ..loading import Loaded
from ..methods import METHODS
from ..plan import Plan
from ..scores import Scores
from .store import Numbers, Store, Words, fingerprint

MAX_NEW_TOKENS = 32
Hooks = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured, of each task.

    Attributes:
        questions: answered.
        samples: of one calibration.
        seeds: calibrations on other samples, and draws of random choices.
        batch: questions answered at a time.
    """

    questions: int = 60
    samples: int = 20
    seeds: int = 3
    batch: int = 25


class Lab:
    """One model with its tasks. All that is measured is kept in ``folder``, and measured once.

    Attributes:
        work: calibration and test samples, which share no prompt, and prices of plans.
        store: measured cells.

    Raises:
        DataError: no such data, or no questions are left to test on.
    """

    def __init__(
        self,
        loaded: Loaded,
        tasks: Sequence[str],
        folder: Path,
        sizes: Sizes,
        told: Callable[[str], None] = lambda _: None,
        reading: Reading = AS_IS,
    ) -> None:
        """``reading``: how the tasks are read and scored."""
        self.loaded, self.sizes, self.folder = loaded, sizes, folder
        self.tasks = tuple(dict.fromkeys(tasks))
        cells = folder / f"cells-{fingerprint(loaded.model)}"
        self.work = Workspace(
            loaded,
            self.tasks,
            cells,
            questions=sizes.questions,
            samples=sizes.samples,
            batch=sizes.batch,
            reading=reading,
        )
        self.store = Store(cells, told)
        self._draws: dict[tuple[str, int], Samples] = {}

    @property
    def geometry(self) -> Geometry:
        return self.work.geometry

    @property
    def layers(self) -> int:
        return self.geometry.layers

    @cached_property
    def short(self) -> dict[str, str]:
        """Names of the tasks for tables and figures."""
        named = {task: task.split(":")[-1] if ":" in task else Path(task).stem for task in self.tasks}
        return named if len(set(named.values())) == len(named) else {task: task for task in self.tasks}

    def scaled(self, *layers: int, of: int = 32) -> tuple[int, ...]:
        """Numbers of layers of a model of ``of``, at the same share of this one's: each once, ascending."""
        return tuple(sorted({round(count * self.layers / of) for count in layers}))

    def draw(self, task: str, seed: int = 0) -> Samples:
        """Calibration samples: those of seed 0 are all other experiments' and other seeds have others.

        Raises:
            DataError: the lines beside the questions are too few to draw others.
        """
        if seed == 0:
            return self.work.calibration[task]
        if (task, seed) not in self._draws:
            self._draws[task, seed] = self._drawn(task, seed)
        return self._draws[task, seed]

    def _drawn(self, task: str, seed: int) -> Samples:
        count = self.sizes.samples
        if task == "reference" or task.startswith("reference:"):
            whole = self.work.read(task, split="calibration", limit=(seed + 1) * count)
            return replace(whole, items=whole.items[seed * count :])
        test = self.work.test[task].hashes
        left = len(self.work.read(task, split="calibration", without=test))
        if left < 2 * count:
            raise DataError(
                f"{task} has {left} lines beside the {len(test)} questions, and other draws of {count} need "
                f"{2 * count}: ask for fewer questions or samples."
            )
        return self.work.read(task, split="calibration", limit=count, seed=seed, without=test)

    def scores(self, task: str, measure: str, seed: int = 0) -> Scores:
        """Of ``measure``, on the samples of a seed."""
        if seed == 0:
            return self.work.scores(task, measure)
        samples = self.draw(task, seed)
        return self.store.cell(
            f"{task} {measure} {seed}",
            (measure, samples.hash),
            Scores,
            lambda: scores_by_name(self.loaded, samples, measure, progress=False),
        )

    def plan(self, method: str, task: str, draw: int = 0, **knobs: Any) -> Plan:
        """The plan of a published method, by the calibration samples of a draw. Knobs that are not given are the
        paper's, at this model's depth.

        Raises:
            PlanError: a knob is out of the method's range.
        """
        return self.plan_by(method, {m: self.scores(task, m, draw) for m in METHODS[method].measures}, **knobs)

    def plan_by(self, method: str, scores: Mapping[str, Scores], **knobs: Any) -> Plan:
        """As :meth:`plan`, by other ``scores``, by measure."""
        chosen = METHODS[method]
        fixed = chosen.prompt_arguments(self.work.visual, self.work.text) if chosen.prompt_arguments else {}
        return chosen.build(self.geometry, scores, **{**fixed, **knobs})

    def dense(self, task: str) -> list[str]:
        """The stock model's answers to the questions."""
        test, batch = self.work.test[task], self.sizes.batch

        def answered() -> Words:
            return Words(words=tuple(dense_answers(self.loaded, test, batch, MAX_NEW_TOKENS, False)))

        return list(self.store.cell(f"{task} dense", ("dense", test.hash, batch), Words, answered).words)

    def answers(
        self, name: str, task: str, plan: Plan, *, setting: str = "", draw: int = 0, side: float = 1
    ) -> Outcome:
        """Under ``plan``, on images whose sides are the share ``side`` of their own."""
        entry = Entry(plan, side)
        words = self.words(name, task, entry)
        return self._outcome(name, task, setting, draw, words, self._kept(entry), self.work.kept_papers(entry))

    def words(self, name: str, task: str, entry: Entry) -> tuple[str, ...]:
        """The answers themselves."""
        test, batch = self.work.test[task], self.sizes.batch

        def answered() -> Words:
            with entry.images(self.loaded) as loaded:
                found = evaluate(loaded, test, entry.plan, batch=batch, dense=self.dense(task), progress=False)
            return Words(words=tuple(answer.plan or "" for answer in found.answers))

        assert entry.plan is not None
        parts = ("answers", test.hash, entry.plan.hash, entry.side, batch)
        return self.store.cell(f"{task} {name}", parts, Words, answered).words

    def answers_with(self, name: str, task: str, hooks: Hooks, *, setting: str = "") -> Outcome:
        """Of the stock model with a diagnostic on it, which ``name`` and ``setting`` describe wholly; nothing is saved
        by it, so that it has the stock model's price."""
        test, batch = self.work.test[task], self.sizes.batch

        def answered() -> Words:
            with hooks():
                return Words(words=tuple(dense_answers(self.loaded, test, batch, MAX_NEW_TOKENS, False)))

        parts = ("diagnostic", name, setting, test.hash, batch)
        words = self.store.cell(f"{task} {name}", parts, Words, answered).words
        return self._outcome(name, task, setting, 0, words, 1.0, None)

    def _kept(self, entry: Entry) -> float:
        """The share of FLOPs that runs; where it is traced, a cell, which depends on the prompts that are traced."""
        assert entry.plan is not None
        if entry.plan.is_static:
            return self.work.kept(entry)
        parts = ("kept", entry.plan.hash, tuple(samples.hash for samples in self.work.calibration.values()))
        return self.numbers("FLOPs", parts, lambda: {"kept": (self.work.kept(entry),)})["kept"][0]

    def _outcome(
        self,
        name: str,
        task: str,
        setting: str,
        draw: int,
        words: Sequence[str],
        kept: float,
        kept_papers: float | None,
    ) -> Outcome:
        each = side_by_side(self.work.test[task], self.dense(task), words)
        return Outcome(
            method=name,
            setting=setting,
            task=task,
            draw=draw,
            kept=kept,
            kept_papers=kept_papers,
            kept_live=kept * self.work.stock / self.work.lean,
            **per_question(each),
        )

    def on_tasks(
        self, name: str, plan: Callable[[str], Plan], *, setting: str = "", draw: int = 0
    ) -> tuple[Outcome, ...]:
        """The answers to every task, each under its own plan."""
        return tuple(self.answers(name, task, plan(task), setting=setting, draw=draw) for task in self.tasks)

    def method(self, name: str, method: str, *, setting: str = "", draw: int = 0, **knobs: Any) -> tuple[Outcome, ...]:
        """The answers to every task under a published method, as :meth:`plan` makes it."""
        return self.on_tasks(name, lambda task: self.plan(method, task, draw, **knobs), setting=setting, draw=draw)

    def everywhere(self, name: str, plan: Plan, *, setting: str = "", draw: int = 0) -> tuple[Outcome, ...]:
        """The answers to every task, all under one plan."""
        return self.on_tasks(name, lambda _: plan, setting=setting, draw=draw)

    def numbers(
        self, name: str, parts: tuple[Any, ...], measure: Callable[[], dict[str, tuple[float, ...]]]
    ) -> dict[str, tuple[float, ...]]:
        """Other measurements, by name."""
        return self.store.cell(name, parts, Numbers, lambda: Numbers(values=measure())).values
