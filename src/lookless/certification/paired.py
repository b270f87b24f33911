"""Two sets of answers to the same questions: does one have more right than the other?

Only questions that one has right and the other wrong tell. If both were equally good, each of these would be as likely
to be of the one kind as of the other, so how many are of the rarer kind is binomial (McNemar's test, exact). Over
several tasks the p-values are Holm's: with a probability of at least 1 - alpha every task called different is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

from ..errors import LooklessError
from ..evaluation import Answer, Evaluation, normal


class Paired(BaseModel):
    """Two sets of answers to the questions of one task.

    Attributes:
        task: the name of the data.
        n: questions.
        right, other_right: how many each has right.
        only, only_other: how many one has right and the other wrong.
        p_value: of the hypothesis that both are equally good, two-sided, for this task alone.
        adjusted: the same for a family of tasks, by Holm: different where it is at most alpha.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    n: int
    right: int
    other_right: int
    only: int
    only_other: int
    p_value: float
    adjusted: float


def compare(evaluations: Sequence[Evaluation], others: Sequence[Evaluation]) -> tuple[Paired, ...]:
    """Task by task; of each evaluation the plan's answers, or the dense model's where it has no plan.

    Args:
        evaluations: of one model or plan, one for each task.
        others: of another, of the same tasks in the same order, and of the same samples.

    Raises:
        LooklessError: there is none, or they are of different samples.
    """
    if not evaluations or len(evaluations) != len(others):
        raise LooklessError(f"{len(evaluations)} tasks cannot be compared with {len(others)}: give the same ones.")
    found = [_paired(mine, other) for mine, other in zip(evaluations, others, strict=True)]
    adjusted = holm([one.p_value for one in found])
    return tuple(one.model_copy(update={"adjusted": p}) for one, p in zip(found, adjusted, strict=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: whatever is at most alpha may be rejected, with all errors together at most alpha."""
    p = np.asarray(p_values, dtype=float)
    order = p.argsort()
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty_like(p)
    adjusted[order] = steps
    return [float(one) for one in adjusted]


def _paired(mine: Evaluation, other: Evaluation) -> Paired:
    if [_prompt(answer) for answer in mine.answers] != [_prompt(answer) for answer in other.answers]:
        raise LooklessError(
            f"the answers to {mine.data} and to {other.data} are not to the same {mine.samples} samples in the same "
            f"order: evaluate both on the same ones (--include-seen leaves no line out)."
        )
    right, other_right = _right(mine), _right(other)
    only, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    p_value = float(binomtest(only, only + only_other).pvalue) if only + only_other else 1.0
    return Paired(
        task=mine.data,
        n=len(right),
        right=int(right.sum()),
        other_right=int(other_right.sum()),
        only=only,
        only_other=only_other,
        p_value=p_value,
        adjusted=p_value,
    )


def _prompt(answer: Answer) -> tuple[str, str, str | None]:
    return answer.question, answer.expected, answer.sample_hash


def _right(evaluation: Evaluation) -> np.ndarray:
    given = (answer.dense if answer.plan is None else answer.plan for answer in evaluation.answers)
    return np.array([normal(a) == normal(b.expected) for a, b in zip(given, evaluation.answers, strict=True)], bool)
