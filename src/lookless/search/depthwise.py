"""One plan for one budget: DOP's three numbers, and the repair of a choice that took layers as independent.

Both approximate the joint distance by a sum of distances of one change at a time. How much that loses is measured here,
not assumed. Distances are in nats; every ``kept`` is the share of the dense prefill's FLOPs that is kept, by
:meth:`lookless.search.objective.Objective.kept`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product

import numpy as np

from ..cells import Keep, Skip
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from ..progress import shown
from .greedy import SLACK, Found
from .objective import Objective


class DepthChoice(Found):
    """What DOP chose.

    Attributes:
        attention_depth, ffn_depth: visual tokens ask, and are transformed, in so many layers from the first on.
        ratio: of visual tokens kept, by ``rank``, from the first layer on.
        kept: the share of FLOPs.
        additive: the sum of three distances by which the plan was chosen.
        joint: the plan's own distance.
        best: the lowest joint distance within the budget; None where the grid was too large to measure.
        plan: the plan.
    """

    attention_depth: int
    ffn_depth: int
    ratio: float
    rank: str
    kept: float
    additive: float
    joint: float
    best: float | None
    plan: Plan

    @property
    def regret(self) -> float | None:
        """What the additive approximation lost, in nats."""
        return None if self.best is None else self.joint - self.best


def depthwise_plan(geometry: Geometry, attention_depth: int, ffn_depth: int, ratio: float, rank: str) -> Plan:
    """DOP's family: see :class:`DepthChoice`."""
    deeper = [range(depth, geometry.layers) for depth in (attention_depth, ffn_depth)]
    plan = Plan.full(geometry).at(deeper[0], attention=Skip()).at(deeper[1], ffn=Skip())
    return plan if ratio == 1 else plan.at([0], keep=Keep(ratio, rank=rank))


def dop(
    objective: Objective,
    *,
    kept: float,
    ratios: Sequence[float] = (1.0, 0.75, 0.5, 0.25, 0.1),
    rank: str = "diversity",
    every: int = 1,
    brute: int = 0,
    progress: bool = True,
) -> DepthChoice:
    """DOP (arXiv 2507.02909v2): three numbers, chosen by a sum of three distances, measured one number at a time.

    Departures: one group of visual tokens besides the dropped, which are dropped by a rank inside the decoder and not
    by the tower's attention; beyond its depth attention is what visual tokens ask, and text still reads their keys;
    and depths between measured ones lie on a straight line, as the paper says interpolated and not how.

    Args:
        kept: at most this share of FLOPs.
        ratios: of visual tokens, to choose from.
        rank: which are kept.
        every: measure each so-manieth depth.
        brute: where so many plans or fewer are within the budget, measure them all: it tells the regret.
        progress: show a bar on standard error.

    Raises:
        PlanError: no plan of the family is within the budget, or ``every`` is less than one.
    """
    if every < 1:
        raise PlanError(f"every {every} layers cannot be measured: give 1 or more.")
    started, evaluations = time.perf_counter(), objective.evaluations
    g, layers = objective.geometry, objective.geometry.layers
    depths = sorted({*range(0, layers, every), layers})
    points: list[tuple[int, int, float]] = [(d, layers, 1.0) for d in depths]
    points += [(layers, d, 1.0) for d in depths] + [(layers, layers, r) for r in ratios]
    one = {p: objective(depthwise_plan(g, *p, rank)) for p in shown(points, "one number at a time", progress)}
    asked, transformed = (
        np.interp(range(layers + 1), depths, [one[p] for p in points[at : at + len(depths)]]) for at in (0, len(depths))
    )

    def priced(a: int, f: int, r: float) -> float:
        return objective.kept(depthwise_plan(g, a, f, r, rank))

    sums: dict[tuple[int, int, float], tuple[float, float]] = {}
    for r in ratios:
        whole = priced(layers, layers, r)
        asking = [priced(d, layers, r) for d in range(layers + 1)]  # prices of the two operators add up
        ffn = [priced(layers, d, r) - whole for d in range(layers + 1)]
        for a, f in product(range(layers + 1), repeat=2):
            if asking[a] + ffn[f] <= kept + SLACK:
                sums[a, f, r] = (float(asked[a] + transformed[f] + one[layers, layers, r]), asking[a] + ffn[f])
    if not sums:
        raise PlanError(
            f"no depths and none of the ratios {', '.join(f'{r:g}' for r in ratios)} keep {kept:.1%} or less."
        )
    chosen = min(sums, key=lambda point: (*sums[point], point))
    plan = depthwise_plan(g, *chosen, rank)
    best = None
    if len(sums) <= brute:
        best = min(objective(depthwise_plan(g, *p, rank)) for p in shown(list(sums), "every plan", progress))
    provenance = objective.made_by("dop", kept=kept, rank=rank, every=every, ratios=" ".join(f"{r:g}" for r in ratios))
    return DepthChoice(
        provenance=provenance,
        attention_depth=chosen[0],
        ffn_depth=chosen[1],
        ratio=chosen[2],
        rank=rank,
        kept=sums[chosen][1],
        additive=sums[chosen][0],
        joint=objective(plan),
        best=best,
        plan=plan.model_copy(update={"provenance": provenance}),
        evaluations=objective.evaluations - evaluations,
        seconds=time.perf_counter() - started,
    )
