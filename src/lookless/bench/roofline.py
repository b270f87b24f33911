"""The least time that a machine of known rates takes for a prefill, from geometry and plan alone.

A matrix product of few rows takes as long as its weights take to be read from memory, however few FLOPs it has. So
where text alone runs, a layer costs more than its FLOPs say: on a GPU that does 600 TFLOP/s and reads 4 TB/s, 66 rows
cost what 150 do (Williams et al., "Roofline", CACM 2009). Each matrix product costs the longer of both here, attention
and maps their FLOPs.

The lower bound that ``lookless bench`` times (:mod:`lookless.bench.lower_bound`) reads the layers' own weights, so it
has this in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .. import flops
from ..flops import Load
from ..geometry import Geometry
from ..plan import Plan
from .prefill import ms_of

SIDE = {"cpu": 1024, "cuda": 8192}  #: of the square product that is timed
READ = {"cpu": 1 << 26, "cuda": 1 << 29}  #: numbers of the matrix that is read, more than a cache holds


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second: FLOPs of matrix products of many rows, and bytes of weights read."""

    flops: float
    bytes: float

    @property
    def rows(self) -> float:
        """Rows of bfloat16 from which on a product costs its FLOPs, and not the reading of its weights."""
        return self.flops / self.bytes


@torch.no_grad()
def measured_rates(dtype: torch.dtype, device: str, repeats: int = 5) -> Rates:
    """Of this machine, the best of ``repeats``."""
    kind = torch.device(device).type
    side, read = SIDE[kind], READ[kind] // SIDE[kind]
    x = torch.ones(side, side, dtype=dtype, device=device)
    wide = torch.ones(read, side, dtype=dtype, device=device)
    many = _best_s(lambda: F.linear(x, x), repeats)
    one = _best_s(lambda: F.linear(x[:1], wide), repeats)
    return Rates(2 * side**3 / many, wide.numel() * wide.itemsize / one)


def least_s(
    geometry: Geometry,
    rates: Rates,
    *,
    visual: float,
    text: float,
    itemsize: int,
    plan: Plan | None = None,
    batch: int = 1,
    kept: float | None = None,
) -> float:
    """Seconds of one prefill of ``batch`` prompts alike, on a machine of these ``rates``.

    Args:
        geometry: of the decoder.
        rates: of the machine.
        visual, text: tokens of a prompt.
        itemsize: bytes of a weight.
        plan: None is the stock model.
        batch: prompts in a call, which read the weights once.
        kept: as for :func:`lookless.flops.prefill`.

    Raises:
        PlanMismatchError: the plan is for another architecture.
        PlanError: the plan is not static.
    """
    plan = plan or Plan.full(geometry)
    plan.check(geometry)
    total = 0.0
    for index, load in enumerate(flops.loads(geometry, plan, visual, text, kept=kept)):
        for spent, weights in _products(geometry, index, load, batch):
            total += max(batch * spent / rates.flops, weights * itemsize / rates.bytes)
    return total


def _products(g: Geometry, index: int, load: Load, batch: int) -> Iterator[tuple[float, float]]:
    """FLOPs of a prompt, and weights, of what rows of one set undergo in layer ``index``; and what has no weights.

    One row has two FLOPs for each weight.
    """
    none = {"query": 0.0, "key": 0.0, "ffn": 0.0, "pairs": 0.0}

    def cost(**rows: float | None) -> float:
        return flops.layer(g, index, **{**none, **rows})  # type: ignore[arg-type]

    ffn = cost(ffn=load.ffn, probe=load.probe)
    mixer = load.flops(g, index) - ffn - load.maps
    if g.state_of(index) is None:
        query, key = cost(query=load.query), cost(key=load.key, live=load.live)
        yield query, cost(query=1) / 2 if load.query else 0
        yield key, cost(key=1, live=1) / 2
        yield mixer - query - key + load.maps, 0
    else:
        yield mixer, cost(query=1, key=1, asked=1) / 2
        yield load.maps, 0
    experts = g.experts_of(index)
    others = 0.0
    if experts is not None:
        others = (experts.read(batch * load.ffn) - experts.used) * 3 * g.hidden * experts.intermediate
    yield ffn, cost(ffn=1) / 2 + others if load.ffn else 0


def _best_s(call: Callable[[], Any], repeats: int) -> float:
    """Of ``repeats`` after one that warms the caches."""
    return min([ms_of(call) for _ in range(repeats + 1)][1:]) / 1e3
