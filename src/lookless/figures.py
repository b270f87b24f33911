"""Figures that explain themselves: the palette, panels, and the figures of scores and answers."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files
from .plan import Plan
from .scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .data import Sample
    from .evaluation import Answer


INK, MUTED, KEPT, SKIPPED = "#1b2733", "#8793a0", "#2f6fb3", "#e3a23b"


def profile_figure(scores: Mapping[str, Scores], plans: Mapping[str, Plan]) -> Figure:
    """Score per layer, one panel per task: a dot per sample, the mean as a line, skipped layers shaded."""
    figure, panels = panels_of(len(scores), height=2.5)
    floor = 1e-6
    top = max(10 * floor, *(max(row) for s in scores.values() for row in s.per_sample))
    for axes, (task, s) in zip(panels, scores.items(), strict=True):
        for layer in plans[task].skipped("attention"):
            axes.axvspan(layer - 0.5, layer + 0.5, color=SKIPPED, alpha=0.28, lw=0)
        layers = range(s.geometry.layers)
        for row in s.per_sample:
            axes.plot(layers, [max(v, floor) for v in row], ".", color=KEPT, alpha=0.25, ms=4)
        axes.plot(layers, [max(v, floor) for v in s.mean], "-o", color=INK, ms=3.5, lw=1.4)
        axes.set_yscale("log")
        axes.set_ylim(floor / 1.6, top * 2)  # one scale for all tasks: they are to be compared
        axes.set_title(task, loc="left", fontsize=10, color=INK)
        axes.set_xticks(list(layers)[:: max(1, s.geometry.layers // 12)])
        axes.set_xlim(-0.6, s.geometry.layers - 0.4)
    first = next(iter(scores.values()))
    figure.supxlabel("decoder layer", fontsize=10)
    figure.supylabel(f"{first.name.replace('_', ' ')} ({first.unit})", fontsize=10)
    figure.suptitle(
        "How far the answer moves when visual tokens stop attending in one layer\n"
        f"line: mean; dots: {first.samples} samples; shaded: skipped by the plan; values under {floor:g} drawn there",
        fontsize=11,
    )
    return figure


def examples_figure(task: str, samples: Sequence[Sample], answers: Sequence[Answer]) -> Figure:
    """Test images with question, expected answer, dense answer and plan answer; disagreements in colour."""
    figure, panels = panels_of(len(samples), height=3.1, columns=4)
    for axes, sample, answer in zip(panels, samples, answers, strict=True):
        if sample.images:
            axes.imshow(sample.opened()[0], interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_title(_wrapped(answer.question), fontsize=9, color=INK)
        same = answer.dense == answer.plan
        dense, planned = (textwrap.shorten(a or "", 28, placeholder="…") for a in (answer.dense, answer.plan))
        told = f"expected {answer.expected}\ndense {dense}\nplan {planned}"
        axes.set_xlabel(told, fontsize=9, color=INK if same else "#b3322f")
    figure.suptitle(f"{task}: test images, answered by the dense model and under the plan", fontsize=11)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, whole or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130, format="png")
    files.write_bytes(path, drawn.getvalue())


def panels_of(count: int, height: float, columns: int = 3, width: float = 3.3) -> tuple[Figure, list[Any]]:
    """A figure of ``count`` panels, each ``width`` x ``height`` inches, and the panels."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[:count]:
        axes.tick_params(labelsize=8, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels[:count]


def _wrapped(text: str, width: int = 30) -> str:
    return "\n".join(textwrap.wrap(text, width))
