"""PyramidDrop: half of what is left, at each quarter of the depth.

arXiv 2410.17247 (CVPR 2025): at the ends of stages, visual tokens are ranked by the attention the last
instruction token would pay them, with the next layer's own projections, and a share is kept. On LLaVA: layers 8, 16, 24
of 32 keep 50, 25, 12.5 % of the original tokens.

The released code renumbers positions after each drop; here tokens keep theirs. The paper also trains with it; this is
the inference-only use. The ranked layer's queries and keys are computed a second time, for the last token alone.
"""

from __future__ import annotations

from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Stages, method
from .published import LLAVA_7B
from .stages import keep_in_stages


@method
def pyramiddrop(
    model: Geometry | int, *, layers: Stages = (8, 16, 24), keep: tuple[float, ...] = (0.5, 0.25, 0.125)
) -> Plan:
    """Keep ever fewer visual tokens in stages, by the attention the last prompt token would pay them."""
    return keep_in_stages(model, layers, keep, "instruction_attention")


METHOD = Method(
    pyramiddrop,
    "2410.17247",
    "PyramidDrop",
    published=LLAVA_7B,
    strength=lambda layers, strength: {"keep": tuple(round((1 - strength) ** i, 4) for i in (1, 2, 3))},
)
