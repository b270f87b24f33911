"""HalfV on LLaVA: half of the tokens, and those frozen in the deep half.

arXiv 2604.16462 (ACL 2026), for Vicuna and Mistral decoders, where deep visual updates can go: in the released example
for LLaVA-1.5-7B half of the tokens are kept at layer 3 of 32, and from layer 15 on visual tokens pass through
unchanged, with keys and values still made. What :mod:`halfv <lookless.methods.halfv>` says of the rank holds here too.
"""

from __future__ import annotations

from ..cells import Keep, Skip
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Layer, method
from .published import LLAVA_7B
from .strength import fewer_tokens


@method
def halfv_llava(model: Geometry | int, *, layer: Layer = 3, keep: float = 0.5, freeze: Layer = 15) -> Plan:
    """Keep a diverse half of the visual tokens early, and freeze them in the deep layers."""
    plan = Plan.full(model)
    if not 0 <= freeze <= len(plan.layers):
        raise PlanError(f"freeze is {freeze} and the model has {len(plan.layers)} layers.")
    return plan.at([layer], keep=Keep(keep, rank="attention_then_diversity")).at(
        range(freeze, len(plan.layers)), attention=Skip(), ffn=Skip()
    )


METHOD = Method(
    halfv_llava,
    "2604.16462",
    "HalfV, on LLaVA",
    published=LLAVA_7B,
    strength=fewer_tokens,
)
