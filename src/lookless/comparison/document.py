"""The document of ``lookless table``: what every method keeps, and what it costs, on each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ..figures import Retained, retention_figure
from ..markdown import spliced, wrapped
from ..methods import Method
from ..metrics import DEFAULT
from ..plan import Plan
from .columns import Row, columns_of
from .contestants import Contestant, contestants_of
from .results import Results, method_and_setting
from .settings import PAPER, Setting
from .statistics import retention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- what follows is written by `lookless table` -->", "<!-- end of what `lookless table` writes -->"
COLUMNS = (
    "*FLOPs* are those of the decoder's prefill; what down-sampling saves in the vision tower is not counted. *Papers' "
    "count*: dead work, whose result nothing reads, is counted in the plan and in the model, as papers do. *Run*: what "
    "the runtime computes, as a share of what the stock model computes. Budgets are shares of this kind. *Run, by "
    "liveness*: the same, as a share of the model without its dead work (the row `liveness`): what the method itself "
    "saves. *Prefill time* is that of the decoder's layers, as a share of stock's, timed in turn with it; equal times "
    "are of batch 8. *Retention* pools the questions of all tasks; the column after it is the mean of the tasks' "
    "ratios, as papers average. *Hard questions* are those that the dense model answers right, and down-sampling at "
    "the same price wrong. For a method with random choices, every column is the mean over its draws, with the lowest "
    "and highest retention."
)


def document(
    before: str,
    results: Sequence[Results],
    methods: Mapping[str, Method],
    figure: str,
    plans: Mapping[str, Plan] | None = None,
) -> str:
    """``before``, the file as it was, with new tables; text outside the generated block is kept."""
    contestants = contestants_of(methods, plans)
    sections = (markdown_section(r, contestants) for r in results)
    body = "\n\n".join([COLUMNS, f"![Retention by FLOPs kept]({figure})", *sections])
    return spliced(before, BEGIN, END, wrapped(body))


def markdown_section(results: Results, contestants: Mapping[str, Contestant]) -> str:
    """One model: its dense answers, the methods at their papers' settings, and at each price."""
    dense = {task: next(o.dense for o in results.outcomes if o.task == task) for task in results.tasks}
    right = ", ".join(f"{task.split(':')[-1]} {100 * np.mean(dense[task]):.0f}" for task in dense)
    stock = ", ".join(f"{ms:.1f} ms at batch {batch}" for batch, ms in sorted(results.dense_ms.items()))
    lines = [
        f"## {results.model}: {results.geometry.model_type}",
        "",
        f"{results.geometry}. {results.questions} questions of each of {len(dense)} tasks; methods that calibrate use "
        f"{results.samples} other images of each. Right answers of the dense model, %: {right}. "
        + _scored(results)
        + (f"Prefill of the stock decoder: {stock}. " if stock else "")
        + results.machine,
    ]
    for setting in results.settings:
        title = "At the paper's setting, for this model or at the same relative depth"
        title = title if setting == PAPER else f"At {setting.title}"
        lines += ["", f"### {title}", "", *_table(results, setting, contestants)]
    for head, entries in (("Notes:", results.notes), ("Not in the table:", results.missed)):
        named = [f"* {name} ({setting.title}): {what}" for name, setting, what in _by_place(entries)]
        lines += ["", head, "", *named] if named else []
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def _scored(results: Results) -> str:
    """A sentence on the metrics, where they are not all the default."""
    names = list(dict.fromkeys(results.metrics.values()))
    return "" if names in ([], [DEFAULT]) else f"Answers are scored by {', '.join(names)}. "


def _by_place(entries: Mapping[str, str]) -> list[tuple[str, Setting, str]]:
    """Entries by method and setting, in the order of the tables."""
    found = [(*method_and_setting(key), what) for key, what in entries.items()]
    return sorted(found, key=lambda entry: entry[1].place)


def _table(results: Results, setting: Setting, contestants: Mapping[str, Contestant]) -> list[str]:
    """Lines, the best method first."""
    rows = [Row(results, who, setting) for name, who in contestants.items() if results.of(name, setting)]
    columns = columns_of(results, setting)
    return [
        "| " + " | ".join(head for head, _ in columns) + " |",
        "|---" + "|---:" * (len(columns) - 1) + "|",
        *("| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in sorted(rows, key=_by_retention)),
    ]


def _by_retention(row: Row) -> float:
    """What sorts rows, the best first."""
    estimate = retention(row.outcomes)
    return 1.0 if estimate is None else -estimate.value


def results_figure(results: Sequence[Results]) -> Figure:
    """Answers kept, of each model at each setting."""
    return retention_figure({one.model: dict(_by_setting(one)) for one in results})


def _by_setting(results: Results) -> Iterator[tuple[str, list[Retained]]]:
    """The paper's setting first, then the budgets."""
    for setting in results.settings:
        found = []
        for name in dict.fromkeys(o.method for o in results.outcomes if o.setting == setting.key):
            outcomes = results.of(name, setting)
            estimate = retention(outcomes)
            if estimate is not None:
                kept = fmean(o.kept for o in outcomes)
                found.append(Retained(name, kept, estimate.value, estimate.low, estimate.high))
        yield f"at {setting.title}", found
