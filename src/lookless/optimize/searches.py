"""Searches by name: what ``lookless search --method`` takes. Each goes from a run to a plan within the run's budget.

What one leaves is in a folder of its own, ``searches/NAME`` in the run's: its plan, its result, and what it needs to go
on where it was. The plan that a run has certified stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ..cells import Neurons, Skip, Window
from ..errors import PlanError
from ..layer_plan import LayerPlan, spans
from ..methods.redundancylens import window_at
from ..plan import Plan
from ..search.additive import risk_of
from ..search.depthwise import RATIOS, dop_depths
from ..search.greedy import SLACK, GreedyOrder, gsop_order, redundancylens_order
from ..search.interactions import repair as repaired
from ..search.operators import TAU, operator_choice
from ..search.price import Pricing, by_flops
from ..serving.settings import check_plan
from .run import Optimization

#: The parts of the data that chose a plan: of a search that measures plans alone, and of one that begins with scores.
SEARCHED, SCORED = ("tuning",), ("calibration", "tuning")


@dataclass(frozen=True)
class Given:
    """What a search takes besides a run.

    Attributes:
        place: the folder for its result.
        plan: to repair.
        tau: nats, of labels.
    """

    place: Path
    plan: Plan | None = None
    tau: float = TAU


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        plan: within the budget.
        lines: how it was found, in words.
        evaluations, seconds: plans run, and what that took, those before an interruption too.
    """

    plan: Plan
    lines: tuple[str, ...]
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Search:
    """One search.

    Attributes:
        find: searches.
        idea: in a few words.
        options: that it takes, of those that not every search takes.
        is_served: vLLM can run what it finds.
    """

    find: Callable[[Optimization, Given], Found]
    idea: str
    options: Collection[str] = ()
    is_served: bool = True


@dataclass(frozen=True)
class Outcome:
    """A plan that was found, and what it does to the samples that the search saw.

    Attributes:
        method: the search.
        plan: with its provenance.
        folder: where the plan is.
        kept, time: the shares of the stock prefill's FLOPs and milliseconds that run; no time without a latency table.
        distance: nats; ``risk`` and ``fidelity`` are those of :class:`lookless.search.Candidate`.
        evaluations, seconds, lines: of :class:`Found`.
    """

    method: str
    plan: Plan
    folder: Path
    kept: float
    time: float | None
    distance: float
    risk: float
    fidelity: float
    evaluations: int
    seconds: float
    lines: tuple[str, ...]

    @property
    def record(self) -> dict[str, Any]:
        """As JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in ("plan", "folder", "lines")}
        return {**plain, "plan": str(self.folder), "lines": list(self.lines)}

    @property
    def summary(self) -> tuple[str, ...]:
        """What it came to, in words."""
        time = "" if self.time is None else f" and about {self.time:.1%} of the time"
        return (
            f"It keeps {self.kept:.1%} of the prefill's FLOPs{time}. Plans run: {self.evaluations}, in "
            f"{self.seconds:.0f} s.",
            f"On the samples that chose it {self.fidelity:.0%} of the answers stay the same ({self.distance:.4f} nats, "
            f"risk {self.risk:.4f}); on others expect less.",
        )


def search_by_name(run: Optimization, name: str, *, plan: Plan | None = None, tau: float = TAU) -> Outcome:
    """Search by ``name``, one of :data:`SEARCHES`, and write what is found.

    Raises:
        PlanError: no plan of the search is within the budget; or one to repair is for another model, or costs more.
    """
    place = run.folder.search(name)
    if plan is not None:
        plan.check(run.geometry)
        if run.run.engine == "vllm":
            check_plan(plan)
    found = SEARCHES[name].find(run, Given(place, plan, tau))
    found.plan.save_pretrained(place / "plan")
    tasks = list(run.tuning.per_task(found.plan))
    return Outcome(
        method=name,
        plan=found.plan,
        folder=place / "plan",
        kept=_pricing(run).share(found.plan.layers),
        time=run.latency().pricing.share(found.plan.layers) if run.folder.latency.exists() else None,
        distance=run.tuning(found.plan),
        risk=risk_of(run.tuning, found.plan),
        fidelity=fmean(fmean(not effect.changed for effect in task) for task in tasks),
        evaluations=found.evaluations,
        seconds=round(found.seconds, 2),
        lines=found.lines,
    )


def _joint(run: Optimization, given: Given) -> Found:
    target, front = run.run.target, run.search()
    best = front.within(target.value, target.price)
    if best is None:
        raise PlanError(f"no plan was found within {target.value:.0%}: the milder ones are in {run.folder.front}.")
    lines = tuple(
        f"{gain.step:>9}: risk {gain.risk:.4f}, {gain.distance:.4f} nats, found by {gain.found_by}; "
        f"{gain.evaluations} plans run"
        for gain in front.gains
        if gain.budget == target.value
    )
    return Found(
        run.named(best.plan, "joint", SCORED, {"found_by": best.found_by}), lines, front.evaluations, front.seconds
    )


def _gsop(run: Optimization, given: Given) -> Found:
    budget, objective = run.run.target.value, run.tuning
    _reach(run, "GSOP", LayerPlan(visible=Skip(), attention=Skip(), ffn=Skip()))
    with run.stage("gsop", f"sorting operations on {len(objective)} samples"):
        path = given.place / "order.json"
        order = gsop_order(objective, kept=budget, stride=0.0, path=path, progress=run.progress)
    plan = order.within(budget, visual=objective.visual, text=objective.text)
    steps = int(plan.provenance.knobs["steps"])
    lines = (f"the first {steps} of {len(order.candidates)} operations: {order.distances[steps - 1]:.4f} nats",)
    return Found(run.named(plan, "gsop", SEARCHED, {"steps": steps}), lines, order.evaluations, order.seconds)


def _redundancylens(run: Optimization, given: Given) -> Found:
    """As many layers for both operators; half of an order is by place, from the last layer on, as the paper's is in a
    part that it does not print."""
    objective, layers = run.tuning, run.geometry.layers
    window = window_at(round(objective.visual))
    count = _reach(run, "RedundancyLens", LayerPlan(attention=Window(window), ffn=Neurons(0.2, probe=0.1)))

    def order(operator: Literal["attention", "ffn"]) -> GreedyOrder:
        return redundancylens_order(
            objective,
            operator,
            preranked=layers // 2,
            window=window,
            steps=count,
            path=given.place / f"{operator}.json",
            progress=run.progress,
        )

    with run.stage("redundancylens", f"sorting layers on {len(objective)} samples"):
        orders = order("attention"), order("ffn")
    plan = orders[0].plan(count) | orders[1].plan(count)
    knobs = {"attention_layers": count, "ffn_layers": count, "window": window}
    lines = (f"attention and FFN reduced in {count} of {layers} layers each",)
    plan = run.named(plan, "redundancylens", SEARCHED, knobs)
    return Found(plan, lines, sum(one.evaluations for one in orders), sum(one.seconds for one in orders))


def _reach(run: Optimization, name: str, row: LayerPlan) -> int:
    """In how many layers, from the last one backwards, ``row`` is within the budget.

    Raises:
        PlanError: in all is not enough.
    """
    budget, layers = run.run.target.value, run.geometry.layers
    plans = [run.full.at(range(layers - count, layers), **row.planned) for count in range(layers + 1)]
    kept = [_pricing(run).share(plan.layers) for plan in plans]
    enough = next((count for count, share in enumerate(kept) if share <= budget + SLACK), None)
    if enough is None:
        raise PlanError(
            f"{name} keeps {kept[-1]:.2%} of the FLOPs if it changes all {layers} layers, and {budget:.2%} were asked "
            f"for: give more."
        )
    return enough


def _pricing(run: Optimization) -> Pricing:
    return by_flops(run.geometry, run.tuning.visual, run.tuning.text)


def _dop(run: Optimization, given: Given) -> Found:
    objective = run.record_tuning(given.place / "effects.json")
    ratios = RATIOS if run.run.engine == "transformers" else (1.0,)  # vLLM keeps every token
    with run.stage("dop", f"measuring depths on {len(objective)} samples"):
        every = max(1, run.geometry.layers // 12)
        budget = run.run.target.value
        choice = dop_depths(objective, kept=budget, ratios=ratios, every=every, progress=run.progress)
        objective.save()
    choice.save(given.place / "result.json")
    depths = {"attention": choice.attention_depth, "ffn": choice.ffn_depth}
    knobs: dict[str, int | float | str] = {**depths, "keep": choice.ratio, "rank": choice.rank}
    lines = (
        f"attention in the first {choice.attention_depth} layers, FFN in the first {choice.ffn_depth}, "
        f"{choice.ratio:.0%} of the tokens: {choice.joint:.4f} nats, {choice.additive:.4f} as a sum of three",
    )
    return Found(run.named(choice.plan, "dop", SEARCHED, knobs), lines, choice.evaluations, choice.seconds)


def _operator_skipping(run: Optimization, given: Given) -> Found:
    additive, budget = run.additive(), run.run.target.value
    choice = operator_choice(run.tuning, run.scores(), kept=budget, tau=given.tau)
    choice.save(given.place / "result.json")
    plan = run.named(choice.plan, "operator-skipping", SCORED, {"save": 1 - budget})
    lines = (str(choice), f"all changes together: {choice.joint:.4f} nats")
    return Found(plan, lines, additive.evaluations + choice.evaluations, additive.seconds + choice.seconds)


def _repair(run: Optimization, given: Given) -> Found:
    assert given.plan is not None
    objective = run.record_tuning(given.place / "effects.json")
    with run.stage("repair", f"trying other actions on {len(objective)} samples"):
        fixed = repaired(objective, given.plan, kept=run.run.target.value, progress=run.progress)
        objective.save()
    fixed.save(given.place / "result.json")
    made = fixed.plan.provenance
    plan = run.named(fixed.plan, made.method or "repair", SEARCHED, made.knobs)
    seen = (*(made.sample_hashes or ()), *(plan.provenance.sample_hashes or ()))
    changed = " ".join(spans(fixed.changed)) or "none"
    lines = (f"{fixed.before:.4f} nats before, {fixed.after:.4f} after; layers changed: {changed}",)
    plan = plan.made_by(sample_hashes=tuple(dict.fromkeys(seen)))
    return Found(plan, lines, fixed.evaluations, fixed.seconds)


SEARCHES = {
    "joint": Search(_joint, "every kind of change, measured together", options=("latency", "proposals", "timed")),
    "gsop": Search(_gsop, "GSOP: operations in greedy order", is_served=False),
    "redundancylens": Search(_redundancylens, "RedundancyLens: layers in greedy order", is_served=False),
    "dop": Search(_dop, "DOP: two depths and a share of tokens"),
    "operator-skipping": Search(_operator_skipping, "what each layer lives by, and the rest skipped", options=("tau",)),
    "repair": Search(_repair, "another plan, with layers exchanged where that is better", options=("plan",)),
}
