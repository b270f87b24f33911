"""GSOP: one order of operations serves every budget.

Greedily sorted operation pruning (arXiv 2507.02909, version 1). An operation is a layer, a group of visual tokens, and
one of three modules: keys and values for others, queries of its own, and the FFN. Greedy search removes, again and
again, the operation whose loss is least given those already removed; a plan removes the first N of that order. The
released configuration groups tokens by the tower's attention, a quarter and the rest, and measures exact match on 500
GQA questions; here all visual tokens are one group.

The order is to be given, as (column, layer) pairs of a plan's own columns: ``visible``, ``attention``, ``ffn``.
"""

from __future__ import annotations

from ..cells import Skip
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Operations, method


@method
def gsop(model: Geometry | int, *, order: Operations, steps: int | None = None) -> Plan:
    """Skip the first operations of a searched order; all of them by default.

    Raises:
        PlanError: there is no operation, one is none of the three or named twice, or ``steps`` are more than the order
            has.
    """
    plan = Plan.full(model)
    if not order:
        raise PlanError("the order names no operation: give one or more, such as ffn:11,attention:3.")
    if steps is not None and not 0 <= steps <= len(order):
        raise PlanError(f"steps is {steps} and the order has {len(order)} operations.")
    if len(set(order)) != len(order):
        raise PlanError(f"the order names an operation twice: {' '.join(f'{c}:{layer}' for c, layer in order)}.")
    for column, layer in order[:steps]:
        if column not in ("visible", "attention", "ffn"):
            raise PlanError(f"the order names {column!r}, and an operation is one of visible, attention, ffn.")
        plan = plan.at([layer], **{column: Skip()})
    return plan


METHOD = Method(
    gsop,
    "2507.02909",
    "GSOP (v1)",
    example_arguments={"order": (("ffn", 1), ("attention", 1))},
    ours=("steps",),
    paper_kept=0.3,  # saves 70 % of the computation
)
