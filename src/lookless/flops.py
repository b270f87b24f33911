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

from dataclasses import dataclass

from .errors import PlanError
from .geometry import Geometry
from .plan import Plan


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


def layer(geometry: Geometry, *, query: float, key: float, ffn: float, pairs: float | None = None) -> float:
    """FLOPs of one layer in which so many rows ask, are read, and are transformed.

    ``pairs`` is how many (query, key) pairs are scored; by default each query row with each key row.
    """
    g, pairs = geometry, query * key if pairs is None else pairs
    projections = 4 * query * g.hidden * g.query_width + 4 * key * g.hidden * g.key_width
    return projections + 4 * pairs * g.query_width + 6 * ffn * g.hidden * g.intermediate


def prefill(
    geometry: Geometry, *, visual: float, text: float, plan: Plan | None = None, before: float | None = None
) -> Prefill:
    """FLOPs of the prefill of one prompt with ``visual`` and ``text`` tokens (means over a data set may be fractions).

    ``before`` is how many of the text tokens stand before the (one) image. The papers count every text query over
    all keys of the prompt; where visual rows are skipped, the runtime computes the queries before the image over the
    keys before it only, and given ``before`` that is what is counted.

    Raises:
        PlanMismatchError: the plan is for another architecture.
        PlanError: a negative count.
    """
    if visual < 0 or text < 0 or not 0 <= (before or 0) <= text:
        raise PlanError(f"token counts must not be negative: visual {visual}, text {text}, of it before {before}.")
    plan = plan or Plan.full(geometry)
    plan.check(geometry)
    n = visual + text
    text_pairs = None if before is None else before * before + (text - before) * n
    total = sum(
        layer(geometry, **rows, pairs=None if rows["query"] == n else text_pairs) for rows in plan.rows(visual, text)
    )
    visual_only = sum(layer(geometry, **rows) for rows in plan.rows(visual, 0))
    return Prefill(total=total, visual=visual_only)
