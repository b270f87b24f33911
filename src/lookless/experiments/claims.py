"""Verdicts: a claim of a paper, what was measured, and whether the one bears out the other.

A bootstrap knows no question that it was not given: where all answers agree its interval is a point. n questions
without a difference exclude, at 95 %, none that is rarer than one in n / 3 (the rule of three). So an interval reaches
at least 3 / n to either side here.
"""

from __future__ import annotations

from ..comparison.statistics import by_question, points_above, retention_by_task
from ..evaluation import Estimate
from .answers import Outcomes
from .report import FAILS, HOLDS, OPEN, Finding, Verdict, above_zero, at_least, equal, points, shown

NEAR = 0.02  #: a difference of accuracy that counts as none


def keeps(where: str, claim: str, outcomes: Outcomes, bound: float, here: str) -> Finding:
    """At least ``bound`` of the right answers are kept, as the papers average it."""
    kept = retention_by_task(outcomes)
    found = None if kept is None else _widened(kept, outcomes)
    return Finding(where=where, claim=claim, measured=f"{shown(found)} {here}.", verdict=at_least(found, bound))


def beats(where: str, claim: str, mine: Outcomes, others: Outcomes, here: str) -> Finding:
    """More of the same questions are answered right than under what is compared."""
    found = _widened(points_above(mine, others), mine)
    return Finding(where=where, claim=claim, measured=f"{points(found)} of accuracy {here}.", verdict=above_zero(found))


def alike(where: str, claim: str, mine: Outcomes, others: Outcomes, here: str) -> Finding:
    """As many of the same questions are answered right, within :data:`NEAR`."""
    found = _widened(points_above(mine, others), mine)
    return Finding(
        where=where, claim=claim, measured=f"{points(found)} of accuracy {here}.", verdict=equal(found, NEAR)
    )


def _widened(found: Estimate, outcomes: Outcomes) -> Estimate:
    least = 3 / len(by_question(outcomes))
    return Estimate(
        value=found.value, low=min(found.low, found.value - least), high=max(found.high, found.value + least)
    )


def counted(where: str, claim: str, measured: str, holds: bool | None) -> Finding:
    """What no interval belongs to; ``holds`` is None where this model is no place to see it."""
    verdict: Verdict = OPEN if holds is None else HOLDS if holds else FAILS
    return Finding(where=where, claim=claim, measured=measured, verdict=verdict)
