"""The figures that experiments share: curves with bands, matrices, and bars by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..figures import INK, KEPT, MUTED, SKIPPED, SMALLER, panels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (KEPT, SKIPPED, SMALLER, INK, "#4f9d69", "#8e5ea2", "#c77cba", "#7b8794")
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Line:
    """Points of one curve, and a band around them where it is known.

    Attributes:
        low, high: of the band, one for each point.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def kept_by_flops(
    panel: str, lines: Mapping[str, Line], *, title: str = "Right answers kept by FLOPs", height: float = 3.4
) -> Figure:
    """What methods keep, by what they cost."""
    return kept_figure({panel: lines}, title=title, x="share of the prefill's FLOPs that runs", height=height)


def kept_figure(panels: Mapping[str, Mapping[str, Line]], *, title: str, x: str, **how: Any) -> Figure:
    """What methods keep, by ``x``; ``how`` as in :func:`curves_figure`."""
    return curves_figure(panels, title=title, x=x, y="mean of the tasks' retentions", level=1.0, **how)


def curves_figure(
    panels: Mapping[str, Mapping[str, Line]],
    *,
    title: str,
    x: str,
    y: str,
    share: bool = True,
    log: bool = False,
    level: float | Mapping[str, float] | None = None,
    columns: int = 3,
    height: float = 3.4,
) -> Figure:
    """Curves, one panel for each of ``panels``; a name has one colour in all of them.

    Args:
        share: values are shares, printed in per cent.
        log: the axis of values is logarithmic; what is below 1e-6 is drawn there.
        level: where to draw a dashed line, in all panels or by panel.
    """
    columns = min(columns, len(panels))
    figure, axes_of = panels_of(len(panels), height=height, columns=columns, width=7.6 if columns == 1 else 4.2)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axes, (panel, lines) in zip(axes_of, panels.items(), strict=True):
        for name, line in lines.items():
            _curve(axes, line, names.index(name), log)
        here = level.get(panel) if isinstance(level, Mapping) else level
        if here is not None:
            axes.axhline(here, color=MUTED, lw=1, ls="--")
        if log:
            axes.set_yscale("log")
        elif share:
            axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set_title(panel, loc="left", fontsize=10, color=INK)
        axes.set_xlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=10)
    _legend(figure, names)
    figure.suptitle(title, fontsize=11)
    return figure


def _style(number: int) -> dict[str, Any]:
    """Colour and marker of a curve; hollow from the fifth on, as colours come again."""
    colour = COLOURS[number % len(COLOURS)]
    marker = MARKERS[number % len(MARKERS)]
    return {"color": colour, "marker": marker, "ms": 4, "lw": 1.5, "mfc": "white" if number > 3 else colour}


def _curve(axes: Any, line: Line, number: int, log: bool) -> None:
    def drawn(values: Sequence[float]) -> list[float]:
        return [max(v, 1e-6) for v in values] if log else list(values)

    axes.plot(line.x, drawn(line.y), **_style(number))
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, drawn(line.low), drawn(line.high), color=_style(number)["color"], alpha=0.18, lw=0)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    """Below the panels, as many names side by side as fit; none where one name is all."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], label=name, **_style(i)) for i, name in enumerate(names)]
    if len(names) > 1:
        widest = 0.35 + 0.075 * max(map(len, names))  # inches
        fits = max(1, int(figure.get_figwidth() / widest))
        figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), fits), fontsize=8, frameon=False)


@dataclass(frozen=True)
class Matrix:
    """Numbers with names of rows and columns; NaN where there is none.

    Attributes:
        form: how a number is written in its field, as in :func:`format`; empty for no writing.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    form: str = ".0%"


def matrix_figure(
    panels: Mapping[str, Matrix],
    *,
    title: str,
    x: str,
    y: str,
    low: float | None = None,
    high: float | None = None,
    columns: int = 3,
    size: float = 0.42,
) -> Figure:
    """Matrices as fields of colour, dark for high, one panel for each."""
    first = next(iter(panels.values()))
    columns = min(columns, len(panels))
    names = 0.075 * max(map(len, first.rows))  # inches
    width, height = max(3.2, size * len(first.columns) + names + 0.9), max(2.4, size * len(first.rows) + 0.9)
    figure, axes_of = panels_of(len(panels), height=height, columns=columns, width=width)
    every = np.concatenate([np.asarray(m.values, dtype=float).ravel() for m in panels.values()])
    low, high = np.nanmin(every) if low is None else low, np.nanmax(every) if high is None else high
    for axes, (panel, matrix) in zip(axes_of, panels.items(), strict=True):
        values = np.asarray(matrix.values, dtype=float)
        axes.imshow(values, cmap="Blues", vmin=low, vmax=high if high > low else low + 1, aspect="auto")
        axes.set_xticks(range(len(matrix.columns)), matrix.columns, fontsize=8, rotation=0 if _is_short(matrix) else 40)
        axes.set_yticks(range(len(matrix.rows)), matrix.rows, fontsize=8)
        axes.set_title(panel, loc="left", fontsize=10, color=INK)
        axes.set_xlabel(x, fontsize=9)
        axes.set_ylabel(y, fontsize=9)
        if matrix.form:
            for (i, j), value in np.ndenumerate(values):
                colour = "white" if value > low + 0.6 * (high - low) else INK
                said = "-" if np.isnan(value) else format(value, matrix.form)
                axes.text(j, i, said, ha="center", va="center", fontsize=8, color=colour)
    figure.suptitle(title, fontsize=11)
    return figure


def _is_short(matrix: Matrix) -> bool:
    return max(map(len, matrix.columns)) <= 3
