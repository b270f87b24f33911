"""DOP: three numbers: how deep visual tokens attend, how deep they pass the FFN, and how many are kept.

Depth-wise operation pruning (arXiv 2507.02909, version 2). A policy skips visual attention from one depth on and the
visual FFN from another, and keeps a number of tokens from the start. The three are searched: the KL divergence is
measured with one of them changed at a time, and sums rank their combinations. The search is not here, and the numbers
it found for the authors' models are not published: they are to be given.

``attention`` and ``ffn`` are the first layers *without*. Tokens are kept by the rank the authors stack on for
LLaVA-NeXT (VisPruner's).
"""

from __future__ import annotations

from ..cells import Keep, Skip
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Layer, method


@method
def dop(
    model: Geometry | int,
    *,
    attention: Layer,
    ffn: Layer,
    keep: float = 1.0,
    rank: str = "tower_attention_then_diversity",
) -> Plan:
    """Skip visual attention from one depth on and the visual FFN from another, and keep a share of the tokens.

    Raises:
        PlanError: a depth is negative or beyond the last layer's end.
    """
    plan = Plan.full(model)
    total = len(plan.layers)
    for name, depth in (("attention", attention), ("ffn", ffn)):
        if not 0 <= depth <= total:
            raise PlanError(f"{name} ends at layer {depth} and the model has {total}: give 0 to {total}.")
    plan = plan.at(range(attention, total), attention=Skip()).at(range(ffn, total), ffn=Skip())
    return plan if keep == 1 else plan.at([0], keep=Keep(keep, rank=rank))


METHOD = Method(
    dop,
    "2507.02909",
    "DOP (v2)",
    example_arguments={"attention": 16, "ffn": 24, "keep": 0.5},
    ours=("keep", "rank"),
    paper_kept=0.23,  # saves 77 % of TFLOPs at no loss
)
