"""What every experiment measures with: scores of layers and answers under plans, on one model, task by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..calibration.gradients import scores_by_name
from ..comparison.entry import Entry
from ..comparison.results import Outcome
from ..comparison.run import per_question
from ..comparison.workspace import Workspace
from ..data import Samples, load_data
from ..errors import DataError
from ..evaluation import compared, dense_answers, evaluate
from ..geometry import Geometry
from ..loading import Loaded
from ..methods import METHODS
from ..plan import Plan, Provenance
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
    ) -> None:
        self.loaded, self.sizes, self.folder = loaded, sizes, folder
        self.tasks = tuple(dict.fromkeys(tasks))
        cells = folder / f"cells-{fingerprint(loaded.model)}"
        self.work = Workspace(
            loaded, self.tasks, cells, questions=sizes.questions, samples=sizes.samples, batch=sizes.batch
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
        named = {task: Path(task).stem if task.endswith(".jsonl") else task.split(":")[-1] for task in self.tasks}
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
            whole = load_data(task, split="calibration", limit=(seed + 1) * count)
            return replace(whole, items=whole.items[seed * count :])
        test = self.work.test[task].hashes
        left = len(load_data(task, split="calibration", without=test))
        if left < 2 * count:
            raise DataError(
                f"{task} has {left} lines beside the {len(test)} questions, and other draws of {count} need "
                f"{2 * count}: ask for fewer questions or samples."
            )
        return load_data(task, split="calibration", limit=count, seed=seed, without=test)

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

    def plan(self, method: str, task: str, seed: int = 0, **knobs: Any) -> Plan:
        """The plan of a published method; knobs that are not given are the paper's at this model's depth.

        Raises:
            PlanError: a knob is out of the method's range.
        """
        chosen = METHODS[method]
        fixed = chosen.prompt_arguments(self.work.visual, self.work.text) if chosen.prompt_arguments else {}
        scores = {measure: self.scores(task, measure, seed) for measure in chosen.measures}
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
        entry, test = Entry(plan, side), self.work.test[task]

        def answered() -> Outcome:
            dense = self.dense(task)
            with entry.images(self.loaded) as loaded:
                found = evaluate(loaded, test, plan, batch=self.sizes.batch, dense=dense, progress=False)
            kept = self.work.kept(entry)
            prices = {"kept_papers": self.work.kept_papers(entry), "kept_live": kept * self.work.stock / self.work.lean}
            return Outcome(method="", setting="", task=task, kept=kept, **prices, **per_question(found))

        parts = ("answers", test.hash, plan.hash, side, self.sizes.batch)
        found = self.store.cell(f"{task} {name} {setting}", parts, Outcome, answered)
        return found.model_copy(update={"method": name, "setting": setting, "task": task, "draw": draw})

    def answers_with(self, name: str, task: str, hooks: Hooks, *, setting: str = "") -> Outcome:
        """Of the stock model with a diagnostic on it, which ``name`` and ``setting`` describe wholly; nothing is saved
        by it, so it has no price."""
        test = self.work.test[task]

        def answered() -> Outcome:
            dense = self.dense(task)
            with hooks():
                planned = dense_answers(self.loaded, test, self.sizes.batch, MAX_NEW_TOKENS, False)
            found = compared(self.loaded.name, test, dense, planned, Provenance())
            return Outcome(
                method="", setting="", task=task, kept=1.0, kept_papers=None, kept_live=1.0, **per_question(found)
            )

        parts = ("diagnostic", name, setting, test.hash, self.sizes.batch)
        found = self.store.cell(f"{task} {name} {setting}", parts, Outcome, answered)
        return found.model_copy(update={"method": name, "setting": setting, "task": task})

    def on_tasks(
        self, name: str, plan: Callable[[str], Plan], *, setting: str = "", draw: int = 0
    ) -> tuple[Outcome, ...]:
        """The answers to every task, each under its own plan."""
        return tuple(self.answers(name, task, plan(task), setting=setting, draw=draw) for task in self.tasks)

    def numbers(
        self, name: str, parts: tuple[Any, ...], measure: Callable[[], dict[str, tuple[float, ...]]]
    ) -> dict[str, tuple[float, ...]]:
        """Other measurements, by name."""
        return self.store.cell(name, parts, Numbers, lambda: Numbers(values=measure())).values
