"""What the table says of outcomes: estimates with 95 % bootstrap intervals over questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..evaluation import CONFIDENCE, RESAMPLES, Estimate, mean_estimate, paired_difference, retention_estimate
from .results import Outcome, of_task

Column = NDArray[np.float64]


def by_question(outcomes: Sequence[Outcome], field: str = "right") -> Column:
    """``field`` of each question, ``[questions of all tasks]``; the mean over draws."""
    return np.concatenate([_of_task(outcomes, task, field) for task in _tasks(outcomes)])


def accuracy(outcomes: Sequence[Outcome]) -> Estimate:
    return mean_estimate(by_question(outcomes))


def retention(outcomes: Sequence[Outcome]) -> Estimate | None:
    """Right answers kept, questions of all tasks pooled; None where no dense answer is right."""
    return retention_estimate(by_question(outcomes), by_question(outcomes, "dense"))


def retention_by_task(outcomes: Sequence[Outcome]) -> Estimate | None:
    """As papers average it: the mean over tasks of the ratio of right answers.

    Questions are resampled within their task. A task of which the dense model answers nothing has no ratio, and is left
    out, and so are resamples without any ratio; None where there is no other.
    """
    pairs = [(_of_task(outcomes, task, "right"), _of_task(outcomes, task, "dense")) for task in _tasks(outcomes)]
    pairs = [(right, dense) for right, dense in pairs if dense.any()]
    if not pairs:
        return None
    value = float(np.mean([right.mean() / dense.mean() for right, dense in pairs]))
    rng = np.random.default_rng(0)
    ratios = np.array([_ratios(right, dense, rng) for right, dense in pairs])
    drawn = np.nanmean(ratios[:, ~np.isnan(ratios).all(axis=0)], axis=0)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(value=value, low=float(low), high=float(high))


def _ratios(right: Column, dense: Column, rng: np.random.Generator) -> Column:
    """Of each resample, ``[resamples]``; NaN where no dense answer of it is right."""
    chosen = rng.integers(0, len(right), size=(RESAMPLES, len(right)))
    kept, known = right[chosen].mean(axis=1), dense[chosen].mean(axis=1)
    return np.divide(kept, known, out=np.full(RESAMPLES, np.nan), where=known > 0)


def points_above(outcomes: Sequence[Outcome], control: Sequence[Outcome]) -> Estimate:
    """Difference of accuracy, question by question."""
    return paired_difference(by_question(outcomes), by_question(control))


def hard(control: Sequence[Outcome]) -> NDArray[np.bool_]:
    """Which questions ``control`` gets wrong and the dense model right, ``[questions of all tasks]``."""
    return (by_question(control) < 1) & (by_question(control, "dense") == 1)


def _tasks(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(o.task for o in outcomes))


def _of_task(outcomes: Sequence[Outcome], task: str, field: str) -> Column:
    return np.mean([getattr(o, field) for o in of_task(outcomes, task)], axis=0)
