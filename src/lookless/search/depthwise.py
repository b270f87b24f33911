"""DOP (arXiv 2507.02909v2): three numbers for one budget.

They are chosen by a sum of three distances, of one number changed at a time. That sum approximates the joint distance;
what the approximation loses is measured here. Distances are in nats. Every ``kept`` is a share of the full model's
prefill FLOPs, by :meth:`lookless.search.objective.Objective.kept`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from .. import methods
from ..errors import PlanError
from ..plan import Plan
from ..progress import track
from .greedy import SLACK, SearchResult
from .objective import Objective

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1)  #: of visual tokens kept, to choose from
#: (attention depth, FFN depth, ratio of visual tokens kept)
_Point = tuple[int, int, float]


class DepthChoice(SearchResult):
    """What DOP chose.

    Attributes:
        attention_depth, ffn_depth: in how many layers, from the first on, visual tokens issue queries and pass the FFN.
        ratio: of visual tokens kept, by ``rank``, from the first layer on.
        kept: the share of FLOPs.
        additive: the sum of three distances by which the plan was chosen.
        joint: the plan's own distance.
        best: the lowest joint distance within the budget; None where not all plans were measured.
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


def dop_depths(
    objective: Objective,
    *,
    kept: float,
    ratios: Sequence[float] = RATIOS,
    rank: str = "diversity",
    every: int = 1,
    brute: int = 0,
    progress: bool = True,
) -> DepthChoice:
    """DOP (arXiv 2507.02909v2): two depths and a ratio, chosen by distances measured with one number changed at a time.

    Departures: one group of visual tokens besides the dropped ones, which are dropped by a rank inside the decoder and
    not by the tower's attention; beyond the attention depth visual tokens issue no queries, and text still attends to
    their keys; and depths between measured ones are interpolated linearly (the paper interpolates, without saying how).

    Args:
        objective: measures plans.
        kept: at most this share of FLOPs.
        ratios: of visual tokens, to choose from.
        rank: which visual tokens are kept.
        every: measure every ``every``-th depth.
        brute: if at most this many plans fit the budget, measure them all and report the regret.
        progress: show a bar on standard error.

    Raises:
        PlanError: no plan of the family is within the budget, or ``every`` is less than one.
    """
    if every < 1:
        raise PlanError(f"every {every} layers cannot be measured: give 1 or more.")
    started, evaluations = time.perf_counter(), objective.evaluations
    family = _Family(objective, rank)
    sums = family.within(kept, ratios, family.distances(ratios, every, progress))
    if not sums:
        raise PlanError(
            f"no depths and none of the ratios {', '.join(f'{r:g}' for r in ratios)} keep {kept:.1%} or less."
        )
    chosen = min(sums, key=lambda point: (*sums[point], point))
    best = None
    if len(sums) <= brute:
        best = min(objective(family.plan(*point)) for point in track(list(sums), "every plan", progress))
    provenance = objective.made_by("dop", kept=kept, rank=rank, every=every, ratios=" ".join(f"{r:g}" for r in ratios))
    plan = family.plan(*chosen)
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


@dataclass(frozen=True)
class _Distances:
    """Distances with one number changed: by attention depth and by FFN depth, ``[layers + 1]``, and by ratio."""

    attention: np.ndarray
    ffn: np.ndarray
    ratio: dict[float, float]


@dataclass(frozen=True)
class _Family:
    """DOP's plans of one model, and what they cost."""

    objective: Objective
    rank: str

    @property
    def layers(self) -> int:
        return self.objective.geometry.layers

    def plan(self, attention: int, ffn: int, ratio: float) -> Plan:
        return methods.dop(self.objective.geometry, attention=attention, ffn=ffn, keep=ratio, rank=self.rank)

    def kept(self, attention: int, ffn: int, ratio: float) -> float:
        return self.objective.kept(self.plan(attention, ffn, ratio))

    def distances(self, ratios: Sequence[float], every: int, progress: bool) -> _Distances:
        """Measured at every ``every``-th depth and at the last, and interpolated between."""
        layers = self.layers
        depths = sorted({*range(0, layers, every), layers})
        attention: list[_Point] = [(depth, layers, 1.0) for depth in depths]
        ffn: list[_Point] = [(layers, depth, 1.0) for depth in depths]
        points = [*attention, *ffn, *((layers, layers, ratio) for ratio in ratios)]
        one = {p: self.objective(self.plan(*p)) for p in track(points, "one number at a time", progress)}
        by_attention, by_ffn = (
            np.interp(range(layers + 1), depths, [one[p] for p in line]) for line in (attention, ffn)
        )
        return _Distances(by_attention, by_ffn, {ratio: one[layers, layers, ratio] for ratio in ratios})

    def within(self, kept: float, ratios: Sequence[float], one: _Distances) -> dict[_Point, tuple[float, float]]:
        """The plans that keep at most ``kept`` of the FLOPs: the sum of their three distances, and what they keep."""
        sums = {}
        depths = range(self.layers + 1)
        for ratio in ratios:
            whole = self.kept(self.layers, self.layers, ratio)
            attention = [self.kept(depth, self.layers, ratio) for depth in depths]  # the two operators' prices add up
            ffn = [self.kept(self.layers, depth, ratio) - whole for depth in depths]
            for a, f in product(depths, repeat=2):
                if attention[a] + ffn[f] <= kept + SLACK:
                    additive = float(one.attention[a] + one.ffn[f] + one.ratio[ratio])
                    sums[a, f, ratio] = (additive, attention[a] + ffn[f])
        return sums
