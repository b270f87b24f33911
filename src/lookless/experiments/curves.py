"""Retention over a number of layers, method by method: measured, as rows of a table, and as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ..comparison.results import Outcome
from ..comparison.statistics import points_above, retention, retention_by_task
from ..evaluation import Estimate
from .charts import Line
from .report import Value

Outcomes = tuple[Outcome, ...]
#: by name, by number of layers: the outcomes of all tasks and draws
Curves = Mapping[str, Mapping[int, Outcomes]]
HEADS = ("FLOPs, papers' count, %", "FLOPs run, %", "mean of the tasks' retentions, %", "lowest to highest draw, %", "same answer, %")


def kept_row(outcomes: Outcomes) -> tuple[Value, ...]:
    """Under :data:`HEADS`."""
    return (
        mean_kept_papers(outcomes),
        fmean(o.kept for o in outcomes),
        retention_by_task(outcomes),
        spread(outcomes),
        fmean(fmean(o.same) for o in outcomes),
    )


def mean_kept_papers(outcomes: Outcomes) -> float | None:
    known = [o.kept_papers for o in outcomes if o.kept_papers is not None]
    return fmean(known) if known else None


def spread(outcomes: Outcomes) -> str | None:
    """The lowest and the highest of the draws; None of one draw."""
    each = each_draw(outcomes)
    return f"{100 * min(each):.1f} to {100 * max(each):.1f}" if len(each) > 1 else None


def each_draw(outcomes: Outcomes) -> list[float]:
    """The mean of the tasks' retentions of each draw."""
    draws = dict.fromkeys(o.draw for o in outcomes)
    found = [retention_by_task([o for o in outcomes if o.draw == draw]) for draw in draws]
    return [one.value for one in found if one is not None]


def curve_rows(curves: Curves) -> tuple[tuple[Value, ...], ...]:
    """Name, number of layers, and :func:`kept_row`."""
    return tuple((name, count, *kept_row(o)) for name, points in curves.items() for count, o in points.items())


def lines_of(curves: Curves) -> dict[str, Line]:
    """The mean of the draws, and a band from the lowest to the highest where there are several."""
    return {name: _line(points) for name, points in curves.items()}


def _line(points: Mapping[int, Outcomes]) -> Line:
    drawn = {count: each for count, outcomes in points.items() if (each := each_draw(outcomes))}
    several = any(len(each) > 1 for each in drawn.values())
    low, high = ([pick(each) for each in drawn.values()] if several else None for pick in (min, max))
    return Line([*drawn], [fmean(each) for each in drawn.values()], low, high)


def retained(outcomes: Sequence[Outcome]) -> Estimate | None:
    """As the papers average it: see :func:`lookless.comparison.statistics.retention_by_task`."""
    return retention_by_task(outcomes)


def above(outcomes: Outcomes, others: Outcomes) -> Estimate:
    """Difference of accuracy in answers to the same questions."""
    return points_above(outcomes, others)


__all__ = ["HEADS", "above", "curve_rows", "each_draw", "kept_row", "lines_of", "retained", "retention"]
