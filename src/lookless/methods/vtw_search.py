"""VTW's search for its layer.

arXiv 2405.05803: over 20 samples, withdraw the image at the entry of each layer in turn, from layer 5 on,
and take the first whose mean KL divergence to the full model is at most eta. The released code computes
KL(withdrawn || full) at the last prompt position (the measure ``withdrawal``), with eta 0.003 for LLaVA-1.5-7B and
models it does not name, 0.0005 for 13B, and 0.0001 for LLaVA-NeXT-7B.

The first layer under eta need not be followed only by layers under eta; the paper takes it all the same. If there is
none, the released loop ends without an answer; here the image stays to the end, which is the search's own next
candidate and has divergence zero. At its default the method is known to lose text-heavy tasks: its authors advise a
later layer for TextVQA.
"""

from __future__ import annotations

from typing import Annotated

from ..cells import Keep
from ..errors import PlanError
from ..plan import Plan
from ..scores import Scores
from .definition import Method
from .knobs import Layer, method
from .published import each


@method
def vtw_search(scores: Annotated[Scores, "withdrawal"], *, eta: float = 0.003, start: Layer = 5) -> Plan:
    """Withdraw all visual tokens at the first layer where that moves the answer by at most eta.

    Raises:
        PlanError: ``eta`` is negative, or there is no layer ``start``.
    """
    plan = Plan.full(scores.geometry)
    if eta < 0:
        raise PlanError(f"eta is {eta:g}, and a divergence is never below 0: give 0 or more.")
    if not 0 <= start < len(plan.layers):
        raise PlanError(f"start is layer {start} and the model's are 0 to {len(plan.layers) - 1}.")
    silent = (layer for layer in range(start, len(plan.layers)) if scores.mean[layer] <= eta)
    return plan.at(list(silent)[:1], keep=Keep(0))


METHOD = Method(
    vtw_search,
    "2405.05803",
    "Visual Tokens Withdrawal, its search",
    published=each("eta", {"LLaVA-1.5-7B": 0.003, "LLaVA-1.5-13B": 0.0005, "LLaVA-NeXT-7B": 0.0001}, start=5),
)
