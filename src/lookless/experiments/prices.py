"""Methods brought to one price: each at the strength whose plan keeps the nearest share of FLOPs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..comparison.contestants import Contestant, contestants_of
from ..errors import LooklessError, PlanError
from ..methods import METHODS
from .answers import Outcomes
from .lab import Lab

NEAR = 0.03  #: how far from the price a plan may be


@dataclass(frozen=True)
class AtPrice:
    """Methods at one price.

    Attributes:
        found: by name, the answers to all tasks.
        missed: by name, why there are none.
    """

    found: dict[str, Outcomes]
    missed: dict[str, str]

    @property
    def note(self) -> str:
        """For a table: what is not in it."""
        return (
            f"Not at this price: {'; '.join(f'{n} ({why})' for n, why in self.missed.items())}" if self.missed else ""
        )


def at_price(lab: Lab, names: Iterable[str], kept: float) -> AtPrice:
    """Published methods, or ``down-sampling``, at the plan nearest to ``kept`` of the FLOPs that run. Random choices
    have a draw for each seed."""
    contestants, found, missed = contestants_of(METHODS), {}, {}
    for name in names:
        try:
            found[name] = _answers(lab, contestants[name], kept)
        except LooklessError as problem:
            missed[name] = str(problem).rstrip(".")
    return AtPrice(found, missed)


def _answers(lab: Lab, who: Contestant, kept: float) -> Outcomes:
    """Raises: PlanError: no plan for this model is near the price."""
    draws = range(min(who.draws, lab.sizes.seeds))
    entries = [(task, draw, who.near(lab.work, task, kept, draw)) for draw in draws for task in lab.tasks]
    outcomes = []
    for _, _, entry in entries:
        if abs(lab.work.kept(entry) - kept) > NEAR:
            raise PlanError(f"its nearest plan keeps {lab.work.kept(entry):.0%}")
    for task, draw, entry in entries:
        assert entry.plan is not None
        outcomes.append(lab.answers(who.name, task, entry.plan, setting=f"{kept:.3f}", draw=draw, side=entry.side))
    return tuple(outcomes)
