"""Every plan that a search ran, and the best of them at every price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from ..layer_plan import LayerPlan
from ..plan import Plan
from ..weights import Weights
from .greedy import SLACK, SearchResult

#: What a plan is priced by: its share of the stock prefill's FLOPs, or of its milliseconds.
Price = Literal["kept", "time"]


def written(rows: Iterable[LayerPlan]) -> list[dict[str, Any]]:
    """``rows`` as JSON, without their full cells."""
    return [{column: cell.model_dump(mode="json") for column, cell in row.planned.items()} for row in rows]


class Candidate(BaseModel):
    """One plan, what it costs, and how far it moves the answers of the samples that the search saw.

    Attributes:
        plan: without provenance, and written without its full cells.
        kept: the share of the stock model's prefill FLOPs that runs.
        time: the share of its prefill milliseconds, by a latency table; None without one.
        distance: KL from the full model's answers, in nats, all changes together; the mean over tasks.
        by_task: the same of each task, the mean over its samples.
        risk: what the search minimises, from 0 to 1: :func:`lookless.search.additive.blend` of each task's mean of
            :attr:`lookless.search.objective.Effect.risk`.
        fidelity: the share of the samples whose greedy answer stays the full model's; the mean over tasks.
        found_by: the step of the search, or the method whose plan it is.
        checked: as ``fidelity``, on further samples that the best plans are compared on; None: it was not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    kept: float
    time: float | None = None
    distance: float
    by_task: dict[str, float] = Field(min_length=1)
    risk: float
    fidelity: float
    found_by: str
    checked: float | None = None

    @property
    def worst(self) -> float:
        """The distance of the task that moves most."""
        return max(self.by_task.values())

    def price(self, price: Price) -> float:
        """``kept`` or ``time``, which ``price`` names; infinite where the time is not known."""
        return self.kept if price == "kept" else float("inf") if self.time is None else self.time

    @field_serializer("plan")
    def _written(self, plan: Plan) -> dict[str, Any]:
        return {
            "layers": written(plan.layers),
            "geometry": None if plan.geometry is None else plan.geometry.model_dump(mode="json"),
        }


class Gain(BaseModel):
    """What one step of a search reached within one budget, and what it took.

    Attributes:
        step: in the order taken: ``additive``, ``methods``, ``joint``, and ``refitted`` where fitted cells are chosen.
        budget: the largest price of a plan.
        risk, distance: of the plan of the lowest risk found up to and with this step.
        found_by: of that plan.
        evaluations: plans run in this step, for this budget.
        plans: how many of the front's candidates were known at its end: where a search that was stopped goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    budget: float
    risk: float
    distance: float
    found_by: str
    evaluations: int
    plans: int | None = None


class Front(SearchResult):
    """Every plan that was run, in the order run, and the gain of every step over the one before.

    Attributes:
        price: what the budgets of the search are of.
        tasks: the data sets, in the order given.
        candidates: all plans, each once.
        gains: by budget and step.
    """

    price: Price = "kept"
    tasks: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    gains: tuple[Gain, ...] = ()

    @property
    def weights(self) -> tuple[Weights, ...]:
        return tuple(dict.fromkeys(each for one in self.candidates for each in one.plan.weights))

    def bound(self, weights: Mapping[str, Weights]) -> Front:
        """With the numbers of fitted cells in its plans: ``weights``, by their name."""
        return self.model_copy(update={"candidates": bound(self.candidates, weights)})

    def pareto(self, price: Price = "kept") -> tuple[Candidate, ...]:
        """The plans that no other beats in both price and risk, from mild (dear) to aggressive (cheap)."""
        return pareto(self.candidates, price)

    def within(self, budget: float, price: Price = "kept") -> Candidate | None:
        """The plan of the lowest risk whose price is at most ``budget``; None if there is none."""
        return next(iter(self.ranked(budget, price)), None)

    def ranked(self, budget: float, price: Price = "kept") -> list[Candidate]:
        """The plans whose price is at most ``budget``, those of the lowest risk first."""
        return ranked(self.candidates, budget, price)


def bound(candidates: Iterable[Candidate], weights: Mapping[str, Weights]) -> tuple[Candidate, ...]:
    """``candidates`` with the numbers of their fitted cells."""
    return tuple(one.model_copy(update={"plan": one.plan.bound(weights)}) for one in candidates)


def pareto(candidates: Iterable[Candidate], price: Price) -> tuple[Candidate, ...]:
    """As :meth:`Front.pareto`."""
    best: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c.price(price), c.risk)):
        if one.price(price) < float("inf") and (not best or one.risk < best[-1].risk):
            best.append(one)
    return tuple(reversed(best))


def ranked(candidates: Iterable[Candidate], most: float, price: Price, *, above: float = -1.0) -> list[Candidate]:
    """Those that cost more than ``above`` and at most ``most``: the lowest risk first, and of equal risks the lowest
    price."""
    among = [one for one in candidates if above + SLACK < one.price(price) <= most + SLACK]
    return sorted(among, key=lambda one: (one.risk, one.price(price)))
