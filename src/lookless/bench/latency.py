"""What a layer costs on this machine, in milliseconds, by what visual tokens do in it.

A few dozen plans are timed in turn with the stock model, on prompts of the data's own lengths. A linear model of what a
layer computes is fitted to their times, with terms that are not negative: projections, scores, FFN, and constants for
a layer, for gathering rows, for a window, neurons or a rank, and for a plan. What few rows pay for the reading of
weights is in the constants: text passes every layer under any plan, so no plan spares it. The table prices any plan
without running it, as a sum over layers. What that is worth is measured on mixed plans that were not fitted, and stored
beside it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from scipy.optimize import nnls

from .. import files, flops
from ..cells import Keep, Skip
from ..data import Sample
from ..errors import DataError, PlanError
from ..geometry import Geometry
from ..layer_plan import LIVE, LayerPlan
from ..loading import Loaded
from ..machine import processor
from ..plan import Plan
from ..runtime.families import locate
from ..runtime.prompts import prompts_of
from ..search.menu import Menu
from ..search.price import Pricing, alone, kept_alive
from .timing import prefill_shares

SCHEMA_VERSION = 1
CHECKED = 8  #: mixed plans that are not fitted
BETWEEN = 4  #: plans timed between two timings of the stock model
#: What a term is a price of, in the order of the fit.
TERMS = ("plan", "layer", "query", "key", "pairs", "ffn", "queries", "rows", "window", "neurons", "ranked")


class Timed(BaseModel):
    """One plan's prefill as a share of the stock model's: timed in the same rounds, and by the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    measured: float
    predicted: float


class LatencyTable(BaseModel):
    """Prices in milliseconds of one model on one machine, for prompts of one length.

    Attributes:
        visual, text: tokens of the prompts timed.
        batch: prompts in a call.
        stock_ms: of the decoder's layers in the stock model's prefill.
        terms: milliseconds per unit of each of :data:`TERMS`; FLOPs are in units of 1e9, ranked tokens in thousands.
        fitted, checked: the plans that the terms were fitted to, and those that they were not.
        data_hash: of the prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: str
    geometry: Geometry
    visual: float
    text: float
    batch: int
    dtype: str
    device: str
    machine: str
    threads: int
    stock_ms: float
    terms: dict[str, float]
    fitted: tuple[Timed, ...]
    checked: tuple[Timed, ...]
    data_hash: str | None = None

    @property
    def error(self) -> float:
        """Mean difference of predicted and measured shares, of the plans that were not fitted."""
        return fmean(abs(one.predicted - one.measured) for one in self.checked)

    @property
    def pricing(self) -> Pricing:
        """Shares of the stock model's prefill time."""
        like = self.geometry.like
        return Pricing(self.visual, self._layer_ms, self.stock_ms, fixed=self.terms["plan"], like=like)

    def share(self, plan: Plan) -> float:
        """The predicted time of ``plan`` over the stock model's. Raises: PlanError: the plan is not static."""
        plan.check(self.geometry)
        plan.alive(self.visual)
        return self.pricing.share(plan.layers)

    def _layer_ms(self, layer: int, row: LayerPlan) -> float:
        found = layer_terms(row, self.geometry, self.visual, self.text, layer)
        return self.batch * sum(self.terms[name] * amount for name, amount in found.items())

    def save(self, path: str | Path) -> Path:
        """Write ``path`` whole or not at all."""
        files.write_text(Path(path), files.dump(self))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """The table in the JSON file at ``path``.

        Raises:
            PlanError: no such file, an unknown key, or a newer schema.
        """
        return files.load(Path(path), cls, PlanError, SCHEMA_VERSION)


def layer_terms(row: LayerPlan, geometry: Geometry, visual: float, text: float, layer: int = 0) -> dict[str, float]:
    """What a prompt computes in ``layer``: FLOPs in 1e9, ranked tokens in thousands, and counts; see :data:`TERMS`."""
    one = Plan(layers=(row,))
    [rows], [alive] = one.rows(visual, text), one.alive(visual)
    single = geometry.only(layer)
    whole = flops.prefill(single, visual=visual, text=text, plan=one).total

    def cost(query: float = 0, key: float = 0, ffn: float = 0) -> float:
        return flops.layer(single, query=query, key=key, ffn=ffn, pairs=0)

    parts = {
        "query": cost(query=rows["query"]),
        "key": cost(key=rows["key"]),
        "ffn": cost(ffn=rows["ffn"]),
    }
    neurons = 0.0
    if row.work.neurons is not None:  # their products are the FFN's, of fewer channels
        full = LayerPlan(**{**dict(row), "ffn": Skip()})
        neurons = whole - flops.prefill(single, visual=visual, text=text, plan=Plan(layers=(full,))).total
        parts["ffn"] += neurons
    work = row.work
    return {
        "layer": 1.0,
        **{name: amount / 1e9 for name, amount in parts.items()},
        "pairs": (whole - sum(parts.values())) / 1e9,
        # what is gathered and scattered where some rows take no part
        "queries": float(bool(alive) and (alive < visual or work.attention[0].query != LIVE)),
        "rows": float(bool(alive) and (alive < visual or work.ffn != LIVE)),
        "window": float(bool(alive) and work.window is not None),
        "neurons": float(bool(alive) and work.neurons is not None),
        "ranked": sum(rank != "random" for rank in row.ranks) * visual / 1e3,
    }


def measure_latency(
    loaded: Loaded,
    samples: Sequence[Sample],
    menu: Menu,
    *,
    data_hash: str | None = None,
    repeats: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> LatencyTable:
    """Time the stock model and plans of ``menu`` on ``samples``, one call of them all, and fit the table.

    Args:
        loaded: the model, without a plan on it.
        samples: the prompts of one call; they should be of one length.
        menu: each of its rows is set in every second layer and in all, its prunings and withdrawals alone.
        data_hash: of the data, to know the table by.
        repeats: timings of each plan.
        seed: of the mixed plans.
        progress: show a bar on standard error.

    Raises:
        DataError: no visual token is in a prompt.
    """
    located, inputs = locate(loaded.model), loaded.inputs(samples)
    prompts = prompts_of(located, inputs)
    if prompts is None:
        raise DataError("the prompt to be timed holds no visual token, so that no plan changes its time.")
    visual, text = fmean(prompts.counts), fmean(map(len, prompts.text))
    geometry = located.geometry
    to_fit, to_check = _uniform(geometry, menu), _mixed(geometry, menu, random.Random(seed))
    plans = {**to_fit, **to_check}
    timed, stock_ms = prefill_shares(
        loaded, inputs, list(plans.values()), every=BETWEEN, repeats=repeats, what="timing", progress=progress
    )
    shares = dict(zip(plans, timed, strict=True))
    parameter = next(loaded.model.parameters())
    table = LatencyTable(
        model=loaded.name,
        geometry=geometry,
        visual=visual,
        text=text,
        batch=len(samples),
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        machine=processor(),
        threads=torch.get_num_threads(),
        stock_ms=stock_ms,
        terms=fit_terms(
            {name: to_fit[name] for name in to_fit}, shares, geometry, visual, text, stock_ms / len(samples)
        ),
        fitted=(),
        checked=(),
        data_hash=data_hash,
    )

    def both(names: Mapping[str, Plan]) -> tuple[Timed, ...]:
        return tuple(Timed(name=n, measured=shares[n], predicted=table.share(p)) for n, p in names.items())

    return table.model_copy(update={"fitted": both(to_fit), "checked": both(to_check)})


def fit_terms(
    plans: Mapping[str, Plan],
    shares: Mapping[str, float],
    geometry: Geometry,
    visual: float,
    text: float,
    stock_ms: float,
) -> dict[str, float]:
    """Milliseconds per unit of each of :data:`TERMS`, none negative, of least squares on the plans' times.

    Args:
        plans: by name.
        shares: the time of each over the stock model's.
        geometry, visual, text: of the model and the prompts.
        stock_ms: of the stock model, one prompt.
    """
    full = Plan.full(geometry)
    lines, times = [10 * _plan_terms(full, geometry, visual, text)], [10 * stock_ms]  # the unit of all shares
    for name, plan in plans.items():
        lines.append(_plan_terms(plan.as_run, geometry, visual, text))
        times.append(shares[name] * stock_ms)
    matrix = np.array(lines)
    scale = np.maximum(matrix.max(axis=0), 1e-12)
    found, _ = nnls(matrix / scale, np.array(times))
    return {name: float(value) for name, value in zip(TERMS, found / scale, strict=True)}


def _plan_terms(plan: Plan, geometry: Geometry, visual: float, text: float) -> np.ndarray:
    """Of all layers together, in the order of :data:`TERMS`."""
    total = dict.fromkeys(TERMS, 0.0)
    total["plan"] = float(not plan.is_full)
    for layer, (row, alive) in enumerate(zip(plan.layers, plan.alive(visual), strict=True)):
        keep = kept_alive(alive, visual, row.keep.ranks_by)
        cells = alone(row.model_copy(update={"keep": keep}))
        for name, amount in layer_terms(cells, geometry, visual, text, layer).items():
            total[name] += amount
    return np.array([total[name] for name in TERMS])


def _uniform(geometry: Geometry, menu: Menu) -> dict[str, Plan]:
    """Each row in every second layer and in all; and prunings and withdrawals alone."""
    full, layers = Plan.full(geometry), range(geometry.layers)
    plans = {}
    for number, row in enumerate(menu.rows[1:]):
        cells = {name: cell for name, cell in row if not cell.is_full}
        plans[f"row {number + 1} in every second layer"] = full.at(layers[::2], **cells)
        plans[f"row {number + 1} in all layers"] = full.at(layers, **cells)
    if not menu.ranks:  # every token is kept
        return plans
    for third in (1, 2):
        plans[f"withdrawn at {third} of 3"] = full.at([max(1, geometry.layers * third // 3)], keep=Keep(0))
    for layer, share in ((0, 0.5), (0, 0.2), (geometry.layers // 2, 0.5)):
        plans[f"{share:g} kept from layer {layer}"] = full.at([layer], keep=Keep(share, rank="diversity"))
    return plans


def _mixed(geometry: Geometry, menu: Menu, rng: random.Random) -> dict[str, Plan]:
    """Random rows in all layers, with a pruning and a withdrawal in some."""
    plans = {}
    for number in range(CHECKED):
        plan = Plan(layers=tuple(rng.choice(menu.rows) for _ in range(geometry.layers)), geometry=geometry)
        if number % 3 == 1 and menu.ranks:
            plan = plan.at(
                [rng.randrange(geometry.layers // 2 + 1)], keep=Keep(rng.choice(menu.shares), rank="diversity")
            )
        if number % 3 == 2 and menu.ranks:
            plan = plan.at([rng.randrange(geometry.layers // 2, geometry.layers)], keep=Keep(0))
        plans[f"mixed {number + 1}"] = plan
    return plans
