"""Which tokens: the part that methods which prune in stages have in common."""

from __future__ import annotations

from itertools import pairwise

from ..cells import Keep
from ..errors import PlanError
from ..geometry import Geometry
from ..plan import Plan


def keep_in_stages(
    model: Geometry | int, layers: tuple[int, ...], keep: tuple[float, ...], rank: str, recycle: float = 0.0
) -> Plan:
    """From each of ``layers`` on, the share ``keep`` of the prompt's visual tokens, one number a stage.

    Raises:
        PlanError: not as many shares as layers, layers that do not rise, or shares that do.
    """
    if len(layers) != len(keep):
        raise PlanError(f"there are {len(layers)} layers {layers} and {len(keep)} shares to keep: give one a layer.")
    if any(a >= b for a, b in pairwise(layers)):
        raise PlanError(f"layers are {layers}, and each stage has to come after the one before: give rising layers.")
    if any(a < b for a, b in pairwise(keep)):
        raise PlanError(f"shares to keep are {keep}, and no dropped token returns: let them fall.")
    plan = Plan.full(model)
    for layer, share in zip(layers, keep, strict=True):
        plan = plan.at([layer], keep=Keep(share, rank=rank, recycle=recycle))
    return plan
