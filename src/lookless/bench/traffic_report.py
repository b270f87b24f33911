"""What ``lookless bench --engine vllm`` tells: the same cells for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from .. import files
from .prefill_report import markdown
from .prefill_results import STOCK
from .traffic_results import PLAN, Level, Load, TrafficReport

HEADS = ("at once", "", "requests a second", "tokens a second", "first token ms", "95 % below ms", "ms a token")
NOTE = (
    "In brackets the plan's by stock's, round by round: more requests are better, fewer ms. First token: from sending "
    "to it, tower and queue included. Each row is the median of the rounds, of medians of requests."
)


def title(r: TrafficReport) -> str:
    return f"{r.model} in vLLM: {r.visual} visual and {r.text} text tokens, answers of {r.answer}"


def told_of(r: TrafficReport) -> str:
    """On what, and how, a report was made."""
    versions = ", ".join(f"{name} {version}" for name, version in r.versions.items())
    options = f" ({' '.join(r.options)})" if r.options else ""
    rounds = len(r.levels[0].rounds)
    return (
        f"{r.dtype}, {r.device}, {r.cores} cores, {versions}{options}; {rounds} rounds of {r.requests} requests, stock "
        f"and plan in turn."
    )


def verdict(r: TrafficReport) -> str:
    """What the issue asks: is it ever slower, and does the first token come as much earlier as there is less to do?"""
    slower = [str(level.concurrency) for level in r.levels if level.ratios.requests < 1]
    pace = f"slower than stock at {', '.join(slower)} at once" if slower else "at least as fast as stock at each"
    first = min(r.levels, key=lambda level: level.concurrency)
    skipped = ", ".join(f"{share:.0%} of {operator} rows" for operator, share in r.rows_skipped.items())
    return (
        f"{r.plan} keeps {r.flops_kept:.1%} of the decoder's prefill FLOPs (skipped: {skipped}, counted in the engine) "
        f"and {first.ratios.first_token:.1%} of the first token's time at {first.concurrency} at once; it is {pace}."
    )


def rows(r: TrafficReport) -> list[tuple[str, ...]]:
    """Two under :data:`HEADS` for every concurrency."""
    return [row for level in r.levels for row in _rows(level)]


def _rows(level: Level) -> Iterator[tuple[str, ...]]:
    ratios = level.ratios
    kept = (ratios.requests, ratios.tokens, ratios.first_token, ratios.first_token_p95, ratios.token)
    yield (str(level.concurrency), STOCK, *_cells(level.stock))
    both = zip(_cells(level.plan), kept, strict=True)
    yield ("", PLAN, *(f"{cell} ({ratio:.2f})" for cell, ratio in both))


def _cells(load: Load) -> tuple[str, ...]:
    pace = (load.requests_per_s, load.tokens_per_s)
    times = (load.first_token_ms, load.first_token_p95_ms, load.token_ms)
    return (*(f"{x:.2f}" for x in pace), *(f"{x:.0f}" if x >= 100 else f"{x:.1f}" for x in times))


def traffic_table(report: TrafficReport) -> Table:
    """For a terminal."""
    caption = f"{told_of(report)}\n{NOTE}\n{verdict(report)}"
    table = Table(*HEADS, title=title(report), caption=caption)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows(report):
        table.add_row(*row, end_section=not row[0])
    return table


def section(report: TrafficReport) -> str:
    """A heading, sentences and a table in Markdown."""
    return "\n\n".join([f"### {title(report)}", told_of(report), markdown(HEADS, rows(report)), verdict(report)])


def save(report: TrafficReport, folder: Path) -> None:
    """``traffic.json`` and ``traffic.md`` in ``folder``, each whole or not at all."""
    files.write_text(folder / "traffic.json", files.dump(report))
    told = ["# Stock and a plan in vLLM, asked in turn", NOTE, section(report)]
    files.write_text(folder / "traffic.md", "\n\n".join(told) + "\n")
