"""Fixed sequence testing of a chain of plans, as in Pareto Testing (Laufer-Goldshtein et al., arXiv 2210.07913).

One part of the data finds plans and orders them from mild to aggressive: the Pareto front of price and loss. Another
part, that had no say in this, tests them in this order, each at level ``1 - confidence``, and stops at the first that
fails. No further correction is needed:

* *Along the chain.* Take the first plan of the chain that in truth breaks the promise. Any certified plan that breaks
  it is this one or comes after it, so this one was certified too, and that happens with a probability of at most
  ``1 - confidence``: it is one test of a true hypothesis, and the order is independent of the questions tested on.
* *Over the tasks.* A plan passes where it passes on every task, each at the same level (an intersection-union test:
  Berger 1982). If it breaks the promise on some task, to pass it must pass there, and that happens with a probability
  of at most ``1 - confidence``, whatever the other tasks do, and even if tasks share questions.

So with ``confidence`` all certified plans keep the promise on all tasks. Testing on what the plans were chosen by, or
choosing the level once the answers are seen, voids this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import LooklessError
from ..evaluation import Evaluation
from .bounds import betting_needed, betting_p_value, betting_upper, exact_needed, exact_p_value, exact_upper
from .certificate import Certificate, PlanTest, TaskTest
from .losses import Loss, loss_named, losses_of

ALL = "all tasks pooled"


class Tried(NamedTuple):
    """A plan and its answers.

    Attributes:
        plan: its name, for a reader.
        evaluations: one for each task, of the same tasks and samples for each plan.
    """

    plan: str
    evaluations: Sequence[Evaluation]


def certify(
    chain: Iterable[Tried],
    *,
    level: float,
    confidence: float = 0.95,
    loss: str | Loss = "lost",
    pooled: bool = False,
    length: int | None = None,
) -> Certificate:
    """Test the plans of ``chain`` in turn, up to the first that does not pass; later ones are not looked at.

    Args:
        chain: plans from mild to aggressive, on questions that chose neither them nor their order. A generator is
            asked for the next plan only after the one before has passed.
        level: the promise: the largest loss allowed, in (0, 1). To keep 99 % it is 0.01.
        confidence: that every certified plan keeps the promise.
        loss: ``lost``, ``changed``, or a :class:`Loss`.
        pooled: test the questions of all tasks as one, which promises nothing on any single task.
        length: of the chain, if it is a generator.

    Raises:
        LooklessError: the chain is empty; a level or a confidence is not in (0, 1); a plan was calibrated on some of
            the questions; or the plans were tried on different ones.
    """
    _check_share("level", level)
    _check_share("confidence", confidence)
    loss = loss_named(loss) if isinstance(loss, str) else loss
    tests: list[PlanTest] = []
    first: Tried | None = None
    for tried in chain:
        first = first or tried
        _check(tried, first)
        tests.append(_test(tried, level, confidence, loss.fitting(tried.evaluations), pooled))
        if not tests[-1].passed:
            break
    if first is None:
        raise LooklessError("there is no plan to certify: give one or more, from mild to aggressive.")
    length = len(chain) if length is None and isinstance(chain, Sequence) else length
    return Certificate(
        loss=loss.name,
        level=level,
        confidence=confidence,
        pooled=pooled,
        model=first.evaluations[0].model,
        tests=tuple(tests),
        untested=max(0, (length or 0) - len(tests)),
    )


def bound(tried: Tried, *, confidence: float = 0.95, loss: str | Loss = "lost", pooled: bool = False) -> Certificate:
    """The smallest level that can be promised of one plan: the upper confidence bound on the loss of its worst task.

    For a plan that was chosen by something else than its loss on these questions, as by a budget. It needs no
    correction over tasks: the task that is worst in truth is under its own bound with ``confidence``. (That *all* tasks
    are under their own bounds at once is less sure.)

    Args:
        tried: the plan and its answers.
        confidence: that the true loss is not above the level.
        loss: what counts as lost, by name or as :class:`Loss`.
        pooled: all questions are one task.

    Raises:
        LooklessError: as :func:`certify`.
    """
    _check_share("confidence", confidence)
    _check(tried, tried)
    loss = (loss_named(loss) if isinstance(loss, str) else loss).fitting(tried.evaluations)
    level = max(upper(found, confidence, loss) for _, found in _groups(tried, loss, pooled))
    tests = _test(tried, level, confidence, loss, pooled)
    passed = tuple(task.model_copy(update={"passed": True, "needed": None}) for task in tests.tasks)
    return Certificate(
        loss=loss.name,
        level=level,
        confidence=confidence,
        asked=False,
        pooled=pooled,
        model=tried.evaluations[0].model,
        tests=(tests.model_copy(update={"tasks": passed}),),
    )


def p_value(losses: np.ndarray, level: float, confidence: float, loss: Loss) -> float:
    """Of the hypothesis that the mean loss is higher than ``level``."""
    if loss.binary:
        return float(exact_p_value(losses.sum(), len(losses), level))
    return betting_p_value(losses, level, confidence)


def upper(losses: np.ndarray, confidence: float, loss: Loss) -> float:
    """The upper confidence bound on the mean loss."""
    return exact_upper(int(losses.sum()), len(losses), confidence) if loss.binary else betting_upper(losses, confidence)


def needed(losses: np.ndarray, level: float, confidence: float, loss: Loss) -> int | None:
    """How many questions that count would pass, with losses as these; None if no number would."""
    if loss.binary:
        return exact_needed(int(losses.sum()), len(losses), level, confidence)
    return betting_needed(losses, level, confidence)


def _groups(tried: Tried, loss: Loss, pooled: bool) -> list[tuple[tuple[Evaluation, ...], np.ndarray]]:
    """What is tested as one, with its losses: each task, or all together."""
    groups = [tuple(tried.evaluations)] if pooled else [(evaluation,) for evaluation in tried.evaluations]
    return [(group, losses_of(group, loss)) for group in groups]


def _test(tried: Tried, level: float, confidence: float, loss: Loss, pooled: bool) -> PlanTest:
    tests = []
    for group, found in _groups(tried, loss, pooled):
        p, samples = p_value(found, level, confidence, loss), sum(one.samples for one in group)
        passed = p <= 1 - confidence
        count = None if passed else needed(found, level, confidence, loss)
        tests.append(
            TaskTest(
                task=ALL if len(group) > 1 else group[0].data,
                data_hash=None if len(group) > 1 else group[0].data_hash,
                samples=samples,
                n=len(found),
                bad=int((found > 0).sum()),
                loss=float(found.mean()) if len(found) else 0.0,
                p_value=p,
                upper=upper(found, confidence, loss),
                passed=passed,
                needed=count if count is None or not len(found) else -(-count * samples // len(found)),
            )
        )
    return PlanTest(plan=tried.plan, plan_hash=tried.evaluations[0].plan_hash, tasks=tuple(tests))


def _check_share(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise LooklessError(f"a {what} of {value} is not between 0 and 1.")


def _check(tried: Tried, first: Tried) -> None:
    """Raises: LooklessError: the answers of ``tried`` cannot test it, or are to other questions than those of the
    ``first`` plan."""
    if not tried.evaluations:
        raise LooklessError(f"{tried.plan} has no answers: evaluate it on the data.")
    for mine, other in zip(tried.evaluations, first.evaluations, strict=False):
        if (mine.data_hash, mine.model) != (other.data_hash, other.model):
            raise LooklessError(
                f"{tried.plan} answered {mine.data} with {mine.model} and {first.plan} {other.data} with "
                f"{other.model}, on other samples or another model: a chain is tested on the same ones."
            )
    if len(tried.evaluations) != len(first.evaluations):
        raise LooklessError(
            f"{tried.plan} was tried on {len(tried.evaluations)} tasks and {first.plan} on {len(first.evaluations)}: "
            f"a chain is tested on the same ones."
        )
    if len({evaluation.plan_hash for evaluation in tried.evaluations}) > 1:
        raise LooklessError(f"the answers of {tried.plan} are those of different plans: give those of one.")
    for mine in tried.evaluations:
        if mine.seen != 0:
            raise LooklessError(
                f"{tried.plan} was calibrated on {'some' if mine.seen is None else mine.seen} of the {mine.samples} "
                f"samples of {mine.data}: certify on samples that it has not seen."
            )
