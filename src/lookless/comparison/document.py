"""The document of ``lookless table``: what every method keeps, and what it costs, on each model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation import Estimate, paired_difference
from ..figures import Retained, retention_figure
from ..markdown import spliced, wrapped
from ..methods import Method
from .results import PAPER, Outcome, Results, by_question, retention
from .run import LIVENESS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- what follows is written by `lookless table` -->", "<!-- end of what `lookless table` writes -->"
CONTROL = "random-tokens"
COLUMNS = (
    "*FLOPs* are those of the decoder's prefill. *Papers' count*: dead work, whose result nothing reads, is counted in "
    "the plan and in the model, as papers do. *Run*: what the runtime computes, as a share of what the stock model "
    "computes. Budgets are shares of this kind; compare *prefill time*, also a share of stock's, with it. *Run, by "
    "liveness*: the same, as a share of the model without its dead work (the row `liveness`): what the method itself "
    "saves. For a method with random choices, every column is the mean over its draws, with the lowest and highest "
    "retention."
)


def document(before: str, results: Sequence[Results], methods: Mapping[str, Method], figure: str) -> str:
    """``before``, the file as it was, with new tables; text outside the generated block is kept."""
    known = {LIVENESS.name: LIVENESS, **methods}
    sections = (markdown_section(r, known) for r in results)
    body = "\n\n".join([COLUMNS, f"![Retention by FLOPs kept]({figure})", *sections])
    return spliced(before, BEGIN, END, wrapped(body))


def markdown_section(results: Results, methods: Mapping[str, Method]) -> str:
    """One model: its dense answers, the methods at their papers' settings, and at each budget."""
    tasks = list(dict.fromkeys(o.task for o in results.outcomes))
    dense = {task: next(o for o in results.outcomes if o.task == task) for task in tasks}
    right = ", ".join(f"{_short(task)} {100 * np.mean(dense[task].dense):.0f}" for task in tasks)
    lines = [
        f"## {results.model}: {results.geometry.model_type}",
        "",
        f"{results.geometry}. {results.questions} questions of each of {len(tasks)} tasks; methods that calibrate use "
        f"{results.samples} other images of each. Right answers of the dense model, %: {right}. {results.machine}",
    ]
    settings = list(dict.fromkeys(o.setting for o in results.outcomes))
    for setting in settings:
        title = "At the paper's setting, for this model or at the same relative depth"
        title = title if setting == PAPER else f"At {float(setting):.0%}"
        lines += [
            "",
            f"### {title}{'' if setting == PAPER else ' of the FLOPs'}",
            "",
            *_table(results, setting, methods),
        ]
    for head, entries in (("Notes:", results.notes), ("Not in the table:", results.missed)):
        named = [f"* {key.split(', ')[0]} ({_setting(key.split(', ')[1])}): {what}" for key, what in entries.items()]
        lines += ["", head, "", *named] if named else []
    return "\n".join(lines)


def _table(results: Results, setting: str, methods: Mapping[str, Method]) -> list[str]:
    """Lines, the best method first."""
    tasks = list(dict.fromkeys(o.task for o in results.outcomes))
    budget = setting != PAPER
    heads = ["method", "FLOPs, papers' count, %", "FLOPs run, %", "FLOPs run, by liveness, %"]
    heads += ["prefill time, %", "retention, %"]
    heads += ["points above random tokens"] if budget else []
    heads += ["prefix-cache safe"]
    rows = [
        "| " + " | ".join([*heads, *map(_short, tasks)]) + " |",
        "|---" + "|---:" * (len(heads) + len(tasks) - 1) + "|",
    ]
    for name in sorted((name for name in methods if results.of(name, setting)), key=_by_retention(results, setting)):
        cells = [*_prices(results, name, setting), _retained(results.of(name, setting))]
        cells += [_above_control(results, name, setting)] if budget else []
        cells += ["yes" if methods[name].is_prefix_cache_safe else "no"]
        for task in tasks:
            right = [o.right for o in results.of(name, setting) if o.task == task]
            cells.append(f"{100 * np.mean(right):.0f}")
        rows.append("| " + " | ".join([name, *cells]) + " |")
    return rows


def _by_retention(results: Results, setting: str) -> Callable[[str], float]:
    """What sorts methods, the best first."""

    def key(name: str) -> float:
        estimate = retention(results.of(name, setting))
        return -1.0 if estimate is None else -estimate.value

    return key


def _prices(results: Results, name: str, setting: str) -> list[str]:
    """FLOPs by each count, and time."""
    outcomes = results.of(name, setting)
    shares = [_share([getattr(o, price) for o in outcomes]) for price in ("kept_papers", "kept", "kept_live")]
    return [*shares, f"{100 * results.times[f'{name}, {setting}']:.0f}"]


def _above_control(results: Results, name: str, setting: str) -> str:
    control = results.of(CONTROL, setting)
    if name == CONTROL:
        return "the control"
    return _points(_against(results.of(name, setting), control)) if control else "-"


def _against(outcomes: Sequence[Outcome], control: Sequence[Outcome]) -> Estimate:
    """Difference of accuracy, question by question."""
    return paired_difference(by_question(outcomes), by_question(control))


def _share(prices: Sequence[float | None]) -> str:
    known = [price for price in prices if price is not None]
    return f"{100 * fmean(known):.0f}" if known else "-"


def _retained(outcomes: Sequence[Outcome]) -> str:
    """With its interval; of several draws with the lowest and the highest."""
    draws = {o.draw for o in outcomes}
    each = [retention([o for o in outcomes if o.draw == draw]) for draw in draws]
    whole, known = retention(outcomes), [100 * e.value for e in each if e is not None]
    if whole is None or len(draws) == 1:
        return _percent(whole)
    return f"{100 * whole.value:.1f} ({len(draws)} draws: {min(known):.1f} to {max(known):.1f})"


def _percent(e: Estimate | None) -> str:
    return "-" if e is None else f"{100 * e.value:.1f} ({100 * e.low:.1f} to {100 * e.high:.1f})"


def _points(e: Estimate) -> str:
    sure = "**" if e.low > 0 or e.high < 0 else ""
    return f"{sure}{100 * e.value:+.1f}{sure} ({100 * e.low:+.1f} to {100 * e.high:+.1f})"


def _short(task: str) -> str:
    return task.split(":")[-1]


def _setting(setting: str) -> str:
    return "paper's setting" if setting == PAPER else f"{float(setting):.0%} of the FLOPs"


def results_figure(results: Sequence[Results]) -> Figure:
    """Answers kept, of each model at each setting."""
    return retention_figure({one.model: dict(_by_setting(one)) for one in results})


def _by_setting(results: Results) -> Iterator[tuple[str, list[Retained]]]:
    """The paper's setting first, then the budgets."""
    for setting in dict.fromkeys(o.setting for o in results.outcomes):
        found = []
        for name in dict.fromkeys(o.method for o in results.outcomes if o.setting == setting):
            outcomes = results.of(name, setting)
            estimate = retention(outcomes)
            if estimate is not None:
                kept = fmean(o.kept for o in outcomes)
                found.append(Retained(name, kept, estimate.value, estimate.low, estimate.high))
        yield ("at the paper's setting" if setting == PAPER else f"at {_setting(setting)}"), found
