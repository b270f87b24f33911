"""VTW: from some layer on there are no visual tokens.

"Boosting Multimodal Large Language Models with Visual Tokens Withdrawal" (arXiv 2405.05803, AAAI 2025). Deep layers do
not read visual tokens, so these leave the residual stream and no later layer caches them; text keeps its positions.

One number, three conventions. The released code deletes them at the *entry* of layer k, 0-based, so k layers see the
image; k = 15 by default. The figure that others print for "K = 16" on LLaVA-1.5-7B, 4.94 TFLOPs, is 17 full layers.
Here ``after`` is the last layer that sees the image: ``after=14`` is the code's k = 15, ``after=16`` is 4.94.
"""

from __future__ import annotations

from ..cells import Keep
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Layer, method
from .published import LLAVA_7B, V_SKIP_K, each


@method
def vtw(model: Geometry | int, *, after: Layer = 14) -> Plan:
    """Withdraw all visual tokens after one layer.

    Raises:
        PlanError: there is no layer ``after``, or it is the last.
    """
    plan = Plan.full(model)
    if not 0 <= after < len(plan.layers) - 1:
        raise PlanError(
            f"after is {after}, and a layer is needed after it: the model's are 0 to {len(plan.layers) - 1}."
        )
    return plan.at([after + 1], keep=Keep(0))


METHOD = Method(
    vtw,
    "2405.05803",
    "Visual Tokens Withdrawal",
    published=(*LLAVA_7B, *each("after", V_SKIP_K, "V-Skip")),
    strength=lambda layers, strength: {"after": max(0, round((1 - strength) * layers) - 1)},
)
