"""What a prefill costs, from geometry and plan alone.

Counted: the decoder layers' matrix products at 2 FLOPs per multiply-add, attention as the full rectangle of
queries by keys. Not counted: the vision tower, embeddings, norms, rotary embeddings, softmax, and the output
head (one row of it is 0.003 % of LLaVA-1.5-7B). A layer with q query rows, k key rows and f FFN rows costs

    4 q d dq  +  4 k d dk  +  4 q k dq  +  6 f d m          (dq = heads x head_dim, dk = kv_heads x head_dim)

for q and o projections, k and v projections, scores and weighted values, and the gated FFN. With q = k = f = n
and dq = dk = d this is 8nd^2 + 4n^2d + 6ndm, the dense layer of ShortV (arXiv 2504.00502, Sec. 4.1, there
2(t+v)(4h+3m)h + 4(t+v)^2 h); with q = t it is V-Skip's (arXiv 2606.08511, Table 2), with q = f = t ShortV's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .cells import Full, Neurons, Skip, Top, Window
from .errors import PlanError
from .geometry import Geometry
from .plan import LayerPlan, Plan


@dataclass(frozen=True)
class Prefill:
    """FLOPs of one prefill.

    Attributes:
        total: of all decoder layers.
        visual: the share of ``total`` spent on visual rows alone: their projections, their FFN, and their attention
            to visual keys. VisiPruner (arXiv 2510.17205, App. M) reports this one, halved, as it counts
            multiply-adds; do not compare it with whole-prefill figures.
    """

    total: float
    visual: float

    @property
    def total_tflops(self) -> float:
        return self.total / 1e12

    @property
    def visual_tflops(self) -> float:
        return self.visual / 1e12


def layer(
    geometry: Geometry, *, query: float, key: float, ffn: float, pairs: float | None = None, probe: float = 0
) -> float:
    """FLOPs of one layer in which so many rows ask, are read, and are transformed.

    ``pairs`` is how many (query, key) pairs are scored; by default each query row with each key row. ``ffn`` counts a
    row that uses a part of the neurons as that part. ``probe`` rows pass the first two of the FFN's three matrices.
    """
    g, pairs = geometry, query * key if pairs is None else pairs
    projections = 4 * query * g.hidden * g.query_width + 4 * key * g.hidden * g.key_width
    return projections + 4 * pairs * g.query_width + (6 * ffn + 4 * probe) * g.hidden * g.intermediate


def prefill(
    geometry: Geometry, *, visual: float, text: float, plan: Plan | None = None, before: float | None = None
) -> Prefill:
    """FLOPs of the prefill of one prompt with ``visual`` and ``text`` tokens (means over a data set may be fractions).

    What the plan's table says is priced, dead work included, as the papers do; ``plan.live()`` prices what runs.

    ``before`` is how many of the text tokens stand before the (one) image. The papers count every query over all keys
    it may be shown, and a :class:`~lookless.cells.Window` to the token. Given ``before``, what the runtime computes for
    one unpadded prompt is counted: text before the image is scored with the keys before it only, and a window in
    blocks.

    Raises:
        PlanMismatchError: the plan is for another architecture.
        PlanError: a negative count, or the plan is not static.
    """
    if visual < 0 or text < 0 or not 0 <= (before or 0) <= text:
        raise PlanError(f"token counts must not be negative: visual {visual}, text {text}, of it before {before}.")
    plan = plan or Plan.full(geometry)
    plan.check(geometry)
    return Prefill(
        total=sum(_layers(geometry, plan, visual, text, before)), visual=sum(_layers(geometry, plan, visual, 0, None))
    )


def _layers(g: Geometry, plan: Plan, visual: float, text: float, before: float | None) -> Iterator[float]:
    """FLOPs of each layer under ``plan``."""
    for rows, (row, alive, asking) in zip(plan.rows(visual, text), plan.parts(visual), strict=True):
        ffn, probe = rows["ffn"], 0.0
        if isinstance(row.ffn, Neurons) and alive:
            ffn += alive * row.ffn.channels(g.intermediate) / g.intermediate
            probe = row.ffn.probes(alive)
        pairs = _pairs(row, alive, asking, text, before)
        yield layer(g, query=rows["query"], key=rows["key"], ffn=ffn, pairs=pairs, probe=probe)


def _pairs(row: LayerPlan, alive: float, asking: float, text: float, before: float | None) -> float:
    """(query, key) pairs scored in one layer: of text, and of the ``asking`` among the ``alive`` visual tokens."""
    n = alive + text
    if before is None:
        reach = text + min(row.attention.size, alive) if isinstance(row.attention, Window) else n
        return text * (text if row.visible == Skip() else n) + asking * reach
    if row.visible == Full() and (row.attention == Full() or isinstance(row.attention, Top)):
        return (text + asking) * n
    # Text and visual tokens ask apart; text before the image is scored with the keys before it only.
    mine = text * text if row.visible == Skip() or not alive else before * before + (text - before) * n
    if isinstance(row.attention, Window):
        start, end = int(before), int(before + alive)
        blocks = row.attention.blocks(start, end)
        return mine + sum((last - first) * (before + last - max(start, key)) for first, last, key in blocks)
    return mine + asking * (n if isinstance(row.attention, Top) else before + alive)
