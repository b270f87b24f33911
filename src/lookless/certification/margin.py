"""Non-inferiority: how sure is it that one set of answers is worse than another by less than a margin?

The hypothesis is always that the true loss, the mean over all questions of the one's score less the other's, is at
least ``margin``. A small p-value speaks against it: the other is *not inferior*, by less than the margin.

Answers that are right or wrong, to independent questions, have an exact test. Of ``n`` questions ``lost`` are right in
the one set alone and ``won`` in the other alone. Results are ordered by the score statistic of Tango (1998), and the
p-value is the largest probability, under any truth of the hypothesis, of a result at least as good as this one. What is
unknown besides is how often the two differ at all. It is searched through only where the number of differing answers
does not rule it out, and the probability that it is elsewhere is added (Berger and Boos 1994).

All else is tested by betting (:mod:`.bounds`), image by image: a bound for every distribution of scores in [0, 1], and
for answers to the questions about one image that depend on one another in any way. The bootstrap is no test of this:
where answers seldom differ, 20 questions without a difference would have it certain that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, binom

from .bounds import betting_needed, betting_p_value, smallest

#: The share of truths that is left out of the search and added to the p-value.
LEFT_OUT = 1e-4
#: Numbers of differing answers less likely than this are not summed over, but counted as if they were in the tail.
UNLIKELY = 1e-10
GRID, ZOOMS = 65, 3


class Counts(NamedTuple):
    """Right or wrong answers to ``n`` independent questions: ``lost`` are right in the first set alone, ``won`` in the
    second alone."""

    lost: int
    won: int
    n: int

    def p_value(self, margin: float, confidence: float) -> float:
        """Of the hypothesis; exact, so that ``confidence`` has no part in it."""
        return exact_p_value(*self, margin)

    def needed(self, margin: float, confidence: float) -> int | None:
        """Questions that would do if as large shares were lost and won; None if no number up to a million would."""
        if self.lost - self.won >= margin * self.n:
            return None
        return smallest(lambda n: self._of(n).p_value(margin, confidence) <= 1 - confidence, self.n)

    def _of(self, n: int) -> Counts:
        """As large shares of ``n``; no fewer are lost, and no more won."""
        return Counts(-(-self.lost * n // self.n), self.won * n // self.n, n)


class Sums(NamedTuple):
    """Scores in [0, 1], summed over the questions about each image: ``lost`` is the sum of the differences,
    ``[images]``, and ``sizes`` the number of questions.

    Images are independent, and no other has more questions than the largest here.
    """

    lost: np.ndarray
    sizes: np.ndarray

    def p_value(self, margin: float, confidence: float) -> float:
        """Of the hypothesis; the stakes are tuned to ``confidence``."""
        return betting_p_value(*self._scaled(margin), confidence)

    def needed(self, margin: float, confidence: float) -> int | None:
        """Questions that would do if images were like these, over and over; None if no number up to a million would."""
        if self.lost.sum() >= margin * self.sizes.sum():
            return None
        images = betting_needed(*self._scaled(margin), confidence)
        return None if images is None else math.ceil(images * self.sizes.mean())

    def _scaled(self, margin: float) -> tuple[np.ndarray, float]:
        """Losses in [0, 1] in an order that says nothing of them, and the level that their mean is at if the true loss
        is ``margin``."""
        largest = self.sizes.max(initial=1)
        order = np.random.default_rng(0).permutation(len(self.sizes))
        losses = ((self.lost - margin * self.sizes) / largest + 1 + margin) / 2
        return losses[order].clip(0, 1), (1 + margin) / 2


def exact_p_value(lost: int, won: int, n: int, margin: float) -> float:
    """Of the hypothesis that the true shares lost and won differ by at least ``margin``, in (0, 1)."""
    if n == 0:
        return 1.0
    differ = lost + won
    low = max(margin, float(beta.ppf(LEFT_OUT / 2, differ, n - differ + 1)) if differ else 0.0)
    high = float(beta.isf(LEFT_OUT / 2, differ + 1, n - differ)) if differ < n else 1.0
    if high < margin:  # the two differ too seldom for one to lose so much
        return LEFT_OUT
    counts = np.arange(binom.ppf(UNLIKELY, n, low), binom.isf(UNLIKELY, n, high) + 1)
    most = _most_lost(counts, n, margin, float(_statistic(lost, won, n, margin)))
    rates = np.linspace(low, high, GRID)
    for _ in range(ZOOMS):
        tails = _tails(rates, counts, most, n, margin)
        best = int(tails.argmax())
        rates = np.linspace(rates[max(best - 1, 0)], rates[min(best + 1, GRID - 1)], GRID)
    return float(min(1.0, tails.max() + LEFT_OUT + 2 * UNLIKELY))


def least_margin(p_value: Callable[[float], float], alpha: float) -> float:
    """The upper confidence bound on the loss, at confidence ``1 - alpha``: larger margins are all rejected.

    Within 1e-5, and not below.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(middle) <= alpha else (middle, high)
    return high


def _tails(rates: np.ndarray, counts: np.ndarray, most: np.ndarray, n: int, margin: float) -> np.ndarray:
    """The probability of a result at least as good, ``[rates]``, where answers differ at each of ``rates``."""
    lost = np.minimum(1, (rates + margin) / (2 * rates))[:, None]
    given = binom.cdf(most[None], counts[None], lost)
    return np.asarray((binom.pmf(counts[None], n, rates[:, None]) * given).sum(axis=1))


def _most_lost(counts: np.ndarray, n: int, margin: float, seen: float) -> np.ndarray:
    """Of each number of differing answers, how many may be lost for a result at least as good as the one ``seen``.

    -1 if none may. The statistic rises with the number lost, so halving finds it.
    """
    low, high = np.full(len(counts), -1.0), counts.astype(float)
    while (low < high).any():
        middle = np.ceil((low + high) / 2)
        good = _statistic(middle, counts - middle, n, margin) <= seen + 1e-9
        low, high = np.where(good, middle, low), np.where(good, high, middle - 1)
    return low


def _statistic(lost: np.ndarray | float, won: np.ndarray | float, n: int, margin: float) -> np.ndarray:
    """How many standard errors the loss is above ``margin``, with the error that it has if that is the true loss.

    The share won under that constraint is the root of the likelihood's derivative.
    """
    b = margin * (2 * n - lost + won) - lost - won
    root = np.sqrt(b * b + 8 * n * won * margin * (1 - margin))
    share = np.maximum(0, (root - b) / (4 * n))
    return np.asarray((lost - won - n * margin) / np.sqrt(n * (2 * share + margin * (1 - margin))))
