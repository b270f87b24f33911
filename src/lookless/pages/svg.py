"""Drawing in SVG: escaped elements, scales and panels. Pure functions from numbers to markup.

A panel is drawn for a phone, 360 units wide, and never scaled below that: a wide page has more panels in a row.
Colours are classes, which the page's style sheet sets for light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, LEFT, RIGHT, TOP = 360, 60, 352, 12


def tag(name: str, *inside: str, **attributes: str | float | None) -> Markup:
    """An element. Text and attributes are escaped unless they are markup; an attribute of None is left out, ``_`` in
    a name is written ``-``, and a last ``_`` is dropped."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    written = "".join(f' {key}="{escape(_number(value))}"' for key, value in pairs)
    body = "".join(map(escape, inside))
    return Markup(f"<{name}{written}>{body}</{name}>" if body else f"<{name}{written}/>")


def _number(value: str | float) -> str:
    """With at most two decimals, as no screen shows more."""
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def group(marks: Iterable[Markup], **attributes: str | float | None) -> Markup:
    return tag("g", *marks, **attributes)


def text(x: float, y: float, words: str, **attributes: str | float | None) -> Markup:
    return tag("text", words, x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("path", d=f"M{_number(x1)} {_number(y1)}L{_number(x2)} {_number(y2)}", class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """A line through ``points``."""
    return tag("path", d="M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points), class_=class_)


def dots(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Many small dots in one element: lines of no length, with round ends."""
    return tag("path", d="".join(f"M{_number(x)} {_number(y)}h0" for x, y in points), class_=f"dots {class_}")


@dataclass(frozen=True)
class Axis:
    """From values to places.

    Attributes:
        low, high: values at ``start`` and ``end``; those beyond are drawn there.
        start, end: places, in units of the drawing.
        log: by decades; ``low`` is above zero.
        whole: ticks are whole numbers.
        share: values are shares, written as percentages.
        floor: values below ``low`` are drawn there, and its tick says so.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False
    share: bool = False
    floor: bool = False

    def at(self, value: float) -> float:
        low, high, value = (self._on_scale(v) for v in (self.low, self.high, value))
        along = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, along)) * (self.end - self.start)

    def _on_scale(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value

    @property
    def ticks(self) -> tuple[float, ...]:
        """At most eight round values within the axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            powers = range(first, last + 1, 1 + (last - first) // 5)
            if len(powers) > 1:
                return tuple(10.0**power for power in powers)
            finer = (k * 10.0**power for power in (first - 1, first) for k in (1, 2, 5))
            return tuple(tick for tick in finer if self.low <= tick <= self.high)
        step = _round_step((self.high - self.low) / 7, self.whole)
        first = math.ceil(self.low / step - 1e-9)
        return tuple(step * k for k in range(first, math.floor(self.high / step + 1e-9) + 1))

    def name(self, tick: float) -> str:
        if self.share:
            return f"{100 * tick:g}%"
        at_most = "≤" if self.floor and tick <= self.low * (1 + 1e-9) else ""
        short = f"{tick:.0e}".replace("e-0", "e-") if self.log and tick < 0.001 else f"{tick:g}"
        return at_most + short


def _round_step(least: float, whole: bool) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is at least ``least``."""
    if least <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(least))
    step: float = next(power * k for k in (1, 2, 5, 10) if power * k >= least * (1 - 1e-9))
    return max(1.0, step) if whole else step


def layer_axis(layers: int) -> Axis:
    """Across a panel; every layer has a place of equal width."""
    return Axis(-0.5, layers - 0.5, LEFT, RIGHT, whole=True)


def decades(values: Iterable[float], start: float, end: float, floor: float = 1e-6) -> Axis:
    """A logarithmic axis of whole decades around the values above ``floor``; the others are drawn at its foot."""
    values = list(values)
    above = [value for value in values if value > floor] or [1.0]
    low, high = 10.0 ** math.floor(math.log10(min(above))), 10.0 ** math.ceil(math.log10(max(above)))
    cut = min(values, default=low) < low
    return Axis(max(floor, low / 10) if cut else low, max(high, 10 * low), start, end, log=True, floor=cut)


def around(values: Sequence[float], start: float, end: float, *, share: bool = False) -> Axis:
    """A linear axis over ``values`` with a little room on both sides."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return Axis(low - room, high + room, start, end, share=share)


def panel(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    marks: Iterable[Markup],
    *,
    x_name: str,
    y_name: str,
    height: float = 232,
    below: float = 0,
) -> Markup:
    """A figure: a title, grid and axes, and ``marks``.

    Args:
        description: what it shows, in words, for those who do not see it.
        below: the height of marks between the plot and the names of the ticks of ``x``.
    """
    foot = max(y.start, y.end) + below
    grid = [line(x.start, y.at(t), x.end, y.at(t), "grid") for t in y.ticks]
    left = min(x.start, x.end)
    names = [text(left - 6, y.at(t) + 3.5, y.name(t), class_="tick", text_anchor="end") for t in y.ticks]
    under = [text(x.at(t), foot + 14, x.name(t), class_="tick", text_anchor="middle") for t in x.ticks]
    frame = line(x.start, max(y.start, y.end), x.end, max(y.start, y.end), "axis")
    middle = (y.start + y.end) / 2
    titles = [
        text((x.start + x.end) / 2, foot + 30, x_name, class_="label", text_anchor="middle"),
        text(11, middle, y_name, class_="label", text_anchor="middle", transform=f"rotate(-90 11 {_number(middle)})"),
    ]
    drawn = tag(
        "svg",
        *grid,
        frame,
        *names,
        *under,
        *titles,
        *marks,
        viewBox=f"0 0 {WIDTH} {_number(height + below)}",
        role="img",
        aria_label=description,
    )
    return figure(title, drawn)


def figure(title: str, drawn: Markup) -> Markup:
    return tag("figure", tag("figcaption", title), drawn, class_="panel")
