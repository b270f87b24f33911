"""Figures that explain themselves: the palette, panels, and the figures of scores, answers and methods."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
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
KINDS = (INK, KEPT, "#b3452f")  # of scores in one panel
SMALLER = "#b3322f"  # images, in place of fewer tokens


def profile_figure(scores: Mapping[str, Sequence[Scores]], plans: Mapping[str, Plan]) -> Figure:
    """Scores per layer, one panel per task, one line per kind of score: a dot per sample, the mean as a line. The
    layers in which the task's plan skips attention are shaded."""
    figure, panels = panels_of(len(scores), height=2.5)
    floor = 1e-6
    every = [s for kinds in scores.values() for s in kinds]
    top = max(10 * floor, *(max(row) for s in every for row in s.per_sample))
    for axes, (task, kinds) in zip(panels, scores.items(), strict=True):
        for layer in plans[task].skipped("attention"):
            axes.axvspan(layer - 0.5, layer + 0.5, color=SKIPPED, alpha=0.28, lw=0)
        for s, colour in zip(kinds, cycle(KINDS), strict=False):
            layers = range(s.geometry.layers)
            for row in s.per_sample:
                axes.plot(layers, [max(v, floor) for v in row], ".", color=colour, alpha=0.15, ms=3)
            axes.plot(layers, [max(v, floor) for v in s.mean], "-o", color=colour, ms=3.5, lw=1.4)
        axes.set_yscale("log")
        axes.set_ylim(floor / 1.6, top * 2)  # one scale, so that tasks can be compared
        axes.set_title(task, loc="left", fontsize=10, color=INK)
        axes.set_xticks(list(layers)[:: max(1, len(layers) // 12)])
        axes.set_xlim(-0.6, len(layers) - 0.4)
        axes.set_xlabel("decoder layer", fontsize=9)
    first = next(iter(scores.values()))
    figure.supylabel(f"effect on the answer ({first[0].unit})", fontsize=10)
    _named_marks(figure, first)
    figure.suptitle(
        "How far the answer's distribution moves when one operator is skipped for visual tokens in one layer\n"
        f"(values below {floor:g} are drawn at {floor:g})",
        fontsize=11,
    )
    return figure


def _named_marks(figure: Figure, kinds: Sequence[Scores]) -> None:
    """The legend of :func:`profile_figure`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = [
        Line2D([], [], marker="o", color=colour, ms=3.5, lw=1.4, label=f"{s.name.replace('_', ' ')}, mean")
        for s, colour in zip(kinds, cycle(KINDS), strict=False)
    ]
    dot = f"one of {kinds[0].samples} samples"
    marks.append(Line2D([], [], marker=".", color=MUTED, ms=6, lw=0, label=dot))
    marks.append(Patch(color=SKIPPED, alpha=0.28, lw=0, label="attention skipped by the plan"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9, frameon=False)


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
        label = f"expected {answer.expected}\ndense {dense}\nplan {planned}"
        axes.set_xlabel(label, fontsize=9, color=INK if same else "#b3322f")
    figure.suptitle(f"{task}: test images, answered by the dense model and under the plan", fontsize=11)
    return figure


@dataclass(frozen=True)
class Retained:
    """What a method keeps: shares of the stock prefill's FLOPs and of the dense model's right answers.

    Attributes:
        low, high: the 95 % interval of ``retention``.
    """

    method: str
    kept: float
    retention: float
    low: float
    high: float

    @property
    def colour(self) -> str:
        controls = {"random-tokens": SKIPPED, "random-layers": SKIPPED, "down-sampling": SMALLER}
        return controls.get(self.method, KEPT)


def retention_figure(models: Mapping[str, Mapping[str, Sequence[Retained]]]) -> Figure:
    """Answers kept, a column for each model and a row for each setting, so that a page need not shrink it.

    Args:
        models: by name, by setting, the methods. The first setting is drawn by FLOPs kept, as prices differ there; the
            others, whose price is one, as a list of methods from best to worst.
    """
    columns, rows = len(models), max(len(settings) for settings in models.values())
    figure, panels = panels_of(columns * rows, height=5.0, columns=columns, width=6.6)
    for column, (model, settings) in enumerate(models.items()):
        for row, axes in enumerate(panels[column::columns]):
            axes.set_visible(row < len(settings))
        for row, (setting, methods) in enumerate(settings.items()):
            axes = panels[row * columns + column]
            (_ranked if row else _scattered)(axes, methods)
            axes.set_title(f"{model}, {setting}", loc="left", fontsize=11, color=INK)
    for colour, label in ((KEPT, "method"), (SKIPPED, "random choice"), (SMALLER, "smaller image")):
        panels[0].plot([], [], "o", color=colour, label=label)
    panels[0].plot([], [], "-", color=KEPT, lw=1.2, label="95 % interval")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _scattered(axes: Any, methods: Sequence[Retained]) -> None:
    """Retention by FLOPs kept, every point with its name."""
    for m in methods:
        axes.plot(m.kept, m.retention, "o", ms=6, mec=m.colour, mfc=m.colour, alpha=0.85)
    axes.axhline(1, color=MUTED, lw=1, ls="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(min(0.2, *(m.retention for m in methods)), 1.14)  # room for names above the line
    axes.set_xlabel("share of the prefill's FLOPs kept", fontsize=9)
    axes.set_ylabel("retention: right answers kept", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0%}")
    _named(axes, [(m.method, m.kept, m.retention) for m in methods])


def _named(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside points, each where no other name or point is; a line leads to those further away."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    at = [((x - left) / (right - left), (y - bottom) / (top - bottom)) for _, x, y in points]
    taken = [(u - 0.009, v - 0.011, u + 0.009, v + 0.011) for u, v in at]
    height = 0.03
    moves = sorted(
        (
            (du, dv)
            for du in (0.016, -0.016, 0.05, -0.05, 0.1, -0.1, 0.18, -0.18)
            for dv in [0.015 * k for k in range(-24, 25)]
        ),
        key=lambda move: math.hypot(*move) + (0.005 if move[0] < 0 else 0),
    )
    for (name, *_), (u, v) in sorted(zip(points, at, strict=True), key=lambda pair: (-pair[1][1], pair[1][0])):
        width = 0.0127 * len(name)
        for du, dv in moves:
            start = u + du if du > 0 else u + du - width
            box = (start, v + dv - height / 2, start + width, v + dv + height / 2)
            inside = box[0] >= 0 and box[2] <= 1.02 and box[1] >= 0 and box[3] <= 1
            if inside and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        far = math.hypot(du, dv) > 0.04
        axes.annotate(
            name,
            (u, v),
            xytext=(u + du, v + dv),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=8,
            color=INK,
            ha="left" if du > 0 else "right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 3} if far else None,
        )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Of two boxes (left, bottom, right, top)."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ranked(axes: Any, methods: Sequence[Retained]) -> None:
    """A line for each method, the best on top, with the interval of its retention."""
    ranked = sorted(methods, key=lambda m: (m.retention, m.method))
    for place, m in enumerate(ranked):
        axes.plot((m.low, m.high), (place, place), "-", color=m.colour, lw=1.2)
        axes.plot(m.retention, place, "o", ms=6, color=m.colour)
        axes.text(1.005, place, f"{m.retention:.1%}", transform=axes.get_yaxis_transform(), fontsize=8, va="center")
    axes.axvline(1, color=MUTED, lw=1, ls="--")
    axes.set_yticks(range(len(ranked)), [m.method for m in ranked], fontsize=9, color=INK)
    axes.set_ylim(-0.7, len(ranked) - 0.3)
    axes.set_xlabel("retention: right answers kept", fontsize=9)
    axes.xaxis.set_major_formatter("{x:.0%}")


@dataclass(frozen=True)
class TimeKept:
    """One plan on one model: shares of the stock prefill's FLOPs and time."""

    plan: str
    model: str
    flops: float
    time: float


def time_figure(points: Sequence[TimeKept], conditions: str) -> Figure:
    """Prefill time kept by FLOPs kept: a colour for each plan, a marker for each model. Below the line more time is
    saved than FLOPs.

    Args:
        points: of all plans on all models.
        conditions: on what they were timed, a line.
    """
    figure, [axes] = panels_of(1, height=5.0, columns=1, width=7.6)
    plans, models = (list(dict.fromkeys(values)) for values in zip(*((p.plan, p.model) for p in points), strict=True))
    markers = "osD^v<>PX*"
    for p in points:
        style = {"marker": markers[models.index(p.model) % len(markers)], "color": f"C{plans.index(p.plan)}"}
        axes.scatter(p.flops, p.time, s=34, zorder=3, **style)
    low, high = min(min(p.flops, p.time) for p in points), max(max(p.flops, p.time) for p in points)
    axes.axline((low, low), slope=1, ls="--", lw=1, color=MUTED, label="time saved = FLOPs saved")
    axes.set_xlim(low - 0.02, high + 0.02)
    axes.set_ylim(low - 0.02, high + 0.02)
    axes.set_xlabel("FLOPs kept, of the layers that ran", fontsize=9)
    axes.set_ylabel("prefill time kept", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0%}")
    for index, plan in enumerate(plans):
        axes.scatter([], [], s=34, color=f"C{index}", label=plan)
    for index, model in enumerate(models):
        axes.scatter([], [], s=34, marker=markers[index % len(markers)], color=MUTED, label=model)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    axes.set_title("Prefill time by FLOPs, as shares of the stock model's", loc="left", fontsize=11, color=INK)
    figure.supxlabel(textwrap.fill(conditions, 110), fontsize=8, color=MUTED)
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
