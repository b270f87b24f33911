"""What ``lookless bench`` tells: the same cells for a terminal and for Markdown, and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .. import files
from ..figures import INK, KEPT, MUTED, SKIPPED, panels_of, save_figure
from .prefill_results import STOCK, BreakEven, Report, Spread, Sweep, Timed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS = (
    "",
    "prefill ms",
    "time kept",
    "TFLOPs (kept)",
    "realised / promised",
    "time / floor",
    "tower ms",
    "first token ms",
    "ms a token",
    "cache MiB",
    "peak MiB",
)
SPLIT = 6  # what stands before is of the prefill
NOTE = (
    "Prefill: of the decoder's layers. Realised / promised: share of its time saved, by share of its FLOPs saved. "
    "Floor: its matrix products and attention calls alone. First token: the whole call. Peak: above weights and inputs."
)
NO_TOWER = " No tower runs: a geometry's visual features are random."
NEVER = "Never: not even at the largest timed."


def title(r: Report) -> str:
    prompts = f", prompts of {r.data}" if r.data else ""
    return f"{r.model}{prompts}: {r.visual} visual and {r.text} text tokens, batch {r.batch}"


def told_of(r: Report) -> str:
    """On what, and how, a report was made."""
    where = f"{r.machine}, {r.threads} threads" if r.device == "cpu" else r.device
    versions = ", ".join(f"{name} {version}" for name, version in r.versions.items())
    return f"{r.dtype}, {where}, {r.attention}, {versions}; median of {r.repeats} rounds (quartiles), all in turn."


def note(reports: Sequence[Report]) -> str:
    """What the columns mean."""
    return NOTE + ("" if any(t.tower_ms for r in reports for t in r.timed) else NO_TOWER)


def cut_note(r: Report) -> str:
    """What a few layers do not show of the whole model; empty where all were timed."""
    if r.whole_layers is None:
        return ""
    here, plans = r.geometry.layers, [t for t in r.timed if t.name != STOCK and t.whole_flops_kept is not None]
    kept = ", ".join(f"{t.name} {t.whole_flops_kept:.1%}" for t in plans)
    return (
        f"One layer in {here} is the last here, and what visual tokens do in the last is read by nobody; in the whole "
        f"model it is one in {r.whole_layers}." + (f" Kept of the whole model's FLOPs: {kept}." if kept else "")
    )


def cells(t: Timed) -> tuple[str, ...]:
    """One row under :data:`HEADS`."""
    return (
        t.name,
        f"{_ms(t.prefill_ms)} ({_number(t.prefill_ms.low)} to {_number(t.prefill_ms.high)})",
        f"{t.time_kept:.1%}",
        "-" if t.flops_kept is None else f"{t.prefill_tflops:.3g} ({t.flops_kept:.1%})",
        "-" if t.realised is None else f"{t.realised:.2f}",
        "-" if t.over_floor is None else f"{t.over_floor:.2f}",
        _ms(t.tower_ms),
        _ms(t.first_token_ms),
        _ms(t.decode_ms),
        f"{t.cache_mib:.1f}",
        f"{t.peak_mib:.1f}",
    )


def bench_tables(report: Report) -> tuple[Table, Table]:
    """Stock and plans, for a terminal: two tables, which fit in 80 columns where one would not."""
    rows = [cells(timed) for timed in report.timed]
    prefill = _table(HEADS[:SPLIT], (row[:SPLIT] for row in rows), title=title(report))
    caption = "\n".join(filter(None, (told_of(report), note([report]), cut_note(report))))
    rest = _table((HEADS[0], *HEADS[SPLIT:]), ((row[0], *row[SPLIT:]) for row in rows), caption=caption)
    return prefill, rest


def break_even_table(sweep: Sweep) -> Table:
    """From where on each plan pays, for a terminal."""
    heads, *rows = _break_even(sweep.break_even)
    return _table(heads, rows, title="a plan is faster than stock from", caption=NEVER)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: the first column to the left, numbers to the right."""
    lines = (heads, ["---", *["---:"] * (len(heads) - 1)], *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section(report: Report) -> str:
    """A heading, a sentence and a table."""
    parts = [f"### {title(report)}", told_of(report), cut_note(report), markdown(HEADS, map(cells, report.timed))]
    return "\n\n".join(filter(None, parts))


def document(sweep: Sweep, figure: str) -> str:
    """Everything in Markdown; ``figure`` is the figure's file name."""
    parts = ["# Stock and plans, timed in turn", f"![Time kept]({figure})", note(sweep.reports)]
    if sweep.break_even:
        heads, *rows = _break_even(sweep.break_even)
        parts += ["## Break-even", f"A plan is faster than stock from here on. {NEVER}", markdown(heads, rows)]
        parts += ["## Each length and batch"]
    return "\n\n".join([*parts, *map(section, sweep.reports)]) + "\n"


def save(sweep: Sweep, folder: Path) -> None:
    """``bench.json``, ``bench.md`` and ``bench.png`` in ``folder``, each whole or not at all."""
    files.write_text(folder / "bench.json", files.dump(sweep))
    save_figure(bench_figure(sweep), folder / "bench.png")
    files.write_text(folder / "bench.md", document(sweep, "bench.png"))


def bench_figure(sweep: Sweep) -> Figure:
    """Of one report a bar for every plan; of a sweep a line."""
    return _lines(sweep) if len(sweep.reports) > 1 else _bars(sweep.reports[0])


def _bars(report: Report) -> Figure:
    """Time kept as bars, on each what was promised and what is the least."""
    figure, [axes] = panels_of(1, height=0.5 * len(report.timed) + 1.2, columns=1, width=7.2)
    stock = report.of(STOCK).prefill_ms.median
    names = [t.name for t in report.timed]
    axes.barh(names, [t.time_kept for t in report.timed], height=0.55, color=KEPT, label="time kept")
    for row, t in enumerate(report.timed):
        axes.text(0.01, row, f"{t.time_kept:.0%}", color="white", va="center", fontsize=8)
    floors = [None if t.floor_ms is None else t.floor_ms.median / stock for t in report.timed]
    for label, values, style in (
        ("FLOPs kept", [t.flops_kept for t in report.timed], {"marker": "|", "s": 400, "lw": 2, "color": INK}),
        ("floor", floors, {"marker": "D", "s": 36, "color": SKIPPED}),
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


def _lines(sweep: Sweep) -> Figure:
    """Time kept by visual tokens, a panel for each batch, or by batch if that alone was varied; break-even ringed."""
    reports = sweep.reports
    along, other = ("visual", "batch") if len({r.visual for r in reports}) > 1 else ("batch", "visual")
    panels = sorted({getattr(r, other) for r in reports})
    figure, axes = panels_of(len(panels), height=3.6, columns=min(2, len(panels)), width=5.4)
    for axis, at in zip(axes, panels, strict=True):
        line = sorted((r for r in reports if getattr(r, other) == at), key=lambda r: int(getattr(r, along)))
        _line(
            axis,
            [getattr(r, along) for r in line],
            line,
            [b for b in sweep.break_even if (b.along, b.at) == (along, at)],
        )
        axis.set_title(f"batch {at}" if other == "batch" else f"{at} visual tokens", loc="left", fontsize=10, color=INK)
        axis.set_xlabel("visual tokens" if along == "visual" else "batch", fontsize=9)
        axis.set_ylim(
            0, 1.05 * max(t.time_kept for r in reports for t in r.timed)
        )  # one scale: they are to be compared
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    told = f"{reports[0].model}, {reports[0].text} text tokens; ringed: from there on the plan is faster than stock"
    _head(figure, told, reports[0])
    return figure


def _line(axis: Any, places: Sequence[int], line: Sequence[Report], even: Sequence[BreakEven]) -> None:
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
    axis.set_ylabel("prefill time, by stock's", fontsize=9)


def _head(figure: Figure, first: str, report: Report) -> None:
    width = int(13 * figure.get_figwidth())  # letters of this size in so many inches
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in (first, told_of(report))), fontsize=9)


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
