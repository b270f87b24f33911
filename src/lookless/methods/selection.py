"""Which layers: the part that methods which act on the lowest scores have in common."""

from __future__ import annotations

from ..cells import Cell
from ..errors import PlanError
from ..plan import Plan
from ..scores import Scores


def ranking(scores: Scores) -> tuple[int, ...]:
    """All layers, the lowest mean first; ties go to the deeper layer, as in :meth:`Scores.lowest`."""
    return tuple(sorted(range(scores.geometry.layers), key=lambda layer: (scores.mean[layer], -layer)))


def first(order: tuple[int, ...], layers: int, total: int, what: str = "skip") -> tuple[int, ...]:
    """The first ``layers`` of ``order``. Raises: PlanError: there are fewer."""
    if not 0 <= layers <= total:
        raise PlanError(f"asked to {what} {layers} layers and the model has {total}.")
    return order[:layers]


def change_lowest(scores: Scores, layers: int, **cells: Cell) -> Plan:
    """``cells`` in the ``layers`` layers with the lowest mean score.

    Raises:
        PlanError: there are fewer layers.
        ScoresError: the scores were screened for another number of them.
    """
    count = len(first(ranking(scores), layers, scores.geometry.layers))
    return Plan.full(scores.geometry).at(scores.lowest(count), **cells)
