"""A figure of a set of answers with its interval: sums over questions, and ratios of sums, resampled.

Every figure here is of one form. Units (questions, or MME's pairs of questions) have a top and a bottom; the figure of
a stratum is the sum of tops over the sum of bottoms, and the whole is the sum over strata. An accuracy has the score on
top, 1 at the bottom, and one stratum. F1 of the answer yes is ``2 tp / (2 tp + fp + fn)``. MME's score is the sum over
its categories of the mean over pairs. A retention is the ratio of two figures of the same units, resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from .metrics import SHARE, Unit

RESAMPLES = 2000
CONFIDENCE = 0.95


class Estimate(BaseModel):
    """A value and its 95 % bootstrap interval over questions."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    def said(self, unit: Unit) -> str:
        """``87.5% [80.0%, 92.5%]``, if it is a share."""
        return f"{unit.said(self.value)} [{unit.said(self.low)}, {unit.said(self.high)}]"

    def __str__(self) -> str:
        """As a share."""
        return self.said(SHARE)


@dataclass(frozen=True)
class Units:
    """What is resampled.

    Attributes:
        top, bottom: ``[units]``.
        stratum: of each unit, from 0; each stratum is resampled by itself.
        tasks: of each unit; a unit is of one task.
    """

    top: np.ndarray
    bottom: np.ndarray
    stratum: np.ndarray
    tasks: tuple[str, ...]

    @classmethod
    def plain(cls, values: np.ndarray, tasks: Sequence[str] | None = None) -> Units:
        """One unit a question, whose figure is the mean of ``values``, ``[questions]``."""
        return cls(values, np.ones(len(values)), np.zeros(len(values), int), tuple(tasks or [""] * len(values)))

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, each once, in their order."""
        return tuple(dict.fromkeys(self.tasks))

    def of(self, task: str) -> Units:
        """Those of one task."""
        mine = np.array([one == task for one in self.tasks])
        _, stratum = np.unique(self.stratum[mine], return_inverse=True)
        return Units(self.top[mine], self.bottom[mine], stratum, (task,) * int(mine.sum()))


def figure(units: Units) -> Estimate:
    """The figure of ``units``."""
    return _estimate(_figure(_sums(units, units.top, units.bottom)))


def retained(plan: Units, dense: Units) -> Estimate | None:
    """The figure of ``plan`` over that of ``dense``, of the same units; None if the latter is 0."""
    sums = _sums(dense, plan.top, plan.bottom, dense.top, dense.bottom)
    whole, kept = _figure(sums[..., 2:]), _figure(sums[..., :2])
    if whole[0] == 0:
        return None
    # A resample in which no dense answer is right has no ratio; any useful accuracy rules it out.
    return _estimate(kept / np.maximum(whole, 1e-9))


def mean_retained(plan: Units, dense: Units) -> Estimate | None:
    """The mean over tasks of the retention of each, as papers average it; None if one task has none.

    Tasks are resampled one by one.
    """
    ratios: list[np.ndarray] = []
    for task in dense.names:
        mine, whole = plan.of(task), dense.of(task)
        sums = _sums(whole, mine.top, mine.bottom, whole.top, whole.bottom, seed=len(ratios))
        if _figure(sums[..., 2:])[0] == 0:
            return None
        ratios.append(_figure(sums[..., :2]) / np.maximum(_figure(sums[..., 2:]), 1e-9))
    return _estimate(np.mean(ratios, axis=0))


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of ``values``, ``[questions]``, with its bootstrap interval."""
    return figure(Units.plain(values))


def retention_estimate(plan: np.ndarray, dense: np.ndarray) -> Estimate | None:
    """Ratio of the means, ``[questions]`` each, resampled in pairs; None if ``dense`` is all zero."""
    return retained(Units.plain(plan), Units.plain(dense))


def paired_difference(values: np.ndarray, others: np.ndarray) -> Estimate:
    """Mean of ``values - others``, resampled in pairs: answers to the same questions."""
    return mean_estimate(values - others)


def _sums(units: Units, *columns: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sums over the units of each stratum, ``[1 + RESAMPLES, strata, columns]``; the first are of the units as they
    are."""
    rng = np.random.default_rng(seed)
    found = []
    for stratum in range(int(units.stratum.max(initial=0)) + 1):
        mine = np.flatnonzero(units.stratum == stratum)
        drawn = mine[rng.integers(0, len(mine), (RESAMPLES, len(mine)))]
        found.append([np.concatenate(([c[mine].sum()], c[drawn].sum(axis=1))) for c in columns])
    return np.moveaxis(np.array(found), 2, 0)


def _figure(sums: np.ndarray) -> np.ndarray:
    """Of tops and bottoms, ``[..., strata, 2]``: their ratios, summed over strata; 0 where there is no bottom."""
    top, bottom = sums[..., 0], sums[..., 1]
    ratio: np.ndarray = np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)
    return np.asarray(ratio.sum(axis=-1))


def _estimate(values: np.ndarray) -> Estimate:
    """Of the value and its resamples, ``[1 + RESAMPLES]``; percentiles, as BCa is undefined where every resample is the
    same, as at 100 %."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return Estimate(value=float(values[0]), low=float(low), high=float(high))
