"""HalfV on Qwen2.5-VL: a quarter of the tokens from early on, a twentieth in the end.

arXiv 2604.16462 (ACL 2026). Three stages by the truncated entropy of visual states: one pruning where the second
begins, and in the third the backbone decides. A Qwen decoder loses all if its last visual updates are skipped and next
to nothing if the best 5 % of tokens are still updated. As released for Qwen2.5-VL-7B: at layer 2 of 28 keep a quarter,
at layer 21 keep 5 % of the original count by attention.

Of the quarter the code takes 10 to 20 % by attention without rotary embedding and the rest by farthest-point sampling
over normalised states of the layer before; the rank here takes 15 %, and samples this layer's. :mod:`halfv_llava
<lookless.methods.halfv_llava>` is the other backbone's.
"""

from __future__ import annotations

from ..cells import Keep
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Stages, method
from .published import Setting


@method
def halfv(model: Geometry | int, *, layers: Stages = (2, 21), keep: tuple[float, ...] = (0.25, 0.05)) -> Plan:
    """Keep a diverse quarter of the visual tokens early, and the best-attended twentieth late.

    Raises:
        PlanError: there are not two layers and two shares, or the second stage is not after the first.
    """
    if not (len(layers) == len(keep) == 2 and layers[0] < layers[1] and keep[0] >= keep[1]):
        raise PlanError(f"layers are {layers} and shares {keep}: give two rising layers and two falling shares.")
    return (
        Plan.full(model)
        .at(layers[:1], keep=Keep(keep[0], rank="attention_then_diversity"))
        .at(layers[1:], keep=Keep(keep[1], rank="instruction_attention"))
    )


METHOD = Method(
    halfv,
    "2604.16462",
    "HalfV, on Qwen2.5-VL",
    paper_layers=28,
    published=(Setting("Qwen2.5-VL-7B"),),
    strength=lambda layers, strength: {"keep": (round(1 - strength, 4), round((1 - strength) / 5, 4))},
)
