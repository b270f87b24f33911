"""ST3: a few visual tokens fewer, every few layers.

"Spatial-Temporal Visual Token Trimming" (arXiv 2412.20105, AAAI 2025). Progressive visual token pruning drops the
least attended tokens again and again, by a stride of layers and a ratio; it reports twice the speed at 30 % of the
cache.

Known here from its abstract alone: no code was released. Not known, and so ours: the first layer, stride 3 and
keeping 85 % at each step (half of the visual work over the depth), and the rank, FastV's. Its second half, which lets
go of more tokens as the answer grows, is not expressible: a plan decides what is cached for the answer once.
"""

from __future__ import annotations

from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Count, Layer, method
from .stages import keep_in_stages


@method
def st3(model: Geometry | int, *, start: Layer = 3, stride: Count = 3, keep: float = 0.85) -> Plan:
    """Keep a share of the visual tokens that are left, every few layers, by the last prompt token's attention."""
    if stride < 1:
        raise PlanError(f"stride is {stride} layers and should be 1 or more.")
    layers = tuple(range(start, len(Plan.full(model).layers), stride))
    return keep_in_stages(model, layers, tuple(keep ** (i + 1) for i in range(len(layers))), "last_query_attention")


METHOD = Method(
    st3,
    "2412.20105",
    "ST3: spatial-temporal visual token trimming",
    ours=("start", "stride", "keep"),
    strength=lambda layers, strength: {"keep": round(1 - strength / 2, 4)},
)
