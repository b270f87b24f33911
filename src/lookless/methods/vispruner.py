"""VisPruner: half by the vision tower's attention, half by being unlike the rest.

"Beyond Text-Visual Attention" (arXiv 2412.01818, ICCV 2025): important tokens by the tower's class attention, and
from the others, near-duplicates removed step by step until as many diverse ones are left; both before the first
decoder layer. Half and half in the released code; 64 of 576 tokens is our choice among the budgets such methods are
compared at.
"""

from __future__ import annotations

from ..cells import Keep
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import method
from .strength import fewer_tokens


@method
def vispruner(model: Geometry | int, *, keep: float = 64 / 576) -> Plan:
    """Keep visual tokens half by the tower's attention and half for diversity, before the first layer."""
    return Plan.full(model).at([0], keep=Keep(keep, rank="tower_attention_then_diversity"))


METHOD = Method(
    vispruner,
    "2412.01818",
    "Beyond Text-Visual Attention (VisPruner)",
    ours=("keep",),
    strength=fewer_tokens,
)
