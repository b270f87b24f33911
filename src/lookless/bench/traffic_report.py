"""The report of ``lookless bench --engine vllm``: the same cells for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from .. import files
from ..markdown import markdown_table
from .prefill_results import STOCK
from .traffic_results import PLAN, ClientMetrics, Level, TrafficReport

HEADS = ("concurrency", "", "requests/s", "tokens/s", "TTFT ms", "p95 TTFT ms", "TPOT ms")
NOTE = (
    "In brackets: the plan over stock, the median of the rounds' ratios; above 1 is better for requests/s and "
    "tokens/s, below 1 for ms. TTFT is from sending the request, with vision tower and queue. Each row is the median "
    "over rounds of the median over requests."
)


def title(r: TrafficReport) -> str:
    return f"{r.model} in vLLM: {r.visual} visual and {r.text} text tokens, answers of {r.answer}"


def describe(r: TrafficReport) -> str:
    """On what, and how, a report was made."""
    versions = ", ".join(f"{name} {version}" for name, version in r.versions.items())
    options = f" ({' '.join(r.options)})" if r.options else ""
    rounds = len(r.levels[0].rounds)
    return (
        f"{r.dtype}, {r.device}, {r.cores} cores, {versions}{options}; {rounds} rounds of {r.requests} requests, sent "
        f"to stock and plan in turn."
    )


def verdict(r: TrafficReport) -> str:
    """At which concurrency is the plan faster, and is TTFT reduced in proportion to the FLOPs saved?"""
    paces: dict[str, list[str]] = {}
    for level in r.levels:
        paces.setdefault(_pace(level), []).append(str(level.concurrency))
    pace = ", ".join(f"{how} at concurrency {', '.join(where)}" for how, where in paces.items())
    first = min(r.levels, key=lambda level: level.concurrency)
    skipped = ", ".join(f"{share:.0%} of {operator} rows" for operator, share in r.rows_skipped.items())
    return (
        f"{r.plan} keeps {r.flops_kept:.1%} of the decoder's prefill FLOPs (skipped: {skipped}, counted in the engine) "
        f"and {first.ratios.ttft:.1%} of TTFT at concurrency {first.concurrency}. In requests/s it is {pace}."
    )


def _pace(level: Level) -> str:
    """The plan beside stock, where all rounds say the same."""
    faster = {round_.plan.requests_per_s > round_.stock.requests_per_s for round_ in level.rounds}
    if len(faster) > 1:
        return "not told apart from stock (rounds disagree)"
    return "faster than stock" if faster == {True} else "slower than stock"


def rows(r: TrafficReport) -> list[tuple[str, ...]]:
    """Two under :data:`HEADS` for every concurrency."""
    return [row for level in r.levels for row in _rows(level)]


def _rows(level: Level) -> Iterator[tuple[str, ...]]:
    ratios = level.ratios
    kept = (ratios.requests, ratios.tokens, ratios.ttft, ratios.ttft_p95, ratios.tpot)
    yield (str(level.concurrency), STOCK, *_cells(level.stock))
    both = zip(_cells(level.plan), kept, strict=True)
    yield ("", PLAN, *(f"{cell} ({ratio:.2f})" for cell, ratio in both))


def _cells(m: ClientMetrics) -> tuple[str, ...]:
    pace = (m.requests_per_s, m.tokens_per_s)
    times = (m.ttft_ms, m.ttft_p95_ms, m.tpot_ms)
    return (*(f"{x:.2f}" for x in pace), *(f"{x:.0f}" if x >= 100 else f"{x:.1f}" for x in times))


def traffic_table(report: TrafficReport) -> Table:
    """For a terminal."""
    caption = f"{describe(report)}\n{NOTE}\n{verdict(report)}"
    table = Table(*HEADS, title=title(report), caption=caption)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows(report):
        table.add_row(*row, end_section=not row[0])
    return table


def markdown_section(report: TrafficReport) -> str:
    """A heading, sentences and a table in Markdown."""
    return "\n\n".join([f"### {title(report)}", describe(report), markdown_table(HEADS, rows(report)), verdict(report)])


def save(report: TrafficReport, folder: Path) -> None:
    """``traffic.json`` and ``traffic.md`` in ``folder``, each whole or not at all."""
    files.write_text(folder / "traffic.json", files.dump(report))
    parts = ["# Stock and a plan in vLLM, in turn", NOTE, markdown_section(report)]
    files.write_text(folder / "traffic.md", "\n\n".join(parts) + "\n")
