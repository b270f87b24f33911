"""Methods brought to one price: each at the strength whose plan keeps the nearest share of FLOPs."""

from __future__ import annotations

from ..comparison.contestants import contestants_of
from ..comparison.entry import Entry
from ..methods import METHODS
from .answers import Outcomes
from .lab import Lab

NEAR = 0.03  #: how far from the price a plan may be


def at_price(lab: Lab, name: str, kept: float) -> Outcomes | None:
    """The answers to all tasks under the method ``name``, or down-sampling, at the plan nearest to ``kept`` of the
    FLOPs that run; None where none is near. Random choices have a draw for each seed.

    Raises:
        PlanError: the method is not one amount, or gives no plan for this model.
    """
    who = contestants_of(METHODS)[name]
    found: list[Entry] = []
    draws = range(min(who.draws, lab.sizes.seeds))
    outcomes = []
    for draw in draws:
        for task in lab.tasks:
            entry = who.near(lab.work, task, kept, draw)
            found.append(entry)
            if abs(lab.work.kept(entry) - kept) > NEAR:
                return None
            assert entry.plan is not None
            outcomes.append(lab.answers(name, task, entry.plan, setting=f"{kept:.3f}", draw=draw, side=entry.side))
    return tuple(outcomes)
