"""What an answer under a plan loses against the dense model's: a number in [0, 1], or no loss to speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import LooklessError
from ..evaluation import Answer, Evaluation
from ..metrics import metric_named, normal


@dataclass(frozen=True)
class Loss:
    """A way of counting.

    Attributes:
        name: for the certificate.
        of: the loss of one answer, in [0, 1]; None where the question does not count.
        binary: every loss is 0 or 1, so that the exact test applies.
    """

    name: str
    of: Callable[[Answer], float | None]
    binary: bool = True

    def fitting(self, evaluations: Sequence[Evaluation]) -> Loss:
        """The same, not binary where it is of scores, and those of ``evaluations`` are graded."""
        graded = any(metric_named(evaluation.metric).is_graded for evaluation in evaluations)
        return replace(self, binary=False) if graded and self.of is _lost else self


def _lost(answer: Answer) -> float | None:
    """The share of the dense model's score that is lost, where it has any: of a right answer, 0 or 1."""
    return None if answer.dense_score == 0 else max(0.0, 1 - (answer.plan_score or 0.0) / answer.dense_score)


def _changed(answer: Answer) -> float | None:
    return float(normal(answer.plan or "") != normal(answer.dense))


LOSSES = {loss.name: loss for loss in (Loss("lost", _lost), Loss("changed", _changed))}


def drop(name: str, score: Callable[[str, str], float]) -> Loss:
    """The loss of a graded metric: how much lower than the dense model's the plan's score is, never below 0.

    Args:
        name: of the metric.
        score: of the expected answer and another, in [0, 1].
    """

    def of(answer: Answer) -> float:
        return max(0.0, score(answer.expected, answer.dense) - score(answer.expected, answer.plan or ""))

    return Loss(f"drop in {name}", of, binary=False)


def loss_named(name: str) -> Loss:
    """Raises: LooklessError: there is none of that name."""
    if name not in LOSSES:
        raise LooklessError(f"no loss is called {name!r}; choose one of {', '.join(LOSSES)}.")
    return LOSSES[name]


def losses_of(evaluations: Sequence[Evaluation], loss: Loss) -> np.ndarray:
    """Of every question that counts, ``[questions]``, in order; a prompt that comes again counts once.

    Raises:
        LooklessError: there are no answers of a plan, or a loss is not in [0, 1].
    """
    found, seen = [], set()
    for evaluation in evaluations:
        for answer in evaluation.answers:
            if answer.plan is None:
                raise LooklessError(f"the answers to {evaluation.data} are the dense model's alone: evaluate a plan.")
            if answer.sample_hash is not None and answer.sample_hash in seen:
                continue
            seen.add(answer.sample_hash)
            found.append(loss.of(answer))
    values = np.array([one for one in found if one is not None], dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise LooklessError(f"a {loss.name} is not in [0, 1]: scale the score to that range.")
    return values
