"""FastV: after a shallow layer, half of the visual tokens are as good as all.

"An Image is Worth 1/2 Tokens After Layer 2" (arXiv 2403.06764, ECCV 2024): before layer K, rank visual tokens
by the attention they received in layer K-1 and drop the lowest. The paper's K = 2, R = 50 %; its repository's K = 3.

The text says the average attention a token receives; the released code reads the last prompt token's, and so does the
rank here. That code runs layer K-1 twice to see attention weights, which appends its keys to the cache twice; here one
row of attention is computed beside the layer.
"""

from __future__ import annotations

from ..cells import Keep
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Layer, method
from .published import LLAVA_7B, each
from .strength import fewer_tokens


@method
def fastv(model: Geometry | int, *, layer: Layer = 2, keep: float = 0.5) -> Plan:
    """Keep the visual tokens that the last prompt token attended to most in the layer before."""
    return Plan.full(model).at([layer], keep=Keep(keep, rank="last_query_attention"))


METHOD = Method(
    fastv,
    "2403.06764",
    "An Image is Worth 1/2 Tokens After Layer 2",
    published=(*LLAVA_7B, *each("layer", {"LLaVA-1.5-7B": 3}, "V-Skip")),
    strength=fewer_tokens,
)
