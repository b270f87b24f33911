"""Verdicts: a claim of a paper, what was measured, and whether the one bears out the other."""

from __future__ import annotations

from ..comparison.statistics import points_above, retention_by_task
from .answers import Outcomes
from .report import FAILS, HOLDS, OPEN, Finding, Verdict, above_zero, at_least, equal, points, shown

NEAR = 0.02  #: a difference of accuracy that counts as none


def keeps(where: str, claim: str, outcomes: Outcomes, bound: float, here: str) -> Finding:
    """At least ``bound`` of the right answers are kept, as the papers average it."""
    found = retention_by_task(outcomes)
    return Finding(where=where, claim=claim, measured=f"{shown(found)} {here}.", verdict=at_least(found, bound))


def beats(where: str, claim: str, mine: Outcomes, others: Outcomes, here: str) -> Finding:
    """More of the same questions are answered right than under what is compared."""
    found = points_above(mine, others)
    return Finding(where=where, claim=claim, measured=f"{points(found)} of accuracy {here}.", verdict=above_zero(found))


def alike(where: str, claim: str, mine: Outcomes, others: Outcomes, here: str) -> Finding:
    """As many of the same questions are answered right, within :data:`NEAR`."""
    found = points_above(mine, others)
    return Finding(
        where=where, claim=claim, measured=f"{points(found)} of accuracy {here}.", verdict=equal(found, NEAR)
    )


def counted(where: str, claim: str, measured: str, holds: bool | None) -> Finding:
    """What no interval belongs to; ``holds`` is None where this model is no place to see it."""
    verdict: Verdict = OPEN if holds is None else HOLDS if holds else FAILS
    return Finding(where=where, claim=claim, measured=measured, verdict=verdict)
