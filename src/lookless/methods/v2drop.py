"""V2Drop: tokens that no longer change are dropped.

"Variation-aware Vision Token Dropping" (CVPR 2026; arXiv 2509.01552). Visual tokens are ranked by how far the layer
before moved them, in L2, and the lazy are dropped in three stages; no attention weights are needed. The released
Qwen2-VL code prunes at the entry of layers 3, 16 and 22 of 28 and keeps 25 %, then 5 % of those, then one token. Shares
here are of all the prompt's tokens: 0.25, 0.0125, and the least there is, one.
"""

from __future__ import annotations

from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Stages, method
from .published import Setting
from .stages import keep_in_stages


@method
def v2drop(
    model: Geometry | int, *, layers: Stages = (3, 16, 22), keep: tuple[float, ...] = (0.25, 0.0125, 0.0001)
) -> Plan:
    """Keep the visual tokens that the layer before changed most, in stages."""
    return keep_in_stages(model, layers, keep, "update_norm")


METHOD = Method(
    v2drop,
    "2509.01552",
    "Variation-aware Vision Token Dropping",
    paper_layers=28,
    published=(Setting("Qwen2-VL-7B"),),
)
