"""Every method on one model and all its tasks: at its paper's setting, and all at the price of one budget.

What a paper reports of its method is on its own models, tasks and baselines, and seldom at one price. Here all run on
one runtime, and are priced by what runs. Every result is written as soon as it is there, so a table that was cut off
goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from . import files, flops
from .choices import dop
from .data import Samples, load_data
from .diagnostics import measured
from .errors import LooklessError, PlanError
from .evaluation import Estimate, evaluate, mean_estimate, normal, retention_estimate
from .geometry import Geometry
from .loading import Loaded
from .measure import time_prefill
from .methods import Method
from .models import geometry_of, locate
from .objective import Objective
from .plan import LayerPlan, Plan
from .progress import shown
from .runtime import apply, prompts_of
from .scores import Scores
from .search import gsop_order
from .tracing import trace

SCHEMA_VERSION = 1
PAPER = "paper"
STEPS = 40  # strengths tried to meet a budget
NEAR = 0.03  # a plan within so many points of the budget meets it
SEARCHED = ("gsop", "dop")  # on a few samples of all tasks


class Outcome(BaseModel):
    """One plan on one task.

    Attributes:
        method, setting, task: whose plan; ``paper`` or the share of FLOPs aimed at; on what.
        kept: share of the dense prefill's FLOPs that ran, decoder only.
        right: of each question, whether the plan answers it right; ``dense`` the same of the dense model.
        same: whether plan and dense model answer alike.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    setting: str
    task: str
    kept: float
    right: tuple[bool, ...]
    dense: tuple[bool, ...]
    same: tuple[bool, ...]


class Results(BaseModel):
    """All outcomes on one model so far, and what their times are.

    Attributes:
        times: ``method, setting`` to its decoder's prefill time by the dense one's, on the first task.
        missed: ``method, setting`` to why there is no plan, or how near the budget it comes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: str
    geometry: Geometry
    questions: int
    samples: int
    outcomes: tuple[Outcome, ...] = ()
    times: dict[str, float] = {}
    dense_ms: float | None = None
    missed: dict[str, str] = {}
    machine: str = ""

    def of(self, method: str, setting: str) -> tuple[Outcome, ...]:
        return tuple(o for o in self.outcomes if (o.method, o.setting) == (method, setting))


def accuracy(outcomes: Sequence[Outcome]) -> Estimate:
    return mean_estimate(np.concatenate([np.array(o.right, dtype=float) for o in outcomes]))


def retention(outcomes: Sequence[Outcome]) -> Estimate | None:
    plan, dense = (np.concatenate([np.array(getattr(o, k), dtype=float) for o in outcomes]) for k in ("right", "dense"))
    return retention_estimate(plan, dense)


#: how much a method does from nothing (0) to all it can (1): the knobs that say so, for a model of so many layers
STRENGTH: dict[str, Callable[[int, float], dict[str, Any]]] = {
    **{
        name: lambda n, s: {"layers": round(s * n)}
        for name in ("v-skip", "v-skip-universal", "ffn-skip", "cosine", "random-layers", "shortv")
    },
    **{
        name: lambda n, s: {"keep": round(1 - s, 4)}
        for name in ("fastv", "random-tokens", "visionzip", "divprune", "vispruner", "halfv-llava")
    },
    "operator-skipping": lambda n, s: {"save": 0.9 * s},
    "redundancylens": lambda n, s: {"attention_layers": round(s * n), "ffn_layers": round(s * n)},
    "vtw": lambda n, s: {"after": max(0, round((1 - s) * n) - 1)},
    "pyramiddrop": lambda n, s: {"keep": tuple(round((1 - s) ** i, 4) for i in (1, 2, 3))},
    "st3": lambda n, s: {"keep": round(1 - s / 2, 4)},
    "halfv": lambda n, s: {"keep": (round(1 - s, 4), round((1 - s) / 5, 4))},
    "alvts": lambda n, s: {"ratio": round(1 - s, 4)},
    "dash": lambda n, s: {"ratio": round(1 - s, 4)},
}


class Bench:
    """One model's calibration and answers, kept between methods."""

    def __init__(
        self, loaded: Loaded, tasks: Sequence[str], folder: Path, *, questions: int, samples: int, batch: int
    ) -> None:
        self.loaded, self.tasks, self.folder, self.batch = loaded, tuple(tasks), folder, batch
        self.geometry = geometry_of(loaded.model)
        self.asked = {task: load_data(task, split="test", limit=questions) for task in tasks}
        self.calibration = {task: load_data(task, split="calibration", limit=samples) for task in tasks}
        self.samples = samples
        self._dense: dict[str, list[str]] = {}
        self._scores: dict[tuple[str, str], Scores] = {}
        self._objective: Objective | None = None
        self._plans: dict[tuple[str, str, str], Plan] = {}
        self._traces: dict[tuple[LayerPlan, ...], float] = {}
        self.visual, self.text = self._lengths()

    def _lengths(self) -> tuple[int, int]:
        """Visual and text tokens of the first prompt, by which plans are priced."""
        first = next(iter(self.asked.values())).items[0]
        prompts = prompts_of(locate(self.loaded.model), self.loaded.inputs([first]))
        assert prompts is not None
        return prompts.counts[0], len(prompts.text[0])

    def scores(self, task: str, measure: str) -> Scores:
        """Measured once and kept in the folder."""
        if (task, measure) not in self._scores:
            path = self.folder / f"{_plain(task)}.{measure}.json"
            if path.exists():
                found = Scores.load(path)
            else:
                found = measured(self.loaded, self.calibration[task], measure)
                found.save(path)
            self._scores[task, measure] = found
        return self._scores[task, measure]

    @property
    def objective(self) -> Objective:
        """Of a few calibration samples of every task, for the methods that search."""
        if self._objective is None:
            each = max(1, 24 // len(self.tasks))
            items = tuple(item for task in self.tasks for item in self.calibration[task].items[:each])
            self._objective = Objective(self.loaded, Samples("all tasks", items))
        return self._objective

    def dense(self, task: str) -> list[str]:
        if task not in self._dense:
            result = evaluate(self.loaded, self.asked[task], batch=self.batch)
            self._dense[task] = [answer.dense for answer in result.answers]
        return self._dense[task]

    def kept(self, plan: Plan) -> float:
        """Share of the dense prefill's FLOPs that runs, from the formula; of a plan that filters, from a trace."""
        dense = flops.prefill(self.geometry, visual=self.visual, text=self.text).total
        if plan.is_static:
            return flops.prefill(self.geometry, visual=self.visual, text=self.text, plan=plan.as_run).total / dense
        if plan.layers not in self._traces:
            self._traces[plan.layers] = self._traced(plan) / dense
        return self._traces[plan.layers]

    @torch.no_grad()
    def _traced(self, plan: Plan) -> float:
        """FLOPs of a prompt, mean over some of every task, each row counted where it ran."""
        items = [item for task in self.tasks for item in self.calibration[task].items[:4]]
        total = 0.0
        with apply(self.loaded.model, plan), trace(self.loaded.model) as counted:
            for item in items:
                counted.clear()
                self.loaded.model(**self.loaded.inputs([item]), logits_to_keep=1)
                total += sum(flops.layer(self.geometry, **rows) for rows in counted.layers)
        return total / len(items)

    def plan(self, method: Method, task: str, setting: str) -> Plan:
        """The method's plan for a task, made once: a search is long, and is one for all tasks, as is a joint mask.

        Raises:
            LooklessError: there is none, with the reason.
        """
        for_all = method.name in SEARCHED or method.takes_many
        key = (method.name, setting, "" if for_all else task)
        if key not in self._plans:
            self._plans[key] = self._made(method, task, setting)
        return self._plans[key]

    def _made(self, method: Method, task: str, setting: str) -> Plan:
        if method.name == "gsop":
            order = gsop_order(self.objective, stride=0.01, path=self.folder / "gsop.json")
            share = 0.3 if setting == PAPER else float(setting)  # the paper saves 70 % of the computation
            return order.within(share, visual=self.visual, text=self.text)
        if method.name == "dop":
            share = 0.23 if setting == PAPER else float(setting)  # 77 % of TFLOPs saved at no loss
            return dop(self.objective, kept=share, every=2).plan
        if method.takes_many:  # one mask for all tasks
            scores: Any = [self.scores(each, need) for each in self.tasks for need in method.measures]
        else:
            scores = {need: self.scores(task, need) for need in method.measures}
        if setting == PAPER:
            return method.at_paper(self.geometry, scores)
        return self._near(method, scores, float(setting))

    def _near(self, method: Method, scores: Any, budget: float) -> Plan:
        """The method's plan whose price is nearest to the budget."""
        if method.name not in STRENGTH:
            raise PlanError("its published knobs are not one amount to turn")
        plans: dict[str, Plan] = {}
        for step in range(STEPS + 1):
            knobs = STRENGTH[method.name](self.geometry.layers, step / STEPS)
            try:
                plan = method.at_paper(self.geometry, scores, **knobs)
            except LooklessError:  # a strength out of the method's range
                continue
            plans[str(plan.layers)] = plan
        return min(plans.values(), key=lambda plan: abs(self.kept(plan) - budget))


def run_table(
    loaded: Loaded,
    methods: Mapping[str, Method],
    folder: Path,
    *,
    tasks: Sequence[str],
    budgets: Sequence[float] = (0.6,),
    questions: int = 60,
    samples: int = 20,
    batch: int = 20,
    machine: str = "",
) -> Results:
    """Every method at its paper's setting and at each budget; ``folder`` holds what is done, and is gone on from.

    Args:
        tasks: names of data, each with splits ``calibration`` and ``test``.
        budgets: shares of the dense prefill's FLOPs kept.

    Raises:
        PlanError: the folder holds results of other questions, samples or another model.
    """
    bench = Bench(loaded, tasks, folder, questions=questions, samples=samples, batch=batch)
    path = folder / "results.json"
    fresh = Results(model=loaded.name, geometry=bench.geometry, questions=questions, samples=samples, machine=machine)
    results = files.load(path, Results, PlanError, SCHEMA_VERSION) if path.exists() else fresh
    same = ("model", "geometry", "questions", "samples")
    if any(getattr(results, name) != getattr(fresh, name) for name in same):
        raise PlanError(
            f"{path} holds results of {results.model} with {results.questions} questions and {results.samples} "
            f"calibration samples, not of {loaded.name} with {questions} and {samples}: give another folder."
        )
    settings = (PAPER, *(f"{budget:g}" for budget in budgets))
    todo = [(method, setting) for setting in settings for method in methods.values()]
    for method, setting in shown(todo, f"methods on {loaded.name}", True):
        if not results.of(method.name, setting) and f"{method.name}, {setting}" not in results.missed:
            results = _with(results, bench, method, setting)
            files.write_text(path, files.dump(results))
    if any(f"{o.method}, {o.setting}" not in results.times for o in results.outcomes):
        results = _timed(results, bench, methods)
        files.write_text(path, files.dump(results))
    return results


def _timed(results: Results, bench: Bench, methods: Mapping[str, Method]) -> Results:
    """``results`` with the prefill time of every plan on the first task, all in turn in every round."""
    keys = list(dict.fromkeys((o.method, o.setting) for o in results.outcomes if o.method in methods))
    plans = [bench.plan(methods[name], bench.tasks[0], setting) for name, setting in keys]
    inputs = bench.loaded.inputs(bench.asked[bench.tasks[0]].items[:8])
    dense, *planned = time_prefill(bench.loaded, inputs, [None, *plans], repeats=7)
    times = {
        f"{name}, {setting}": median(mine / theirs for mine, theirs in zip(t.each_ms, dense.each_ms, strict=True))
        for (name, setting), t in zip(keys, planned, strict=True)
    }
    return results.model_copy(update={"times": times, "dense_ms": dense.median_ms})


def _with(results: Results, bench: Bench, method: Method, setting: str) -> Results:
    """``results`` and those of one method at one setting."""
    key = f"{method.name}, {setting}"
    outcomes = []
    try:
        for task in bench.tasks:
            plan = bench.plan(method, task, setting)
            kept = bench.kept(plan)
            if setting != PAPER and abs(kept - float(setting)) > NEAR:
                raise PlanError(f"comes no nearer than {kept:.0%}")
            outcomes.append(_outcome(bench, method, setting, task, plan, kept))
    except LooklessError as problem:
        return results.model_copy(update={"missed": {**results.missed, key: str(problem)}})
    return results.model_copy(update={"outcomes": (*results.outcomes, *outcomes)})


def _outcome(bench: Bench, method: Method, setting: str, task: str, plan: Plan, kept: float) -> Outcome:
    dense = bench.dense(task)
    answers = evaluate(bench.loaded, bench.asked[task], plan, batch=bench.batch, dense=dense, progress=False).answers
    expected = [normal(answer.expected) for answer in answers]
    planned = [normal(answer.plan or "") for answer in answers]
    return Outcome(
        method=method.name,
        setting=setting,
        task=task,
        kept=kept,
        right=tuple(p == e for p, e in zip(planned, expected, strict=True)),
        dense=tuple(normal(d) == e for d, e in zip(dense, expected, strict=True)),
        same=tuple(p == normal(d) for p, d in zip(planned, dense, strict=True)),
    )


def _plain(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")
