"""Greedy search: changes made one by one, each the one that costs least given those before it.

The resulting order serves every budget, from one layer to all. GSOP sorts operations this way, RedundancyLens layers.
The distance of a plan is its :class:`~lookless.search.objective.Objective`, in nats, of all its changes together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from .. import files
from ..cells import Cell, Neurons, Skip, Window
from ..errors import PlanError
from ..layer_plan import LayerPlan
from ..plan import Plan
from ..progress import track
from ..provenance import Provenance
from ..weights import Weights, found, store
from .objective import Objective, share_kept

SCHEMA_VERSION = 2
SLACK = 1e-9  # of prices of one plan, summed in another order

_Result = TypeVar("_Result", bound="SearchResult")


class SearchResult(BaseModel):
    """What a search found; frozen.

    Attributes:
        provenance: method, knobs, model and samples.
        evaluations: plans run for it.
        seconds: what it took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    provenance: Provenance
    evaluations: int = 0
    seconds: float = 0.0

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The numbers of its fitted cells, each once."""
        return ()

    def bound(self: _Result, weights: Mapping[str, Weights]) -> _Result:
        """With the numbers of its fitted cells, which are among ``weights``, by name."""
        return self

    def save(self, path: str | Path) -> Path:
        """Write ``path`` whole or not at all; the numbers of fitted cells go to an archive beside it, before."""
        store(Path(path).parent, self.weights)
        files.write_text(Path(path), files.dump(self))
        return Path(path)

    @classmethod
    def load(cls: type[_Result], path: str | Path) -> _Result:
        """Raises: PlanError: no such file, an unknown key, a newer schema, or fitted cells without their numbers."""
        read = files.load(Path(path), cls, PlanError, SCHEMA_VERSION)
        return read.bound(found(Path(path), read.weights)) if read.weights else read


class Step(BaseModel):
    """One change of a plan: the cells to set in one layer, those of ``cells`` that are not ``Full``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    cells: LayerPlan

    @property
    def set(self) -> dict[str, Cell]:
        return self.cells.planned

    def on(self, plan: Plan) -> Plan:
        """``plan`` with this change made."""
        return plan.at([self.layer], **self.set)

    def __str__(self) -> str:
        return f"layer {self.layer}: " + ", ".join(f"{column} {cell}" for column, cell in self.set.items())


class GreedyOrder(SearchResult):
    """Steps in the order in which they are applied; each prefix of it is the plan for a budget.

    Attributes:
        start: the plan to which the first step is applied.
        candidates: all candidate steps; the first ``preranked`` are applied first, in the given order.
        taken: indices of ``candidates``, in the order applied.
        distances: of the plan after each of ``taken``, in nats.
        waiting: candidates left by the last ranking, best first; ``ranked_at`` is the distance at that ranking.
    """

    start: Plan
    candidates: tuple[Step, ...]
    preranked: int = 0
    taken: tuple[int, ...] = ()
    distances: tuple[float, ...] = ()
    waiting: tuple[int, ...] = ()
    ranked_at: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _is_of_this_schema(cls, data: Any) -> Any:
        if isinstance(data, dict) and "moves" in data:
            raise PlanError("it is an order of schema 1, and this lookless reads schema 2: search again.")
        return data

    def plan(self, steps: int | None = None) -> Plan:
        """The plan after ``steps`` steps, all by default.

        Raises:
            PlanError: the order does not have as many.
        """
        steps = len(self.taken) if steps is None else steps
        if not 0 <= steps <= len(self.taken):
            raise PlanError(f"{steps} steps were requested and the order has {len(self.taken)}.")
        plan = self.start
        for index in self.taken[:steps]:
            plan = self.candidates[index].on(plan)
        knobs = {**self.provenance.knobs, "steps": steps}
        return plan.model_copy(update={"provenance": self.provenance.model_copy(update={"knobs": knobs})})

    def within(self, kept: float, *, visual: float, text: float) -> Plan:
        """The plan of the fewest steps that keeps at most ``kept`` of the prefill FLOPs.

        Args:
            kept: a share of the full model's.
            visual, text: tokens of the prompt.

        Raises:
            PlanError: all steps together keep more, or the order has no geometry.
        """
        if self.start.geometry is None:
            raise PlanError(
                "the order's start has no geometry, so it cannot be priced: start from Plan.full(geometry)."
            )
        for steps in range(len(self.taken) + 1):
            plan = self.plan(steps)
            share = share_kept(plan, self.start.geometry, visual, text)
            if share <= kept + SLACK:
                return plan
        raise PlanError(f"all {len(self.taken)} steps keep {share:.1%} of the FLOPs, and {kept:.1%} were requested.")

    def __str__(self) -> str:
        rows = zip(self.taken, self.distances, strict=True)
        return "\n".join(f"{i:>5}  {d:10.6f}  {self.candidates[m]}" for i, (m, d) in enumerate(rows, start=1))


def greedy_order(
    objective: Objective,
    candidates: Iterable[Step],
    *,
    method: str = "greedy",
    first: Sequence[Step] = (),
    start: Plan | None = None,
    steps: int | None = None,
    limit: float | None = None,
    kept: float | None = None,
    penalty: float = 1.0,
    stride: float | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> GreedyOrder:
    """Repeatedly apply the candidate that costs least, given those already applied; of equal ones the deepest.

    Args:
        objective: measures plans.
        candidates: to choose from.
        method: the order's name in its provenance.
        first: steps applied first, in this order.
        start: the plan to begin from, full by default.
        steps: the largest number of steps, ``first`` included; all by default.
        limit: stop before the step that takes the distance above this many nats.
        kept: stop as soon as the plan keeps at most this share of FLOPs.
        penalty: a sample whose distance rises by a step counts this many times one whose distance falls by as much.
        stride: follow one ranking of the candidates until the distance is this many nats above where it was ranked,
            then rank again (GSOP's reuse of rankings). At 0, steps that cost nothing are taken together. None ranks
            before every step: ``n (n + 1) / 2`` evaluations for n candidates.
        path: the order is saved there after every step; an order found there is resumed.
        progress: show a bar on standard error.

    Raises:
        PlanError: at ``path`` is an order of something else; or a step cannot be applied.
    """
    knobs: dict[str, int | float | str] = {"penalty": penalty, **({} if stride is None else {"stride": stride})}
    order = GreedyOrder(
        start=start or Plan.full(objective.geometry),
        candidates=(*first, *candidates),
        preranked=len(first),
        provenance=objective.made_by(method, **knobs),
    )
    if path is not None and Path(path).exists():
        order = _resumed(Path(path), order)
    wanted = len(order.candidates) if steps is None else min(steps, len(order.candidates))
    for _ in track(range(len(order.taken), wanted), f"{method} order", progress):
        if kept is not None and objective.kept(order.plan()) <= kept + SLACK:
            break
        started, evaluations = time.perf_counter(), objective.evaluations
        after = _extended(objective, order, penalty, stride)
        if limit is not None and after.distances[-1] > limit:
            break
        spent = {
            "evaluations": order.evaluations + objective.evaluations - evaluations,
            "seconds": order.seconds + time.perf_counter() - started,
        }
        order = after.model_copy(update=spent)
        if path is not None:
            order.save(path)
    return order


def _resumed(path: Path, fresh: GreedyOrder) -> GreedyOrder:
    """The order at ``path``, if it is ``fresh`` with steps taken.

    Raises:
        PlanError: it is another.
    """
    order = GreedyOrder.load(path)
    unset = ("taken", "distances", "waiting", "ranked_at", "evaluations", "seconds")
    if order.model_copy(update={name: getattr(fresh, name) for name in unset}) != fresh:
        raise PlanError(
            f"{path} holds an order by {order.provenance.method} of other candidates, knobs, model or samples than "
            f"this one by {fresh.provenance.method}: give another path, or remove the file."
        )
    return order


def _extended(objective: Objective, order: GreedyOrder, penalty: float, stride: float | None) -> GreedyOrder:
    """``order`` with one more step."""
    plan, waiting, ranked_at = order.plan(), order.waiting, order.ranked_at
    if len(order.taken) < order.preranked:
        chosen = len(order.taken)
    else:
        if _is_stale(objective, order, plan, stride):
            waiting, ranked_at = _ranked(objective, order, plan, penalty)
        chosen, waiting = waiting[0], waiting[1:]
    return order.model_copy(
        update={
            "taken": (*order.taken, chosen),
            "distances": (*order.distances, objective(order.candidates[chosen].on(plan))),
            "waiting": waiting if stride is not None else (),
            "ranked_at": ranked_at if stride is not None else 0.0,
        }
    )


def _is_stale(objective: Objective, order: GreedyOrder, plan: Plan, stride: float | None) -> bool:
    """Whether the candidates have to be ranked again."""
    if not order.waiting or stride is None:
        return True
    return objective(order.candidates[order.waiting[0]].on(plan)) - order.ranked_at > stride


def _ranked(objective: Objective, order: GreedyOrder, plan: Plan, penalty: float) -> tuple[tuple[int, ...], float]:
    """Indices of the candidates not taken, best first, and the distance of ``plan``."""
    before = objective.per_sample(plan)
    cost = {}
    for index in sorted(set(range(len(order.candidates))) - set(order.taken)):
        step = order.candidates[index]
        rises = [b - a for a, b in zip(before, objective.per_sample(step.on(plan)), strict=True)]
        cost[index] = (fmean(penalty * rise if rise > 0 else rise for rise in rises), -step.layer, index)
    return tuple(sorted(cost, key=cost.__getitem__)), fmean(before)


def gsop_order(
    objective: Objective,
    *,
    steps: int | None = None,
    limit: float | None = None,
    kept: float | None = None,
    stride: float | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> GreedyOrder:
    """GSOP (arXiv 2507.02909v1): operations of all layers sorted greedily; each layer has three on visual tokens.

    Their keys are read (``visible``), they issue queries (``attention``), and they pass the FFN (``ffn``). Departures:
    the objective's distance instead of exact match on GQA; one group of visual tokens, not two by tower attention; no
    set of dangerous operations excluded beforehand; and ``stride=0`` takes at once the free depths that the authors'
    code finds by bisection. There is no rule for dead work: it costs nothing, so it is taken first.

    Args:
        objective: measures plans.
        steps, limit, kept, stride, path, progress: as in :func:`greedy_order`.

    Raises:
        PlanError: as there.
    """
    operations = (LayerPlan(visible=Skip()), LayerPlan(attention=Skip()), LayerPlan(ffn=Skip()))
    layers = range(objective.geometry.layers)
    candidates = [Step(layer=layer, cells=cells) for layer, cells in product(layers, operations)]
    return greedy_order(
        objective,
        candidates,
        method="gsop",
        steps=steps,
        limit=limit,
        kept=kept,
        stride=stride,
        path=path,
        progress=progress,
    )


def redundancylens_order(
    objective: Objective,
    operator: Literal["attention", "ffn"],
    *,
    preranked: int = 0,
    penalty: float = 2.0,
    window: int = 256,
    ratio: float = 0.2,
    probe: float = 0.1,
    steps: int | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> GreedyOrder:
    """RedundancyLens' hybrid layer ranking (arXiv 2501.19036) for one operator; ``|`` combines the plans of both.

    The last ``preranked`` layers come first, from the end backwards; the others by greedy search, in which a loss
    counts ``penalty`` times a gain. Departures: loss and gain are the change of each sample's distance by one more
    layer, where the paper takes benchmark scores of some 2350 samples; and probes are evenly spaced, not random.

    Args:
        objective: measures plans.
        operator: the one whose layers are ranked.
        preranked: layers taken first, from the last one backwards.
        penalty: weight of a loss against a gain.
        window: of the reduced attention, in visual tokens.
        ratio, probe: shares of the reduced FFN's neurons kept, and of visual tokens they are chosen by.
        steps, path, progress: as in :func:`greedy_order`.

    Raises:
        PlanError: ``preranked`` is negative or more than the model's layers.
    """
    layers = objective.geometry.layers
    if not 0 <= preranked <= layers:
        raise PlanError(f"{preranked} layers were to be ranked first and the model has {layers}.")
    cells = (
        LayerPlan(attention=Window(window)) if operator == "attention" else LayerPlan(ffn=Neurons(ratio, probe=probe))
    )
    backwards = [Step(layer=layer, cells=cells) for layer in reversed(range(layers))]
    return greedy_order(
        objective,
        backwards[preranked:],
        method=f"redundancylens-{operator}",
        first=backwards[:preranked],
        penalty=penalty,
        steps=steps,
        path=path,
        progress=progress,
    )
