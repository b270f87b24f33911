"""Do two sets of scores of the same questions differ, and by how much?

Answers that are right or wrong, to independent questions: only those that one side has right and the other wrong tell.
If both were equally good, each of these would be as likely to be of the one kind as of the other, so how many are of
the rarer kind is binomial (McNemar's test, exact).

Several questions about one image are not independent: where a plan misses an object, it misses it in all of them, and
McNemar's test would take one piece of evidence for many. There, and for graded scores, both sides' scores of an image
change places or stay, at random (a permutation test): if neither side were better, any such choice would be as likely
as what was seen, however the answers about one image hang together.

Intervals are bootstrapped, and whole images are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test

from ..evaluation import CONFIDENCE, RESAMPLES, Estimate
from .independent import image_groups
from .margin import Counts, Sums
from .sides import Scored

Test = Literal["McNemar", "permutation by question", "permutation by image"]
FLIPS = 9999
AT_ONCE = 2_000_000  #: numbers of resamples in memory


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scores of the same questions, ``[questions]``.

    Attributes:
        groups: a number for each question, the same for those that depend on one another; None: all are alone.
    """

    mine: np.ndarray
    others: np.ndarray
    groups: np.ndarray | None

    @classmethod
    def of(cls, mine: Scored, other: Scored) -> Pairs:
        """Of the same questions in the same order."""
        images = other.images if mine.images is None else mine.images
        return cls(mine.scores, other.scores, None if images is None else image_groups(images))

    @cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each group: my scores, the others', and the number of questions, ``[groups]`` each."""
        if self.groups is None:
            return self.mine, self.others, np.ones(len(self.mine))
        return tuple(np.bincount(self.groups, w) for w in (self.mine, self.others, np.ones(len(self.mine))))  # type: ignore[return-value]

    @property
    def is_grouped(self) -> bool:
        return len(self.sums[0]) < len(self.mine)

    @property
    def is_binary(self) -> bool:
        return all(np.isin(scores, (0, 1)).all() for scores in (self.mine, self.others))

    @property
    def is_share(self) -> bool:
        """Every score is in [0, 1]."""
        return all(((scores >= 0) & (scores <= 1)).all() for scores in (self.mine, self.others))

    @property
    def test(self) -> Test:
        """The test that fits."""
        if self.is_grouped:
            return "permutation by image"
        return "McNemar" if self.is_binary else "permutation by question"

    @property
    def better(self) -> tuple[int, int]:
        """Questions to which my answer is the better one, and the other."""
        return int((self.mine > self.others).sum()), int((self.others > self.mine).sum())

    def p_value(self) -> float:
        """Of the hypothesis that both sides are equally good, two-sided."""
        if self.test == "McNemar":
            one, other = self.better
            return float(binomtest(one, one + other).pvalue) if one + other else 1.0
        mine, others, _ = self.sums
        differ = ~np.isclose(mine, others, rtol=0, atol=1e-12)  # what changes places unseen needs no choice
        if differ.sum() < 2:
            return 1.0
        found = permutation_test(
            (mine[differ], others[differ]),
            lambda a, b, axis=-1: (a - b).sum(axis=axis),
            permutation_type="samples",
            n_resamples=FLIPS,
            batch=max(1, AT_ONCE // int(differ.sum())),
            vectorized=True,
            rng=np.random.default_rng(0),
        )
        return float(found.pvalue)

    def difference(self) -> Estimate:
        """The others' mean score less mine."""
        mine, others, sizes = self.sums
        return _ratio(others - mine, sizes)

    def retention(self) -> Estimate | None:
        """The others' mean score as a share of mine; None if mine is zero."""
        mine, others, _ = self.sums
        return _ratio(others, mine) if mine.sum() > 0 else None

    def margin_test(self) -> Counts | Sums:
        """What tests whether the others lose at most a margin; for scores in [0, 1]."""
        if self.is_binary and not self.is_grouped:
            return Counts(*self.better, len(self.mine))
        mine, others, sizes = self.sums
        return Sums(mine - others, sizes)


def _ratio(tops: np.ndarray, bottoms: np.ndarray) -> Estimate:
    """Of the sums, ``[groups]`` each, with its bootstrap interval over groups."""
    value = float(tops.sum() / bottoms.sum())
    if len(tops) < 2:
        return Estimate(value=value, low=value, high=value)
    columns: Sequence[Any] = (tops, bottoms)
    interval = bootstrap(
        columns,
        # A resample in which nothing of mine is right has no ratio; any useful score rules it out.
        lambda a, b, axis=-1: a.sum(axis=axis) / np.maximum(b.sum(axis=axis), 1e-9),
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // len(tops)),
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",  # BCa is undefined where every resample is the same
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value=value, low=float(interval.low), high=float(interval.high))
