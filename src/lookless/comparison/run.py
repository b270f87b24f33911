"""Every method on one model and all its tasks: at its paper's setting, and all at the price of one budget.

What a paper reports of its method is on its own models, tasks and baselines, and seldom at one price. Here all run on
one runtime, and are priced both as the papers count and by what runs. Every result is written as soon as it is
there, so a table that was cut off goes on where it stopped; a method that fails is reported, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from .. import files, flops
from ..bench.timing import time_prefill
from ..calibration.gradients import measured
from ..calibration.sweep import sweep
from ..cells import Window
from ..data import Samples, load_data
from ..errors import LooklessError, PlanError, first_line
from ..evaluation import Estimate, evaluate, mean_estimate, normal, retention_estimate
from ..geometry import Geometry
from ..loading import Loaded
from ..methods import Method
from ..plan import LayerPlan, Plan
from ..progress import shown
from ..runtime.families import geometry_of, locate
from ..runtime.patching import apply, prompts_of
from ..runtime.tracing import trace
from ..scores import Scores
from ..search.depthwise import dop
from ..search.greedy import gsop_order
from ..search.objective import Objective

SCHEMA_VERSION = 2
PAPER = "paper"
STEPS = 40  # strengths tried to meet a budget
NEAR = 0.03  # a plan within so many points of the budget meets it
SEARCHED = ("gsop", "dop")  # on a few samples of all tasks
DRAWS = 5  # of a method that draws: one draw says little


def liveness(model: Geometry | int) -> Plan:
    """Skip what nobody reads, and nothing else: what every plan here gets for free."""
    return Plan.full(model).live()


#: not a method of a paper, but a row beside them: what of their savings is not theirs
LIVENESS = Method(liveness, "", "Liveness alone")


class Outcome(BaseModel):
    """One plan on one task.

    Attributes:
        method, setting, task: whose plan; ``paper`` or the share of FLOPs aimed at; on what.
        draw: which of a method that draws, from 0.
        kept: FLOPs that run, as a share of the stock model's prefill; decoder only.
        kept_papers: as papers count: work that nobody reads is counted in plan and model; None where what runs is
            decided prompt by prompt.
        kept_live: such work is counted in neither: FLOPs that run, as a share of those that run under liveness alone.
        right: of each question, whether the plan answers it right; ``dense`` the same of the dense model.
        same: whether plan and dense model answer alike.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    setting: str
    task: str
    draw: int = 0
    kept: float
    kept_papers: float | None
    kept_live: float
    right: tuple[bool, ...]
    dense: tuple[bool, ...]
    same: tuple[bool, ...]


class Results(BaseModel):
    """All outcomes on one model so far, and what their times are.

    Attributes:
        times: ``method, setting`` to its decoder's prefill time by the dense one's, on the first task.
        missed: ``method, setting`` to why there is no plan, or how near the budget it comes.
        notes: ``method, setting`` to what is to be known of a row.
        hashes: of each task, those of the samples calibrated on and of the questions asked, which share no prompt.
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
    notes: dict[str, str] = {}
    machine: str = ""
    hashes: dict[str, tuple[str, str]] = {}

    def of(self, method: str, setting: str) -> tuple[Outcome, ...]:
        return tuple(o for o in self.outcomes if (o.method, o.setting) == (method, setting))


def by_question(outcomes: Sequence[Outcome], field: str = "right") -> NDArray[np.float64]:
    """``field`` of each question, all tasks one after the other; the mean over draws."""
    tasks = dict.fromkeys(o.task for o in outcomes)
    return np.concatenate([np.mean([getattr(o, field) for o in outcomes if o.task == task], axis=0) for task in tasks])


def accuracy(outcomes: Sequence[Outcome]) -> Estimate:
    return mean_estimate(by_question(outcomes))


def retention(outcomes: Sequence[Outcome]) -> Estimate | None:
    return retention_estimate(by_question(outcomes), by_question(outcomes, "dense"))


#: how much a method does from nothing (0) to all it can (1): the knobs that say so, for a model of so many layers
STRENGTH: dict[str, Callable[[int, float], dict[str, Any]]] = {
    **{
        name: lambda n, s: {"layers": round(s * n)}
        for name in (
            "v-skip",
            "v-skip-universal",
            "ffn-skip",
            "logit-cosine",
            "random-layers",
            "shortv",
            "state-cosine",
        )
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


#: RedundancyLens' window is 256 at the 1792 visual tokens that its printed FLOPs fit; wider than the prompt it is none
WINDOW, WINDOW_OF = 256, 1792

#: knobs that are numbers of tokens, for prompts of so many visual and text tokens
AT_LENGTH: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "operator-skipping": lambda visual, text: {"visual": visual, "text": text},
    "redundancylens": lambda visual, _: {"window": max(1, round(WINDOW * min(1, visual / WINDOW_OF)))},
}


class Bench:
    """One model's calibration and answers, kept between methods."""

    def __init__(
        self, loaded: Loaded, tasks: Sequence[str], folder: Path, *, questions: int, samples: int, batch: int
    ) -> None:
        self.loaded, self.tasks, self.folder, self.batch = loaded, tuple(tasks), folder, batch
        self.geometry = geometry_of(loaded.model)
        self.calibration = {task: load_data(task, split="calibration", limit=samples) for task in tasks}
        seen = {prompt for chosen in self.calibration.values() for prompt in chosen.hashes}
        self.asked = {task: load_data(task, split="test", limit=questions, without=seen) for task in tasks}
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
        first = next(iter(self.asked.values())).items[0]
        prompts = prompts_of(locate(self.loaded.model), self.loaded.inputs([first]))
        assert prompts is not None
        return prompts.counts[0], len(prompts.text[0])

    def scores(self, task: str, measure: str) -> Scores:
        """Measured once and kept in the folder."""
        if (task, measure) not in self._scores:
            window = AT_LENGTH["redundancylens"](self.visual, self.text)["window"]
            narrow = measure == "window_effect" and window < WINDOW
            path = self.folder / f"{_plain(task)}.{measure}{f'.{window}' if narrow else ''}.json"
            samples = self.calibration[task]
            found = Scores.load(path) if path.exists() else None
            if found is None or not _are_of(found, samples):
                if narrow:
                    found = sweep(self.loaded, samples, LayerPlan(attention=Window(window)), name=measure)
                else:
                    found = measured(self.loaded, samples, measure)
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

    def _priced(self, plan: Plan) -> float:
        return flops.prefill(self.geometry, visual=self.visual, text=self.text, plan=plan).total

    def kept(self, plan: Plan) -> float:
        """FLOPs that run as a share of the stock prefill's: from the formula; of a plan that filters, from a trace."""
        if plan.is_static:
            return self._priced(plan.as_run) / self.stock
        if plan.layers not in self._traces:
            self._traces[plan.layers] = self._traced(plan) / self.stock
        return self._traces[plan.layers]

    def kept_papers(self, plan: Plan) -> float | None:
        """The share as papers count it, see :class:`Outcome`; they do not count liveness, so alone it saves nothing."""
        if plan.layers == Plan.full(self.geometry).live().layers:
            return 1.0
        return self._priced(plan) / self.stock if plan.is_static else None

    @torch.no_grad()
    def _traced(self, plan: Plan) -> float:
        """FLOPs of a prompt, mean over some of every task, each row counted where it ran."""
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
        """The method's plan for a task, made once: a search is long, and is one for all tasks, as is a joint mask.

        Raises:
            LooklessError: there is none, with the reason.
        """
        for_all = method.name in SEARCHED or method.takes_many
        key = (method.name, setting, "" if for_all else task, draw)
        if key not in self._plans:
            self._plans[key] = self._made(method, task, setting, draw)
        return self._plans[key]

    def _made(self, method: Method, task: str, setting: str, draw: int) -> Plan:
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
        knobs = AT_LENGTH[method.name](self.visual, self.text) if method.name in AT_LENGTH else {}
        if draw:
            knobs["seed"] = draw
        if setting == PAPER:
            return method.at_paper(self.geometry, scores, **knobs)
        return self._near(method, scores, float(setting), knobs)

    def _near(self, method: Method, scores: Any, budget: float, fixed: Mapping[str, Any]) -> Plan:
        """The method's plan whose price is nearest to the budget.

        Raises:
            PlanError: no strength gives one; with the reason of the last.
        """
        if method.name not in STRENGTH:
            raise PlanError("its published knobs are not one amount to turn")
        plans: dict[str, Plan] = {}
        reason = ""
        for step in range(STEPS + 1):
            knobs = STRENGTH[method.name](self.geometry.layers, step / STEPS)
            try:
                plan = method.at_paper(self.geometry, scores, **{**fixed, **knobs})
            except LooklessError as problem:  # a strength out of the method's range
                reason = str(problem)
                continue
            plans[str(plan.layers)] = plan
        if not plans:
            raise PlanError(f"no strength gives a plan for this model: {reason}")
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
        budgets: shares of the stock prefill's FLOPs that run.

    Raises:
        PlanError: a budget is not between 0 and 1; the folder holds results of other questions, samples or another
            model, or of an older lookless.
    """
    check_budgets(budgets)
    bench = Bench(loaded, tasks, folder, questions=questions, samples=samples, batch=batch)
    path = folder / "results.json"
    fresh = Results(
        model=loaded.name,
        geometry=bench.geometry,
        questions=questions,
        samples=samples,
        machine=machine,
        hashes={task: (bench.calibration[task].hash, bench.asked[task].hash) for task in tasks},
    )
    results = files.load(path, Results, PlanError, SCHEMA_VERSION) if path.exists() else fresh
    same = ("model", "geometry", "questions", "samples")
    if any(getattr(results, name) != getattr(fresh, name) for name in same):
        raise PlanError(
            f"{path} holds results of {results.model} with {results.questions} questions and {results.samples} "
            f"calibration samples, not of {loaded.name} with {questions} and {samples}: give another folder."
        )
    changed = [task for task, hashes in fresh.hashes.items() if results.hashes.get(task, hashes) != hashes]
    if changed:
        raise PlanError(
            f"{path} holds results of other samples of {changed[0]} than there are now: give another folder."
        )
    settings = (PAPER, *(f"{budget:g}" for budget in budgets))
    todo = [(LIVENESS, PAPER), *((method, setting) for setting in settings for method in methods.values())]
    for method, setting in shown(todo, f"methods on {loaded.name}", True):
        if not results.of(method.name, setting) and f"{method.name}, {setting}" not in results.missed:
            results = _with(results, bench, method, setting)
            files.write_text(path, files.dump(results))
    if any(f"{o.method}, {o.setting}" not in results.times for o in results.outcomes):
        results = _timed(results, bench, {LIVENESS.name: LIVENESS, **methods})
        files.write_text(path, files.dump(results))
    return results


def check_budgets(budgets: Sequence[float]) -> None:
    """Raises: PlanError: a budget is not a share between 0 and 1."""
    for budget in budgets:
        if not 0 < budget < 1:
            raise PlanError(f"a budget of {budget:g} is no share of the FLOPs to keep: give more than 0, less than 1.")


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
    outcomes, notes = [], dict(results.notes)
    draws = DRAWS if "seed" in method.knobs else 1
    try:
        for draw, task in product(range(draws), bench.tasks):
            plan = bench.plan(method, task, setting, draw)
            kept = bench.kept(plan)
            if setting != PAPER and abs(kept - float(setting)) > NEAR:
                raise PlanError(f"comes no nearer than {kept:.0%}")
            outcomes.append(_outcome(bench, method, setting, task, draw, plan))
            if plan.layers in bench.withdrew:
                notes[key] = bench.withdrew[plan.layers]
    except LooklessError as problem:
        return results.model_copy(update={"missed": {**results.missed, key: str(problem)}})
    except Exception as problem:  # one method, perhaps another package's, is not to end the others' hour
        what = f"failed ({type(problem).__name__}: {first_line(problem)})"
        return results.model_copy(update={"missed": {**results.missed, key: what}})
    return results.model_copy(update={"outcomes": (*results.outcomes, *outcomes), "notes": notes})


def _outcome(bench: Bench, method: Method, setting: str, task: str, draw: int, plan: Plan) -> Outcome:
    dense = bench.dense(task)
    answers = evaluate(bench.loaded, bench.asked[task], plan, batch=bench.batch, dense=dense, progress=False).answers
    expected = [normal(answer.expected) for answer in answers]
    planned = [normal(answer.plan or "") for answer in answers]
    return Outcome(
        method=method.name,
        setting=setting,
        task=task,
        draw=draw,
        kept=bench.kept(plan),
        kept_papers=bench.kept_papers(plan),
        kept_live=bench.kept(plan) * bench.stock / bench.lean,
        right=tuple(p == e for p, e in zip(planned, expected, strict=True)),
        dense=tuple(normal(d) == e for d, e in zip(dense, expected, strict=True)),
        same=tuple(p == normal(d) for p, d in zip(planned, dense, strict=True)),
    )


def _are_of(scores: Scores, samples: Samples) -> bool:
    """Whether ``scores`` are of these samples; files of schema 1 do not say, and reference tasks do not change."""
    if scores.sample_hashes is None:
        return samples.drawn_from is None
    return scores.sample_hashes == samples.hashes


def _plain(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")
