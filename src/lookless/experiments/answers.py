"""What a table and a curve say of answers: FLOPs, retention, and how far draws differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from ..comparison.results import Outcome
from ..comparison.statistics import retention_by_task
from .charts import Line
from .report import Value

Outcomes = tuple[Outcome, ...]
#: by name, by what the curve is over: the outcomes of all tasks and draws
Curves = Mapping[str, Mapping[float, Outcomes]]
HEADS = (
    "FLOPs, papers' count, %",
    "FLOPs run, %",
    "mean of the tasks' retentions, %",
    "lowest to highest draw",
    "same answer, %",
)


def row_of(outcomes: Outcomes) -> tuple[Value, ...]:
    """Under :data:`HEADS`."""
    return (
        mean_kept_papers(outcomes),
        mean_kept(outcomes),
        retention_by_task(outcomes),
        _spread(outcomes),
        fmean(fmean(o.same) for o in outcomes),
    )


def curve_rows(curves: Curves) -> tuple[tuple[Value, ...], ...]:
    """Name, what the curve is over, and :func:`row_of`."""
    return tuple((name, at, *row_of(outcomes)) for name, points in curves.items() for at, outcomes in points.items())


def mean_kept(outcomes: Iterable[Outcome]) -> float:
    return fmean(o.kept for o in outcomes)


def mean_kept_papers(outcomes: Iterable[Outcome]) -> float | None:
    known = [o.kept_papers for o in outcomes if o.kept_papers is not None]
    return fmean(known) if known else None


def each_draw(outcomes: Outcomes) -> list[float]:
    """The mean of the tasks' retentions of each draw."""
    draws = dict.fromkeys(o.draw for o in outcomes)
    found = [retention_by_task([o for o in outcomes if o.draw == draw]) for draw in draws]
    return [one.value for one in found if one is not None]


def _spread(outcomes: Outcomes) -> str | None:
    each = each_draw(outcomes)
    return f"{100 * min(each):.1f} to {100 * max(each):.1f} %" if len(each) > 1 else None


def lines_of(curves: Curves) -> dict[str, Line]:
    """The mean of the draws, and a band from the lowest to the highest where there are several."""
    return {name: line_of(points) for name, points in curves.items()}


def line_of(points: Mapping[float, Outcomes]) -> Line:
    drawn = {at: each for at, outcomes in points.items() if (each := each_draw(outcomes))}
    several = any(len(each) > 1 for each in drawn.values())
    low, high = ([pick(each) for each in drawn.values()] if several else None for pick in (min, max))
    return Line([*drawn], [fmean(each) for each in drawn.values()], low, high)


def priced(curves: Curves) -> dict[str, Line]:
    """As :func:`lines_of`, over the share of FLOPs that ran."""
    return lines_of({name: {mean_kept(o): o for o in points.values()} for name, points in curves.items()})
