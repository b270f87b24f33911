"""Two sets of answers to the same questions, task by task: does one do better, or at least not much worse?

Over several tasks the p-values are Holm's: with a probability of at least 1 - alpha every task called different is, and
likewise every task called not inferior. That *all* tasks are not inferior needs no correction: the largest p-value
tests it (Berger 1982), as one task that is inferior would have to pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..errors import LooklessError
from ..evaluation import Estimate
from .differences import Pairs, Test
from .margin import Counts, least_margin
from .sides import Scored, Side


class ComparisonWarning(UserWarning):
    """Two results differ in more than what is compared."""


class NonInferiority(BaseModel):
    """Whether B's mean score is lower than A's by less than a margin.

    Attributes:
        margin: the largest loss that does not matter, in the unit of scores, in (0, 1).
        test: ``exact``, or ``betting`` where scores are graded or questions share images.
        p_value: of the hypothesis that the true loss is at least the margin, for this task alone.
        adjusted: the same for the family of tasks, by Holm: not inferior where it is at most alpha.
        upper: upper confidence bound on the true loss at 1 - alpha, for this task alone.
        needed: how many questions would do if the scores stayed as they are here, whatever the other tasks' p-values;
            None where the test passed, and where no number would do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float
    test: str
    p_value: float
    adjusted: float
    upper: float
    needed: int | None = None


class Paired(BaseModel):
    """Two sets of answers, A and B, to the questions of one task.

    Attributes:
        task: its name.
        measure: what a score is: ``exact match``, or a field of the file.
        a, b: where they come from.
        n: questions.
        images: groups of questions that share no image with any other; None where it is not known which do.
        score_a, score_b: mean scores.
        is_share: scores are from 0 to 1.
        better_a, better_b: questions to which the one's answer scores higher.
        difference: B's mean score less A's, with its 95 % interval.
        retention: B's mean score as a share of A's, with its 95 % interval; None if A's is zero.
        test: of the hypothesis that both are equally good.
        p_value: of that, two-sided, for this task alone.
        adjusted: the same for the family of tasks, by Holm: different where it is at most alpha.
        non_inferiority: None where no margin was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    measure: str
    a: Side
    b: Side
    n: int
    images: int | None
    score_a: float
    score_b: float
    better_a: int
    better_b: int
    difference: Estimate
    retention: Estimate | None
    test: Test
    p_value: float
    adjusted: float
    non_inferiority: NonInferiority | None = None
    is_share: bool = True


def compare(
    results: Sequence[Scored], others: Sequence[Scored], *, margin: float | None = None, alpha: float = 0.05
) -> tuple[Paired, ...]:
    """Task by task.

    Args:
        results: A's, one for each task.
        others: B's, of the same tasks in the same order, and of the same questions.
        margin: the loss of mean score that does not matter; it must not be chosen by the results.
        alpha: the probability that any task is called different, or any not inferior, by chance.

    Raises:
        LooklessError: there is none, they are of different questions or scores, or a margin is given for scores that
            are not in [0, 1].

    Warns:
        ComparisonWarning: the two were made with other versions, or other prompts.
    """
    if not results or len(results) != len(others):
        raise LooklessError(f"{len(results)} tasks cannot be compared with {len(others)}: give the same ones.")
    for what, share in (("margin", margin), ("alpha", alpha)):
        if share is not None and not 0 < share < 1:
            raise LooklessError(f"{'an' if what == 'alpha' else 'a'} {what} of {share} is not between 0 and 1.")
    for mine, other in zip(results, others, strict=True):
        _check(mine, other)
    _warn_of_differences(results, others)
    pairs = [Pairs.of(mine, other) for mine, other in zip(results, others, strict=True)]
    p_values = [one.p_value() for one in pairs]
    tested = [None] * len(pairs) if margin is None else _non_inferiority(results, pairs, margin, alpha)
    each = zip(results, others, pairs, p_values, holm(p_values), tested, strict=True)
    return tuple(_paired(*one) for one in each)


def holm(p_values: Sequence[float]) -> list[float]:
    """``p_values``, adjusted: whatever is at most alpha may be rejected, with all errors together at most alpha."""
    p = np.asarray(p_values, dtype=float)
    order = p.argsort()
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty_like(p)
    adjusted[order] = steps
    return [float(one) for one in adjusted]


def _paired(
    mine: Scored, other: Scored, pairs: Pairs, p_value: float, adjusted: float, tested: NonInferiority | None
) -> Paired:
    better_a, better_b = pairs.better
    return Paired(
        task=mine.task,
        measure=mine.measure,
        a=mine.side,
        b=other.side,
        n=len(mine.scores),
        images=None if pairs.groups is None else len(pairs.sums[0]),
        score_a=float(mine.scores.mean()),
        score_b=float(other.scores.mean()),
        better_a=better_a,
        better_b=better_b,
        difference=pairs.difference(),
        retention=pairs.retention(),
        test=pairs.test,
        p_value=p_value,
        adjusted=adjusted,
        non_inferiority=tested,
        is_share=pairs.is_share,
    )


def _non_inferiority(
    results: Sequence[Scored], pairs: Sequence[Pairs], margin: float, alpha: float
) -> list[NonInferiority | None]:
    for one, pair in zip(results, pairs, strict=True):
        if not pair.is_share:
            raise LooklessError(
                f"{one.measure} of {one.task} is not from 0 to 1, as the test of a margin needs: compare without "
                f"--margin, or by another score."
            )
    tests = [pair.margin_test() for pair in pairs]
    p_values = [test.p_value(margin, 1 - alpha) for test in tests]
    strictest = 1 - alpha / len(tests)  # Holm is never stricter
    return [
        NonInferiority(
            margin=margin,
            test="exact" if isinstance(test, Counts) else "betting",
            p_value=p,
            adjusted=adjusted,
            upper=least_margin(lambda at, test=test: test.p_value(at, 1 - alpha), alpha),  # type: ignore[misc]
            needed=None if adjusted <= alpha else test.needed(margin, strictest),
        )
        for test, p, adjusted in zip(tests, p_values, holm(p_values), strict=True)
    ]


def _check(mine: Scored, other: Scored) -> None:
    """Raises: LooklessError: they are of other questions, or other scores."""
    if mine.questions != other.questions:
        pairs = zip_longest(mine.questions, other.questions)
        first = next(one or another for one, another in pairs if one != another)
        raise LooklessError(
            f"{mine.side.name} and {other.side.name} do not hold the same questions ({len(mine.questions)} and "
            f"{len(other.questions)}, the first to differ is {str(first[0])[:60]!r}): answer the same ones with both "
            f"(`lookless eval --include-seen` leaves no line out)."
        )
    if mine.measure != other.measure:
        raise LooklessError(
            f"{mine.side.name} is scored by {mine.measure} and {other.side.name} by {other.measure}: name a score that "
            f"both have (--score)."
        )


def _warn_of_differences(results: Sequence[Scored], others: Sequence[Scored]) -> None:
    said = dict.fromkeys(
        f"{name} was {version} for A and {b.side.versions[name]} for B"
        for a, b in zip(results, others, strict=True)
        for name, version in a.side.versions.items()
        if b.side.versions.get(name, version) != version
    )
    for a, b in zip(results, others, strict=True):
        if a.prompts is not None and b.prompts is not None:
            differ = sum(one != other for one, other in zip(a.prompts, b.prompts, strict=True))
            if differ:
                said[f"{differ} of {len(a.prompts)} prompts of {a.task} differ in their words"] = None
    for sentence in said:
        warnings.warn(f"{sentence}: a difference may be due to that.", ComparisonWarning, stacklevel=3)
