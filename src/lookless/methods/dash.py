"""DASH: tokens that attention no longer changes are not updated any more.

arXiv 2604.18103 (ACL 2026). At about 0.4 of the depth tokens are scored by the length of that layer's attention update;
the top share is updated further; the others skip attention and FFN in every later layer and stay readable.

The plan writes this as a partial update in each later layer, ranked by the layer before. A halted token's update there
has length zero, so the same tokens are chosen again and again: chosen once, halted for good, as in the paper. The paper
halts text tokens by the same rule; here only visual ones. Its share for multimodal models is not known to us: a half is
ours.
"""

from __future__ import annotations

from ..cells import Top
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Layer, method
from .strength import smaller_ratio


@method
def dash(model: Geometry | int, *, layer: Layer = 13, ratio: float = 0.5) -> Plan:
    """After one layer, update only the visual tokens that its attention changed most; freeze the others.

    Raises:
        PlanError: there is no such layer.
    """
    plan, moving = Plan.full(model), Top(ratio, rank="attention_norm")
    if not 0 <= layer < len(plan.layers):
        raise PlanError(f"layer is {layer} and the model's are 0 to {len(plan.layers) - 1}.")
    return plan.at(range(layer + 1, len(plan.layers)), attention=moving, ffn=moving)


METHOD = Method(
    dash,
    "2604.18103",
    "DASH",
    ours=("ratio",),
    strength=smaller_ratio,
)
