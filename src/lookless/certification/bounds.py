"""How sure a finite number of questions makes one that a loss is small: p-values and upper confidence bounds.

The hypothesis is always that the true mean loss is higher than ``level``; questions are independent.

Losses of 0 or 1 have an exact test: among ``n`` questions with a true loss above ``level`` at most ``bad`` are lost
with a probability of at most ``P(Binomial(n, level) <= bad)``; the bound that goes with it is Clopper and Pearson's.

Losses anywhere in [0, 1] are tested by betting (Waudby-Smith and Ramdas, "Estimating means of bounded random variables
by betting", arXiv 2010.09686): a player starts with a capital of 1 and bets before each question that its loss will be
under ``level``. If the mean is higher, no way of betting gains on average, so the capital ever reaches ``1 / p`` with a
probability of at most ``p`` (Ville). The stakes are the paper's predictable plug-in: larger where the losses so far
have varied less. The result depends on the order of the questions, so that must not depend on their losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom

#: A bet risks at most this share of the capital (the paper's c).
LARGEST_STAKE = 0.75
#: More questions than this are taken for "no number would do".
MOST = 1_000_000
TINY = 1e-9


def exact_p_value(bad: Any, n: Any, level: float) -> Any:
    """Of the hypothesis, where ``bad`` of ``n`` questions are lost; for numbers or for arrays of one shape."""
    return binom.cdf(bad, n, level)


def exact_upper(bad: int, n: int, confidence: float) -> float:
    """Clopper and Pearson's bound: the largest loss that ``bad`` of ``n`` do not contradict at this confidence."""
    return 1.0 if bad >= n else float(beta.ppf(confidence, bad + 1, n - bad))


def exact_least(level: float, confidence: float) -> int:
    """The fewest questions with which a plan that loses none of them passes: with fewer, nothing can be certified."""
    return next(n for n in _around(math.log(1 - confidence) / math.log1p(-level)) if (1 - level) ** n <= 1 - confidence)


def _around(n: float) -> range:
    return range(max(1, math.floor(n) - 1), math.ceil(n) + 3)


def exact_needed(bad: int, n: int, level: float, confidence: float) -> int | None:
    """The smallest number above ``n`` that passes with as large a share lost; None if there is none up to a million.

    Where ``n`` is too small for any plan to pass, it is at least :func:`exact_least`.
    """
    least = exact_least(level, confidence)
    if n == 0 or (bad >= level * n and n < least):
        return least
    if bad >= level * n:
        return None
    start = n + 1
    while start <= MOST:
        sizes = np.arange(start, 2 * start)
        passed = exact_p_value(-(-bad * sizes // n), sizes, level) <= 1 - confidence
        if passed.any():
            return int(sizes[passed.argmax()])
        start *= 2
    return None


def betting_p_value(losses: np.ndarray, level: float, confidence: float) -> float:
    """Of the hypothesis, for losses in [0, 1], ``[questions]``; the stakes are tuned to this confidence."""
    return min(1.0, math.exp(-_log_capital(losses, _stakes(losses, confidence), level)))


def betting_upper(losses: np.ndarray, confidence: float) -> float:
    """The largest mean that the losses do not contradict; they contradict all larger ones, as the capital grows with
    the level."""
    stakes, goal = _stakes(losses, confidence), -math.log(1 - confidence)
    top = 1 - TINY
    if _log_capital(losses, stakes, top) < goal:
        return 1.0
    return float(brentq(lambda level: _log_capital(losses, stakes, level) - goal, 0.0, top))


def betting_needed(losses: np.ndarray, level: float, confidence: float) -> int | None:
    """About how many questions would pass: these, over and over; None if there is no number up to a million."""
    seen = losses if len(losses) and losses.mean() < level else np.zeros(1)
    least = smallest(lambda n: betting_p_value(np.zeros(n), level, confidence) <= 1 - confidence, 1)
    if seen is not losses:
        return least if least is not None and len(losses) < least else None
    return smallest(lambda n: betting_p_value(np.resize(losses, n), level, confidence) <= 1 - confidence, len(losses))


def smallest(passes: Callable[[int], bool], start: int) -> int | None:
    """By doubling ``start`` and halving the interval, as if whatever passes with n passes with more."""
    high = start
    while not passes(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _stakes(losses: np.ndarray, confidence: float) -> np.ndarray:
    """The bet on each question, from the losses before it alone, ``[questions]``; not yet capped."""
    n = len(losses)
    counts = np.arange(2, n + 2)
    mean = (0.5 + np.cumsum(losses)) / counts
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / counts
    before = np.concatenate([[0.25], variance[:-1]])
    return np.sqrt(-2 * math.log(1 - confidence) / (max(n, 1) * before[:n]))


def _log_capital(losses: np.ndarray, stakes: np.ndarray, level: float) -> float:
    """The log of the highest capital on the way, at least 0. It never falls as ``level`` rises: nor does any factor."""
    bets = np.minimum(stakes, LARGEST_STAKE / max(1 - level, TINY))
    return float(np.cumsum(np.log1p(-bets * (losses - level))).max(initial=0.0))
