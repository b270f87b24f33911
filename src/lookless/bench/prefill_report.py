"""The report of ``lookless bench``: the same cells for a terminal and for Markdown, and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .. import files
from ..figures import INK, KEPT, MUTED, SKIPPED, panels_of, save_figure
from ..markdown import markdown_table
from .prefill_results import STOCK, BreakEven, PlanTiming, PrefillReport, PrefillSeries, Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS = (
    "",
    "prefill ms",
    "time kept",
    "TFLOPs (kept)",
    "efficiency",
    "x lower bound",
    "tower ms",
    "TTFT ms",
    "TPOT ms",
    "cache MiB",
    "peak MiB",
)
SPLIT = 6  # columns before this one are of the prefill
NOTE = (
    "Prefill: the decoder's layers. Efficiency: the share of its time saved over the share of its FLOPs saved. "
    "Lower bound: its matrix products and attention calls alone. TTFT: the whole first call. TPOT: the decoder's "
    "layers in one decode step. Peak: above weights and inputs."
)
NO_TOWER = " No tower runs: a geometry's visual features are random."
NEVER = "Never: not faster at the largest value timed either."


def title(r: PrefillReport) -> str:
    prompts = f", prompts of {r.data}" if r.data else ""
    return f"{r.model}{prompts}: {r.visual} visual and {r.text} text tokens, batch {r.batch}"


def describe(r: PrefillReport) -> str:
    """On what, and how, a report was made."""
    where = f"{r.machine}, {r.threads} threads" if r.device == "cpu" else r.device
    versions = ", ".join(f"{name} {version}" for name, version in r.versions.items())
    return f"{r.dtype}, {where}, {r.attention}, {versions}; median of {r.repeats} rounds (quartiles), timed in turn."


def note(reports: Sequence[PrefillReport]) -> str:
    """What the columns mean."""
    return NOTE + ("" if any(t.tower_ms for r in reports for t in r.timed) else NO_TOWER)


def cut_note(r: PrefillReport) -> str:
    """How the first layers differ from the whole model; empty where all were timed."""
    if r.whole_layers is None:
        return ""
    here, plans = r.geometry.layers, [t for t in r.timed if t.name != STOCK and t.whole_flops_kept is not None]
    kept = ", ".join(f"{t.name} {t.whole_flops_kept:.1%}" for t in plans)
    return (
        f"One layer in {here} is the last one here, where work on visual tokens is dead and skipped under every plan; "
        f"in the whole model it is one in {r.whole_layers}."
        + (f" Kept of the whole model's FLOPs: {kept}." if kept else "")
    )


def cells(t: PlanTiming) -> tuple[str, ...]:
    """One row under :data:`HEADS`."""
    return (
        t.name,
        f"{_ms(t.prefill_ms)} ({_number(t.prefill_ms.low)} to {_number(t.prefill_ms.high)})",
        f"{t.time_kept:.1%}",
        "-" if t.flops_kept is None else f"{t.prefill_tflops:.3g} ({t.flops_kept:.1%})",
        "-" if t.efficiency is None else f"{t.efficiency:.2f}",
        "-" if t.times_lower_bound is None else f"{t.times_lower_bound:.2f}",
        _ms(t.tower_ms),
        _ms(t.ttft_ms),
        _ms(t.tpot_ms),
        f"{t.cache_mib:.1f}",
        f"{t.peak_mib:.1f}",
    )


def bench_tables(report: PrefillReport) -> tuple[Table, Table]:
    """Stock and plans, for a terminal: two tables, which fit in 80 columns where one would not."""
    rows = [cells(timed) for timed in report.timed]
    prefill = _table(HEADS[:SPLIT], (row[:SPLIT] for row in rows), title=title(report))
    caption = "\n".join(filter(None, (describe(report), note([report]), cut_note(report))))
    rest = _table((HEADS[0], *HEADS[SPLIT:]), ((row[0], *row[SPLIT:]) for row in rows), caption=caption)
    return prefill, rest


def break_even_table(series: PrefillSeries) -> Table:
    """From where on each plan is faster than stock, for a terminal."""
    heads, *rows = _break_even(series.break_even)
    return _table(heads, rows, title="a plan is faster than stock from", caption=NEVER)


def markdown_section(report: PrefillReport) -> str:
    """A heading, a sentence and a table."""
    parts = [
        f"### {title(report)}",
        describe(report),
        cut_note(report),
        markdown_table(HEADS, map(cells, report.timed)),
    ]
    return "\n\n".join(filter(None, parts))


def document(series: PrefillSeries, figure: str) -> str:
    """Everything in Markdown; ``figure`` is the figure's file name."""
    parts = ["# Stock and plans, timed in turn", f"![Time kept]({figure})", note(series.reports)]
    if series.break_even:
        heads, *rows = _break_even(series.break_even)
        parts += ["## Break-even", f"A plan is faster than stock from here on. {NEVER}", markdown_table(heads, rows)]
        parts += ["## Each length and batch"]
    return "\n\n".join([*parts, *map(markdown_section, series.reports)]) + "\n"


def save(series: PrefillSeries, folder: Path) -> None:
    """``bench.json``, ``bench.md`` and ``bench.png`` in ``folder``, each whole or not at all."""
    files.write_text(folder / "bench.json", files.dump(series))
    save_figure(bench_figure(series), folder / "bench.png")
    files.write_text(folder / "bench.md", document(series, "bench.png"))


def bench_figure(series: PrefillSeries) -> Figure:
    """Bars of one report; lines of several."""
    return _lines(series) if len(series.reports) > 1 else _bars(series.reports[0])


def _bars(report: PrefillReport) -> Figure:
    """Time kept as bars, each with the FLOPs kept and the lower bound."""
    figure, [axes] = panels_of(1, height=0.5 * len(report.timed) + 1.2, columns=1, width=7.2)
    stock = report.of(STOCK).prefill_ms.median
    names = [t.name for t in report.timed]
    axes.barh(names, [t.time_kept for t in report.timed], height=0.55, color=KEPT, label="time kept")
    for row, t in enumerate(report.timed):
        axes.text(0.01, row, f"{t.time_kept:.0%}", color="white", va="center", fontsize=8)
    bounds = [None if t.lower_bound_ms is None else t.lower_bound_ms.median / stock for t in report.timed]
    for label, values, style in (
        ("FLOPs kept", [t.flops_kept for t in report.timed], {"marker": "|", "s": 400, "lw": 2, "color": INK}),
        ("lower bound", bounds, {"marker": "D", "s": 36, "color": SKIPPED}),
    ):
        there = [(value, name) for value, name in zip(values, names, strict=True) if value is not None]
        axes.scatter(*zip(*there, strict=True), label=label, zorder=3, **style)
    axes.axvline(1, color=MUTED, lw=1, ls="--")
    axes.invert_yaxis()
    axes.set_xlabel("share of the stock prefill", fontsize=9)
    axes.xaxis.set_major_formatter("{x:.0%}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False, markerscale=0.7)
    _head(figure, title(report), report)
    return figure


def _lines(series: PrefillSeries) -> Figure:
    """Time kept by visual tokens, a panel per batch, or by batch if only that was varied; break-even ringed."""
    reports = series.reports
    along, other = ("visual", "batch") if len({r.visual for r in reports}) > 1 else ("batch", "visual")
    panels = sorted({getattr(r, other) for r in reports})
    figure, axes = panels_of(len(panels), height=3.6, columns=min(2, len(panels)), width=5.4)
    for axis, at in zip(axes, panels, strict=True):
        line = sorted((r for r in reports if getattr(r, other) == at), key=lambda r: int(getattr(r, along)))
        _line(
            axis,
            [getattr(r, along) for r in line],
            line,
            [b for b in series.break_even if (b.along, b.at) == (along, at)],
        )
        axis.set_title(f"batch {at}" if other == "batch" else f"{at} visual tokens", loc="left", fontsize=10, color=INK)
        axis.set_xlabel("visual tokens" if along == "visual" else "batch", fontsize=9)
        axis.set_ylim(
            0, 1.05 * max(t.time_kept for r in reports for t in r.timed)
        )  # one scale: they are to be compared
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    first = f"{reports[0].model}, {reports[0].text} text tokens; ring: from there on the plan is faster than stock"
    _head(figure, first, reports[0])
    return figure


def _line(axis: Any, places: Sequence[int], line: Sequence[PrefillReport], even: Sequence[BreakEven]) -> None:
    axis.axhline(1, color=MUTED, lw=1, ls="--")
    for index, timed in enumerate(line[0].timed[1:]):
        kept = [report.of(timed.name).time_kept for report in line]
        axis.plot(places, kept, "-o", ms=3.5, lw=1.4, color=f"C{index}", label=timed.name)
        pays = next((b.pays_from for b in even if b.name == timed.name), None)
        if pays is not None:
            axis.plot(pays, kept[places.index(pays)], "o", ms=9, mfc="none", color=f"C{index}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, map(str, places))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.set_ylabel("prefill time, share of stock", fontsize=9)


def _head(figure: Figure, first: str, report: PrefillReport) -> None:
    width = int(13 * figure.get_figwidth())  # letters of this size per inch
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in (first, describe(report))), fontsize=9)


def _break_even(found: Sequence[BreakEven]) -> list[tuple[str, ...]]:
    """Heads, and a row for each plan."""
    rows: dict[str, list[str]] = {}
    for one in found:
        rows.setdefault(one.name, []).append(str(one.pays_from or "never"))
    lines = dict.fromkeys((one.along, one.at) for one in found)
    heads = (f"visual tokens, batch {at}" if along == "visual" else f"batch, {at} visual tokens" for along, at in lines)
    return [("", *heads), *((name, *row) for name, row in rows.items())]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], **options: Any) -> Table:
    table = Table(**options)
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=not head)
    for row in rows:
        table.add_row(*row)
    return table


def _ms(spread: Spread | None) -> str:
    return "-" if spread is None else _number(spread.median)


def _number(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"
