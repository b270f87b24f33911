"""The columns of the table: one cell of one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ..evaluation import Estimate
from .contestants import DOWNSAMPLING, Contestant
from .results import Outcome, Results, of_task, row_key
from .settings import Setting
from .statistics import by_question, hard, points_above, retention, retention_by_task

RANDOM = "random-tokens"


@dataclass(frozen=True)
class Row:
    """One contestant at one setting.

    Attributes:
        outcomes: of all tasks and draws.
    """

    results: Results
    who: Contestant
    setting: Setting

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return self.results.of(self.who.name, self.setting)

    def beside(self, control: str) -> tuple[Outcome, ...]:
        """Those of a control at the same setting."""
        return self.results.of(control, self.setting)


Column = tuple[str, Callable[[Row], str]]


def columns_of(results: Results, setting: Setting) -> list[Column]:
    """Heads, and what makes the cells below them."""
    wrong = results.of(DOWNSAMPLING.name, setting)
    count = int(hard(wrong).sum()) if wrong else 0
    return [
        ("method", lambda row: row.who.name),
        ("FLOPs, papers' count, %", lambda row: _share([o.kept_papers for o in row.outcomes])),
        ("FLOPs run, %", lambda row: _share([o.kept for o in row.outcomes])),
        ("FLOPs run, by liveness, %", lambda row: _share([o.kept_live for o in row.outcomes])),
        ("prefill time, batch 1, %", lambda row: _time(row, 1)),
        ("prefill time, batch 8, %", lambda row: _time(row, 8)),
        ("retention, %", lambda row: _retained(row.outcomes)),
        ("mean of the tasks' retentions, %", lambda row: percent(retention_by_task(row.outcomes))),
        ("points above random tokens", lambda row: _above(row, RANDOM)),
        ("points above down-sampling", lambda row: _above(row, DOWNSAMPLING.name)),
        (f"right of the {count} hard questions, %", _hard),
        ("prefix-cache safe", lambda row: "yes" if row.who.is_prefix_cache_safe else "no"),
        *((task.split(":")[-1], _right(task)) for task in results.tasks),
    ]


def _right(task: str) -> Callable[[Row], str]:
    return lambda row: f"{100 * np.mean([o.right for o in of_task(row.outcomes, task)]):.0f}"


def _time(row: Row, batch: int) -> str:
    times = row.results.times.get(row_key(row.who.name, row.setting), {})
    return f"{100 * times[batch]:.0f}" if batch in times else "-"


def _above(row: Row, control: str) -> str:
    theirs = row.beside(control)
    if row.who.name == control:
        return "the control"
    return _points(points_above(row.outcomes, theirs)) if theirs else "-"


def _hard(row: Row) -> str:
    """Of the questions that down-sampling gets wrong and the dense model right."""
    control = row.beside(DOWNSAMPLING.name)
    if row.who.name == DOWNSAMPLING.name:
        return "the control"
    chosen = hard(control) if control else np.zeros(0, dtype=bool)
    return f"{100 * by_question(row.outcomes)[chosen].mean():.0f}" if chosen.any() else "-"


def _share(prices: Sequence[float | None]) -> str:
    known = [price for price in prices if price is not None]
    return f"{100 * fmean(known):.0f}" if known else "-"


def _retained(outcomes: Sequence[Outcome]) -> str:
    """With its interval; of several draws with the lowest and the highest."""
    draws = {o.draw for o in outcomes}
    each = [retention([o for o in outcomes if o.draw == draw]) for draw in draws]
    whole, known = retention(outcomes), [100 * e.value for e in each if e is not None]
    if whole is None or len(draws) == 1:
        return percent(whole)
    return f"{100 * whole.value:.1f} ({len(draws)} draws: {min(known):.1f} to {max(known):.1f})"


def percent(e: Estimate | None) -> str:
    return "-" if e is None else f"{100 * e.value:.1f} ({100 * e.low:.1f} to {100 * e.high:.1f})"


def _points(e: Estimate) -> str:
    sure = "**" if e.low > 0 or e.high < 0 else ""
    return f"{sure}{100 * e.value:+.1f}{sure} ({100 * e.low:+.1f} to {100 * e.high:+.1f})"
