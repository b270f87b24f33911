"""What a plan set costs in answers."""

from __future__ import annotations

from collections.abc import Sequence

from ..answers import scored_by
from ..data import Samples
from ..evaluation import Evaluation, compared, dense_answers
from ..loading import Loaded
from ..unfinished import Unfinished
from .planset import FALLBACK, PlanSet
from .router import Router


class RoutedEvaluation(Evaluation):
    """An evaluation whose every question had the plan of its prompt.

    Attributes:
        routes: of each question the task it was routed to, or ``fallback``.
        confidences: of each question's route.
        counts: how many questions took each plan.
    """

    routes: tuple[str, ...]
    confidences: tuple[float, ...]
    counts: dict[str, int]


def evaluate_routed(
    loaded: Loaded,
    samples: Samples,
    planset: PlanSet,
    *,
    batch: int = 25,
    max_new_tokens: int = 32,
    dense: Sequence[str] | None = None,
    metric: str | None = None,
    progress: bool = True,
    kept: Unfinished | None = None,
) -> RoutedEvaluation:
    """As :func:`lookless.evaluate`, each question under the plan of its prompt.

    The dense model's answers are kept as they come, and split over processes; those under the plans are not.

    Args:
        loaded: the model.
        samples: with their answers.
        planset: plans by task, fitted on this model.
        batch, max_new_tokens, metric, progress, dense, kept: as there.

    Raises:
        PlanMismatchError: the set was fitted on another model.
        DataError, ModelError: as :func:`lookless.evaluate`.

    Warns:
        SeenWarning: a plan of the set was calibrated on some of the samples, or the router was fitted on them.
    """
    samples = scored_by(samples, metric)
    router = Router(planset, loaded)
    dense = dense_answers(loaded, samples, batch, max_new_tokens, progress, kept) if dense is None else dense
    routes = router.route_samples(samples.items, progress=progress)
    answers = router.answer(samples.items, routes=routes, batch=batch, max_new_tokens=max_new_tokens, progress=progress)
    found = compared(loaded.name, samples, dense, answers, planset.provenance)
    names = [route.name for route in routes]
    return RoutedEvaluation(
        **dict(found),
        routes=tuple(names),
        confidences=tuple(route.confidence for route in routes),
        counts={name: names.count(name) for name in (*planset.plans, FALLBACK)},
    )
