"""The additive choice: what each single change risks, and the knapsack over the sums."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import product
from statistics import fmean

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..cells import Keep
from ..layer_plan import LayerPlan
from ..plan import Plan
from ..progress import track
from .fitting import Choices
from .greedy import SLACK
from .knapsack import knapsack, lower_bound
from .menu import FULL, Frame, Menu, framed
from .objective import Objective
from .price import Pricing


class FrameRisk(BaseModel):
    """What pruning or withdrawal alone risks: ``keeps`` in ``layers``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...]
    keeps: tuple[Keep, ...]
    risk: float

    @property
    def frame(self) -> Frame:
        return tuple(zip(self.layers, self.keeps, strict=True))


class Additive(Choices):
    """The risk of every single change, each measured alone.

    Attributes:
        rows: of each layer of the menu, its rows.
        risks: of each of them, all other layers full.
        prunings, withdrawals: the frames measured, the empty one first.
    """

    risks: tuple[tuple[float, ...], ...]
    prunings: tuple[FrameRisk, ...]
    withdrawals: tuple[FrameRisk, ...]

    def risk(self, layer: int, row: LayerPlan) -> float | None:
        """Of ``row`` alone in ``layer``; None if it was not measured."""
        known = dict(zip(self.rows[layer], self.risks[layer], strict=True))
        return known.get(row)

    @property
    def without_fitted(self) -> Additive:
        """Of the choices that hold no fitted cell alone."""
        kept = [[i for i, row in enumerate(layer) if not row.work.affine] for layer in self.rows]
        tables = ("rows", self.rows), ("risks", self.risks)
        chosen = {n: tuple(tuple(t[layer][i] for i in some) for layer, some in enumerate(kept)) for n, t in tables}
        return self.model_copy(update=chosen)

    def plan(self, budget: float, pricing: Pricing, full: Plan) -> tuple[Plan, float] | None:
        """The plan of the least summed risk whose price is at most ``budget``, and that sum; None where there is none.

        ``pricing`` prices it, and ``full`` is the plan that it is made of.

        Every frame is a knapsack of its own; the most promising is solved first, and none whose lower bound is no
        better than what is found.
        """
        best: tuple[Plan, float] | None = None
        width = max(map(len, self.risks))
        risks = np.array([[*layer, *[np.inf] * (width - len(layer))] for layer in self.risks])
        for frame, risk in sorted(self._frames(), key=lambda pair: pair[1]):
            if best is not None and risk >= best[1]:
                break
            prices = frame_prices(self.rows, frame, pricing)
            table = np.array([[*layer, *[layer[0]] * (width - len(layer))] for layer in prices])
            free = budget - pricing.fixed / pricing.stock
            if best is not None and risk + lower_bound(risks, table, free) >= best[1]:
                continue
            chosen = knapsack(self.risks, prices, free + SLACK)
            if chosen is None:
                continue
            total = risk + sum(layer[index] for layer, index in zip(self.risks, chosen, strict=True))
            if best is None or total < best[1]:
                rows = [layer[index] for layer, index in zip(self.rows, chosen, strict=True)]
                best = full.model_copy(update={"layers": framed(rows, frame)}), total
        return best

    def _frames(self) -> Iterator[tuple[Frame, float]]:
        """Each pruning with each withdrawal after it, and the sum of their risks."""
        for pruning, withdrawal in product(self.prunings, self.withdrawals):
            if not pruning.layers or not withdrawal.layers or pruning.layers[-1] < withdrawal.layers[0]:
                yield (*pruning.frame, *withdrawal.frame), pruning.risk + withdrawal.risk


def frame_prices(rows: Sequence[Sequence[LayerPlan]], frame: Frame, pricing: Pricing) -> list[list[float]]:
    """The price of every row of every layer where ``frame`` is the ``keep`` column."""
    empty = framed([FULL] * len(rows), frame)
    alive = pricing.alive(empty)
    last = next((layer for layer, keep in frame if keep.withdraws), len(rows)) - 1
    keeps = {layer: {"keep": keep} for layer, keep in frame}
    return [
        [
            pricing.cell(layer, row.model_copy(update=keeps.get(layer)), alive[layer], is_read=layer != last)
            for row in choices
        ]
        for layer, choices in enumerate(rows)
    ]


def measure_additive(objective: Objective, menu: Menu, *, progress: bool = True) -> Additive:
    """Run every single change of ``menu`` on the samples of ``objective``; ``progress`` shows a bar."""
    started, full = time.perf_counter(), Plan.full(objective.geometry)
    run: set[tuple[LayerPlan, ...]] = {full.live().layers}

    def risk(plan: Plan) -> float:
        run.add(plan.live().layers)
        return risk_of(objective, plan)

    rows = tuple(menu.at(layer) for layer in range(menu.layers))
    pairs = [(layer, row) for layer, choices in enumerate(rows) for row in choices]
    found = {pair: risk(_one(full, *pair)) for pair in track(pairs, "single changes", progress)}
    risks = tuple(tuple(found[layer, row] for row in choices) for layer, choices in enumerate(rows))

    def measured(frames: Sequence[Frame], what: str) -> tuple[FrameRisk, ...]:
        plans = {frame: full.model_copy(update={"layers": framed(full.layers, frame)}) for frame in frames}
        return tuple(
            FrameRisk(
                layers=tuple(layer for layer, _ in frame),
                keeps=tuple(keep for _, keep in frame),
                risk=risk(plan),
            )
            for frame, plan in track(plans.items(), what, progress)
        )

    return Additive(
        provenance=objective.made_by("additive"),
        rows=rows,
        risks=risks,
        prunings=measured([(), *menu.prunings()], "prunings"),
        withdrawals=measured(list(menu.withdrawals()), "withdrawals"),
        evaluations=len(run) - 1,  # those that an earlier process has run, too
        seconds=time.perf_counter() - started,
    )


def risk_of(objective: Objective, plan: Plan) -> float:
    """What a search minimises, of the samples' risks: :func:`blend`."""
    return blend([fmean(effect.risk for effect in task) for task in objective.per_task(plan)])


def blend(tasks: Sequence[float]) -> float:
    """Half the mean of the tasks' risks, half ``1 - (1 - worst)^2`` of the worst.

    The worst task counts most while it can be kept, and no more when it is lost: else what is left of one hopeless task
    would outweigh what happens to all others.
    """
    return (fmean(tasks) + 1 - (1 - min(1.0, max(tasks))) ** 2) / 2


def _one(full: Plan, layer: int, row: LayerPlan) -> Plan:
    rows = list(full.layers)
    rows[layer] = row
    return full.model_copy(update={"layers": tuple(rows)})
