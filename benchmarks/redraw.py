"""Redraws docs/images/results.png and performance.png from the tables of docs/results.md and docs/performance.md.

``python benchmarks/redraw.py`` takes seconds, and runs no model: the numbers are those of the documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lookless.figures import Retained, TimeKept, retention_figure, save_figure, time_figure

DOCS = Path(__file__).parents[1] / "docs"
IMAGES = DOCS / "images"
_INTERVAL = re.compile(r"(-?[\d.]+) \((?:\d+ draws: )?(-?[\d.]+) to (-?[\d.]+)\)")
_KEPT = re.compile(r"\(([\d.]+)%\)")


def tables(page: Path) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """(heading of level 2, heading of level 3, rows by column) of every table."""
    above, heading, heads, rows = "", "", [], []  # type: ignore[var-annotated]
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not heads:
                heads = cells
            elif not set(line) <= set("|-: "):
                rows.append(dict(zip(heads, cells, strict=True)))
            continue
        if heads:
            yield above, heading, rows
            heads, rows = [], []
        if line.startswith("## "):
            above, heading = line[3:], ""
        elif line.startswith("### "):
            heading = line[4:]


def retained(row: dict[str, str]) -> Retained:
    value, low, high = (float(number) / 100 for number in _INTERVAL.match(row["retention, %"]).groups())  # type: ignore[union-attr]
    return Retained(row["method"], float(row["FLOPs run, %"]) / 100, value, low, high)


def results() -> dict[str, dict[str, list[Retained]]]:
    models: dict[str, dict[str, list[Retained]]] = {}
    for above, heading, rows in tables(DOCS / "results.md"):
        if heading.startswith("At "):
            setting = heading.split(",")[0].replace("At ", "at ")
            models.setdefault(above.split(":")[0], {})[setting] = [retained(row) for row in rows]
    return models


def times() -> list[TimeKept]:
    """Of the first layers of each model; whole decoders ran elsewhere, with another dtype."""
    points = []
    for above, heading, rows in tables(DOCS / "performance.md"):
        for row in rows:
            if above == "In transformers" and "time kept" in row and row[""] != "stock":
                model, visual = re.match(r"([^,]+), .*: (\d+) visual", heading).groups()  # type: ignore[union-attr]
                flops = float(_KEPT.search(row["TFLOPs (kept)"]).group(1)) / 100  # type: ignore[union-attr]
                time = float(row["time kept"].rstrip("%")) / 100
                points.append(TimeKept(row[""], f"{model}, {visual} visual tokens", flops, time))
    return points


def conditions() -> str:
    """The line under the first table of the performance of transformers."""
    text = (DOCS / "performance.md").read_text(encoding="utf-8").partition("\n## In transformers\n")[2]
    line = re.search(r"^(bfloat16|float32), .*?transformers [\w.+]+", text, re.M | re.S)
    return " ".join(line.group(0).split()) if line else ""


def main() -> None:
    save_figure(retention_figure(results()), IMAGES / "results.png")
    save_figure(time_figure(times(), conditions()), IMAGES / "performance.png")


if __name__ == "__main__":
    main()
