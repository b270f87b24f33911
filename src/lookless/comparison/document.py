"""The document that ``lookless table`` writes: what every method keeps, and what it costs, on each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation import Estimate, paired_difference
from ..figures import INK, KEPT, MUTED, SKIPPED, panels_of
from ..methods import Method
from .results import PAPER, Outcome, Results, accuracy, by_question, retention
from .run import LIVENESS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN, END = "<!-- what follows is written by `lookless table` -->", "<!-- end of what `lookless table` writes -->"
CONTROL = "random-tokens"
COLUMNS = (
    "*FLOPs* are of the decoder's prefill. *Papers' count*: with work that nobody reads counted in both the plan and "
    "the model, as papers do. *Run*: what the runtime computes, as a share of what the stock model computes; budgets "
    "are of this one, and *prefill time*, also a share of stock's, is to be compared with it. *Run, by liveness*: the "
    "same as a share of what is left of the model when such work alone is skipped (the row `liveness`), so what the "
    "method itself saves. Of a method that draws, all is the mean of its draws, with the lowest and highest retention."
)


def document(before: str, results: Sequence[Results], methods: Mapping[str, Method], figure: str) -> str:
    """``before``, the file as it was, with the tables in it anew; whatever stands outside the marks stays."""
    known = {LIVENESS.name: LIVENESS, **methods}
    body = "\n\n".join([COLUMNS, f"![Retention by FLOPs kept]({figure})", *(section(r, known) for r in results)])
    block = f"{BEGIN}\n\n{body}\n\n{END}"
    if BEGIN in before and END in before:
        head, rest = before.split(BEGIN, 1)
        return head + block + rest.split(END, 1)[1]
    return (before.rstrip() + "\n\n" if before.strip() else "") + block + "\n"


def section(results: Results, methods: Mapping[str, Method]) -> str:
    """One model: its dense answers, the methods at their papers' settings, and at each budget."""
    tasks = list(dict.fromkeys(o.task for o in results.outcomes))
    dense = {task: next(o for o in results.outcomes if o.task == task) for task in tasks}
    told = ", ".join(f"{_short(task)} {100 * np.mean(dense[task].dense):.0f}" for task in tasks)
    lines = [
        f"## {results.model}: {results.geometry.model_type}",
        "",
        f"{results.geometry}. {results.questions} questions of each of {len(tasks)} tasks; methods that calibrate saw "
        f"{results.samples} other images of each. Dense answers right, %: {told}. {results.machine}",
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
    for head, said in (("To be known:", results.notes), ("Not there:", results.missed)):
        named = [f"* {key.split(', ')[0]} ({_setting(key.split(', ')[1])}): {what}" for key, what in said.items()]
        lines += ["", head, "", *named] if named else []
    return "\n".join(lines)


def _table(results: Results, setting: str, methods: Mapping[str, Method]) -> list[str]:
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
    names = [name for name in methods if results.of(name, setting)]
    control = results.of(CONTROL, setting)

    def kept_answers(name: str) -> float:
        estimate = retention(results.of(name, setting))
        return -1.0 if estimate is None else -estimate.value

    for name in sorted(names, key=kept_answers):
        outcomes = results.of(name, setting)
        better = "the control" if name == CONTROL else _points(_against(outcomes, control)) if control else "-"
        cells = [
            f"{name}",
            *(_share([getattr(o, price) for o in outcomes]) for price in ("kept_papers", "kept", "kept_live")),
            f"{100 * results.times[f'{name}, {setting}']:.0f}",
            _retained(outcomes),
            *([better] if budget else []),
            "yes" if methods[name].is_prefix_cache_safe else "no",
            *(f"{100 * np.mean([o.right for o in outcomes if o.task == task]):.0f}" for task in tasks),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


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


def retention_figure(results: Sequence[Results]) -> Figure:
    """Answers kept by FLOPs kept, a panel for each model; hollow at the paper's setting, full at a budget."""
    figure, axes = panels_of(len(results), height=4.8, columns=len(results), width=6.2)
    for axis, one in zip(axes, results, strict=False):
        dense = float(np.mean([r for o in one.outcomes if o.method == one.outcomes[0].method for r in o.dense]))
        for key in one.times:
            name, setting = key.split(", ")
            outcomes = one.of(name, setting)
            if not outcomes:
                continue
            x, y = fmean(o.kept for o in outcomes), accuracy(outcomes).value
            colour = SKIPPED if name.startswith("random") else KEPT
            axis.plot(x, y, "o", ms=6, mec=colour, mfc="none" if setting == PAPER else colour)
            if setting == PAPER and (
                x < 0.45 or y < dense - 0.025
            ):  # nearer the dense line names would cover each other
                axis.annotate(name, (x, y), xytext=(5, 2), textcoords="offset points", fontsize=6.5, color=INK)
        axis.axhline(dense, color=MUTED, lw=1, ls="--")
        axis.text(0.01, dense, " dense", color=MUTED, va="bottom", fontsize=8)
        axis.set(
            title=one.model, xlabel="share of the prefill's FLOPs that ran", ylabel="answers right", xlim=(0, 1.02)
        )
    figure.suptitle("Hollow: at the paper's setting. Full: at the budget. Orange: random, the control", fontsize=9)
    return figure
