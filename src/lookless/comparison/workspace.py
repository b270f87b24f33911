"""One model's calibration, dense answers and plans, made once and kept between methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import flops
from ..calibration.gradients import scores_by_name
from ..calibration.sweep import sweep
from ..cells import Window
from ..data import Samples, load_data
from ..errors import LooklessError, PlanError
from ..evaluation import evaluate
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..methods import Method
from ..methods.redundancylens import PAPER_WINDOW, window_at
from ..plan import Plan
from ..runtime.families import geometry_of, locate
from ..runtime.patching import apply
from ..runtime.prompts import prompts_of
from ..runtime.tracing import trace
from ..scores import Scores
from ..search.depthwise import dop_depths
from ..search.greedy import gsop_order
from ..search.objective import Objective
from .results import PAPER

STEPS = 40  #: strengths tried to meet a budget


class Workspace:
    """One model's calibration and answers, kept between methods.

    Attributes:
        calibration, test: samples by task; they share no prompt.
        visual, text: tokens of the first prompt, by which plans are priced.
        stock, lean: prefill FLOPs of the stock model, and of it without its dead work.
        withdrew: by a plan's layers, what a plan that filters did to the image.
    """

    def __init__(
        self, loaded: Loaded, tasks: Sequence[str], folder: Path, *, questions: int, samples: int, batch: int
    ) -> None:
        self.loaded, self.tasks, self.folder, self.batch = loaded, tuple(tasks), folder, batch
        self.geometry = geometry_of(loaded.model)
        self.calibration = {task: load_data(task, split="calibration", limit=samples) for task in tasks}
        seen = {prompt for chosen in self.calibration.values() for prompt in chosen.hashes}
        self.test = {task: load_data(task, split="test", limit=questions, without=seen) for task in tasks}
        self.samples = samples
        self._dense: dict[str, list[str]] = {}
        self._scores: dict[tuple[str, str], Scores] = {}
        self._objective: Objective | None = None
        self._plans: dict[tuple[str, str, str, int], Plan] = {}
        self._traces: dict[tuple[LayerPlan, ...], float] = {}
        self.withdrew: dict[tuple[LayerPlan, ...], str] = {}
        self.visual, self.text = self._lengths()
        full = Plan.full(self.geometry)
        self.stock, self.lean = self._priced(full), self._priced(full.live())

    def _lengths(self) -> tuple[int, int]:
        """Visual and text tokens of the first prompt, by which plans are priced."""
        first = next(iter(self.test.values())).items[0]
        prompts = prompts_of(locate(self.loaded.model), self.loaded.inputs([first]))
        assert prompts is not None
        return prompts.counts[0], len(prompts.text[0])

    def scores(self, task: str, measure: str) -> Scores:
        """Of ``measure``, computed once and kept in the folder."""
        if (task, measure) not in self._scores:
            window = window_at(self.visual)
            narrow = measure == "window_effect" and window < PAPER_WINDOW
            path = self.folder / f"{_plain(task)}.{measure}{f'.{window}' if narrow else ''}.json"
            samples = self.calibration[task]
            found = Scores.load(path) if path.exists() else None
            if found is None or not _are_of(found, samples):
                if narrow:
                    found = sweep(self.loaded, samples, LayerPlan(attention=Window(window)), name=measure)
                else:
                    found = scores_by_name(self.loaded, samples, measure)
                found.save(path)
            self._scores[task, measure] = found
        return self._scores[task, measure]

    @property
    def objective(self) -> Objective:
        """On a few calibration samples of every task, for the methods that search."""
        if self._objective is None:
            each = max(1, 24 // len(self.tasks))
            items = tuple(item for task in self.tasks for item in self.calibration[task].items[:each])
            self._objective = Objective(self.loaded, Samples("all tasks", items))
        return self._objective

    def dense(self, task: str) -> list[str]:
        if task not in self._dense:
            result = evaluate(self.loaded, self.test[task], batch=self.batch)
            self._dense[task] = [answer.dense for answer in result.answers]
        return self._dense[task]

    def _priced(self, plan: Plan) -> float:
        return flops.prefill(self.geometry, visual=self.visual, text=self.text, plan=plan).total

    def kept(self, plan: Plan) -> float:
        """FLOPs run, as a share of the stock prefill's: from the formula, or from a trace if the plan filters."""
        if plan.is_static:
            return self._priced(plan.as_run) / self.stock
        if plan.layers not in self._traces:
            self._traces[plan.layers] = self._traced(plan) / self.stock
        return self._traces[plan.layers]

    def kept_papers(self, plan: Plan) -> float | None:
        """The share as papers count it, see :class:`Outcome`: skipping dead work alone saves nothing."""
        if plan.layers == Plan.full(self.geometry).live().layers:
            return 1.0
        return self._priced(plan) / self.stock if plan.is_static else None

    @torch.no_grad()
    def _traced(self, plan: Plan) -> float:
        """FLOPs of a prompt, mean over a few of every task; each row is counted where it ran."""
        items = [item for task in self.tasks for item in self.calibration[task].items[:4]]
        total, withdrew = 0.0, 0
        with apply(self.loaded.model, plan), trace(self.loaded.model) as counted:
            for item in items:
                counted.clear()
                inputs = self.loaded.inputs([item])
                self.loaded.model(**inputs, logits_to_keep=1)
                total += sum(flops.layer(self.geometry, **rows) for rows in counted.layers)
                prompts = prompts_of(locate(self.loaded.model), inputs)
                assert prompts is not None
                withdrew += counted.layers[-1]["key"] == len(prompts.text[0])
        self.withdrew[plan.layers] = (
            f"the image was withdrawn before the last layer in {withdrew} of {len(items)} prompts"
        )
        return total / len(items)

    def plan(self, method: Method, task: str, setting: str, draw: int = 0) -> Plan:
        """The method's plan for a task, made once. Searched plans and joint masks are the same for all tasks.

        Raises:
            LooklessError: there is none, with the reason.
        """
        for_all = method.name in SEARCHES or method.takes_many
        key = (method.name, setting, "" if for_all else task, draw)
        if key not in self._plans:
            self._plans[key] = self._made(method, task, setting, draw)
        return self._plans[key]

    def _made(self, method: Method, task: str, setting: str, draw: int) -> Plan:
        if method.name in SEARCHES:
            kept = method.paper_kept if setting == PAPER else float(setting)
            assert kept is not None
            return SEARCHES[method.name](self, kept)
        if method.takes_many:  # one mask for all tasks
            scores: Any = [self.scores(each, need) for each in self.tasks for need in method.measures]
        else:
            scores = {need: self.scores(task, need) for need in method.measures}
        knobs = method.prompt_arguments(self.visual, self.text) if method.prompt_arguments else {}
        if draw:
            knobs["seed"] = draw
        if setting == PAPER:
            return method.build(self.geometry, scores, **knobs)
        return self._near(method, scores, float(setting), knobs)

    def _near(self, method: Method, scores: Any, budget: float, fixed: Mapping[str, Any]) -> Plan:
        """The method's plan whose price is nearest to the budget.

        Raises:
            PlanError: no strength gives one, with the reason of the last.
        """
        if method.strength is None:
            raise PlanError("its published arguments are not one amount")
        plans: dict[str, Plan] = {}
        reason = ""
        for step in range(STEPS + 1):
            knobs = method.strength(self.geometry.layers, step / STEPS)
            try:
                plan = method.build(self.geometry, scores, **{**fixed, **knobs})
            except LooklessError as problem:  # a strength out of the method's range
                reason = str(problem)
                continue
            plans[str(plan.layers)] = plan
        if not plans:
            raise PlanError(f"no strength gives a plan for this model: {reason}")
        return min(plans.values(), key=lambda plan: abs(self.kept(plan) - budget))


#: Searched methods: the plan that keeps a share of the FLOPs, found on a few samples of all tasks.
SEARCHES: dict[str, Callable[[Workspace, float], Plan]] = {
    "gsop": lambda work, kept: gsop_order(work.objective, stride=0.01, path=work.folder / "gsop.json").within(
        kept, visual=work.visual, text=work.text
    ),
    "dop": lambda work, kept: dop_depths(work.objective, kept=kept, every=2).plan,
}


def _are_of(scores: Scores, samples: Samples) -> bool:
    """Whether ``scores`` are of these samples; files of schema 1 do not say, and reference tasks do not change."""
    if scores.sample_hashes is None:
        return samples.drawn_from is None
    return scores.sample_hashes == samples.hashes


def _plain(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")
