"""A plan as a map, layer by operator; and the plans of a whole front, layer by budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from ..cells import Cell
from ..layer_plan import COLUMNS, spans
from ..plan import Plan
from .material import Point
from .svg import WIDTH, Axis, figure, group, layer_axis, tag, text

#: How a cell is drawn, in the order of a legend: what visual tokens do there.
SHADES = {
    "full": "as trained",
    "part": "in part",
    "other": "replaced",
    "skip": "skipped",
}
#: What a column says, for a reader.
OPERATORS = {
    "keep": "tokens",
    "attention": "attention",
    "ffn": "FFN",
    "visible": "text reads",
    "decode": "cache",
    "before": "text before",
}


#: The same as a title.
TITLES = {
    "keep": "visual tokens that are left",
    "attention": "attention of visual tokens",
    "ffn": "FFN of visual tokens",
    "visible": "visual tokens that text reads",
    "decode": "visual tokens in the cache",
    "before": "text before the image",
}


def shade(cell: Cell) -> str:
    """A key of :data:`SHADES`."""
    if cell.is_full:
        return "full"
    if cell.skips or cell.withdraws:
        return "skip"
    # What no visual token passes, and yet is not skipped, has something in its place.
    return "other" if cell.visual == "none" and cell.neurons is None and cell.window is None else "part"


def columns_of(plans: Iterable[Plan]) -> tuple[str, ...]:
    """The columns that any of ``plans`` uses; attention and FFN always."""
    used = {column for plan in plans for column in plan.columns}
    return tuple(column for column in COLUMNS if column in used)


def shades_of(plans: Iterable[Plan]) -> tuple[str, ...]:
    """The shades that occur, for a legend."""
    found = {"full"} | {box.shade for plan in plans for column in plan.columns for box in boxes(plan, column)}
    return tuple(name for name in SHADES if name in found)


class Box(NamedTuple):
    """What a map shows of one operator of one layer: a key of :data:`SHADES`, and words."""

    shade: str
    words: str


def boxes(plan: Plan, column: str) -> list[Box]:
    """Of each layer. A token that was dropped stays dropped, so ``keep`` lasts until the next one, and where no visual
    token is left no operator runs on any."""
    found, left = [], Box("full", "all")
    for row in plan.layers:
        if not row.keep.is_full:
            left = Box(shade(row.keep), str(row.keep))
        cell = getattr(row, column)
        if column == "keep":
            found.append(left)
        else:
            is_gone = left.shade == "skip" and column != "before"
            found.append(Box("skip", "no token is left") if is_gone else Box(shade(cell), str(cell)))
    return found


def cells(row: Sequence[Box], x: Axis, y: float, height: float, name: str) -> Markup:
    """One row of a map: full boxes in one element, the others with words for a pointer."""
    width = x.at(1) - x.at(0)
    gap = min(1.5, 0.12 * width)
    places = [round(x.at(i) - width / 2 + gap / 2, 2) for i in range(len(row))]
    edge = f"h{width - gap:.2f}v{height:g}h-{width - gap:.2f}z"
    full = "".join(f"M{place:g} {y:g}{edge}" for place, box in zip(places, row, strict=True) if box.shade == "full")
    marks = [tag("path", d=full, class_="cell full")] if full else []
    for layer, (place, box) in enumerate(zip(places, row, strict=True)):
        if box.shade != "full":
            words = tag("title", f"layer {layer}, {name}: {box.words}")
            size = {"width": width - gap, "height": height}
            marks.append(tag("rect", words, x=place, y=y, **size, class_=f"cell {box.shade}"))
    return group(marks)


def strip(plan: Plan, columns: Sequence[str], x: Axis, top: float, height: float = 9) -> list[Markup]:
    """The map below a plot by layers: thin rows, named at the left."""
    marks = []
    for i, column in enumerate(columns):
        y = top + i * (height + 2)
        marks.append(cells(boxes(plan, column), x, y, height, OPERATORS[column]))
        marks.append(text(x.start - 4, y + height - 1.5, OPERATORS[column], class_="tick small", text_anchor="end"))
    return marks


def plan_map(plan: Plan, columns: Sequence[str], title: str) -> Markup:
    """A plan as a map: a row for each operator, a box for each layer."""
    x, height, gap = layer_axis(len(plan.layers)), 24, 4
    marks = []
    for i, column in enumerate(columns):
        y = 4 + i * (height + gap)
        marks.append(cells(boxes(plan, column), x, y, height, OPERATORS[column]))
        name = OPERATORS[column]
        marks.append(text(x.start - 6, y + height / 2 + 4, name, class_="tick", text_anchor="end"))
    foot = 4 + len(columns) * (height + gap)
    marks += [text(x.at(t), foot + 10, x.name(t), class_="tick", text_anchor="middle") for t in x.ticks]
    marks.append(text((x.start + x.end) / 2, foot + 25, "decoder layer", class_="label", text_anchor="middle"))
    drawn = tag(
        "svg",
        *marks,
        viewBox=f"0 0 {WIDTH} {foot + 31:g}",
        role="img",
        aria_label=f"{title}. {'; '.join(in_words(plan))}",
    )
    return figure(title, drawn)


def budget_map(points: Sequence[Point], column: str) -> Markup:
    """One operator under every plan of a front: a row for each plan, dear ones on top, and a box for each layer."""
    layers = len(points[0].plan.layers)
    x = layer_axis(layers)
    height = max(5.0, min(15.0, 220 / len(points)))
    marks = []
    for i, point in enumerate(points):
        y = 4 + i * (height + 1)
        rows = [cells(boxes(point.plan, column), x, y, height, OPERATORS[column])]
        rows.append(tag("rect", x=x.start - 1, y=y - 0.5, width=x.end - x.start + 2, height=height + 1, class_="ring"))
        if height >= 9 or i % 3 == 0:
            kept = f"{point.candidate.kept:.0%}"
            rows.append(text(x.start - 6, y + height / 2 + 3.5, kept, class_="tick", text_anchor="end"))
        marks.append(group(rows, data_point=str(i), class_="choice"))
    foot = 4 + len(points) * (height + 1)
    marks += [text(x.at(t), foot + 12, x.name(t), class_="tick", text_anchor="middle") for t in x.ticks]
    marks.append(text((x.start + x.end) / 2, foot + 27, "decoder layer", class_="label", text_anchor="middle"))
    marks.append(
        text(11, foot / 2, "FLOPs kept", class_="label", text_anchor="middle", transform=f"rotate(-90 11 {foot / 2:g})")
    )
    said = f"{TITLES[column]} in each layer under {len(points)} plans, by FLOPs kept. " + "; ".join(
        f"{p.candidate.kept:.0%}: {_not_full(p.plan, column)}" for p in points
    )
    drawn = tag("svg", *marks, viewBox=f"0 0 {WIDTH} {foot + 33:g}", role="img", aria_label=said)
    return figure(TITLES[column], drawn)


def in_words(plan: Plan) -> list[str]:
    """``attention: skip in layers 3-5`` and so on: a line for each column, for those who do not see the map."""
    return [f"{OPERATORS[column]}: {_not_full(plan, column)}" for column in plan.columns]


def _not_full(plan: Plan, column: str) -> str:
    by_cell: dict[str, list[int]] = {}
    for layer, row in enumerate(plan.layers):
        cell = getattr(row, column)
        if not cell.is_full:
            by_cell.setdefault(str(cell), []).append(layer)
    return ", ".join(f"{cell} in {_spans(layers)}" for cell, layers in by_cell.items()) or "full everywhere"


def _spans(layers: Sequence[int]) -> str:
    """``layers 0-2, 5`` for 0, 1, 2, 5."""
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(spans(layers))}"
