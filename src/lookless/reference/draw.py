"""Draws worlds as images. Also gives the box of each thing drawn, from which training makes labels per patch."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from .fonts import font, text_size
from .worlds import CELL, COLOURS, IMAGE_SIZE, Chart, Scene, Sign, Table, Thing, World

SCALE = 2  # drawn this many times larger and averaged down, which smooths the edges
BASELINE = 88  # y of the bottom of every bar, pixels
UNIT = 8  # height of one unit of a bar, pixels
AXIS = 8  # x of the value axis, pixels
HEAD = 8  # half the side of what heads a table's row or column, pixels
LETTER = 18  # size of a table's characters, pixels

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom excluded


def character_boxes(sign: Sign) -> tuple[Box, ...]:
    """The inked box of each character of ``sign``."""
    face = font(sign.font, sign.size)
    boxes = []
    for i, character in enumerate(sign.text):
        start = sign.x + face.getlength(sign.text[:i])
        left, top, right, bottom = face.getbbox(character)
        boxes.append((round(start + left), round(sign.y + top), round(start + right), round(sign.y + bottom)))
    return tuple(boxes)


def bar_boxes(chart: Chart) -> tuple[Box, ...]:
    """The box of each bar of ``chart``, left to right."""
    pitch = (IMAGE_SIZE - AXIS - 4) / len(chart.bars)
    boxes = []
    for i, (_, value) in enumerate(chart.bars):
        left = round(AXIS + 4 + i * pitch + (pitch - chart.width) / 2)
        boxes.append((left, BASELINE - value * UNIT, left + chart.width, BASELINE))
    return tuple(boxes)


def cell_centre(table: Table, row: int, column: int) -> tuple[int, int]:
    """x, y in pixels; row 0 holds the column heads, column 0 the row heads."""
    return table.x + CELL * column + CELL // 2, table.y + CELL * row + CELL // 2


def letter_box(table: Table, row: int, column: int) -> Box:
    """The inked box of the character in that cell; rows and columns as in :func:`cell_centre`."""
    x, y = cell_centre(table, row, column)
    face = font(table.font, LETTER)
    left, top, right, bottom = face.getbbox(table.cells[row - 1][column - 1], anchor="mm")
    return round(x + left), round(y + top), round(x + right), round(y + bottom)


def _spokes(corners: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """``corners`` at equal angles, the first one at the top, their distances from the centre in turn from ``radii``."""
    turns = [-math.pi / 2 + i * (2 * math.pi / corners) for i in range(corners)]
    return [(radii[i % len(radii)] * math.cos(t), radii[i % len(radii)] * math.sin(t)) for i, t in enumerate(turns)]


def _cross(a: float, b: float) -> list[tuple[float, float]]:
    """Arms ``2 * a`` wide that reach ``b`` from the centre."""
    top = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    return [*top, *((-x, -y) for x, y in top)]


def _heart(corners: int) -> list[tuple[float, float]]:
    points = []
    for i in range(corners):
        t = 2 * math.pi * i / corners
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -y / 17))
    return points


#: Corners of each shape but the round ones, in the unit disc, y down.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (1, 0.85), (-1, 0.85)],
    "star": _spokes(10, (1.0, 0.42)),
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "cross": _cross(0.33, 0.95),
    "heart": _heart(24),
}


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    at: tuple[int, int],
    radius: int,
    fill: tuple[int, int, int],
    background: tuple[int, int, int],
) -> None:
    x, y, r = SCALE * at[0], SCALE * at[1], SCALE * radius
    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if shape == "ring":
            inner = r * 0.5
            pen.ellipse((x - inner, y - inner, x + inner, y + inner), fill=background)
    else:
        pen.polygon([(x + r * a, y + r * b) for a, b in _OUTLINES[shape]], fill=fill)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, background: tuple[int, int, int]) -> None:
    _draw_shape(pen, thing.shape, (thing.x, thing.y), thing.radius, COLOURS[thing.colour], background)


def _draw_table(pen: ImageDraw.ImageDraw, table: Table) -> None:
    for column, colour in enumerate(table.columns, start=1):
        x, y = cell_centre(table, 0, column)
        box = (x - HEAD, y - HEAD, x + HEAD, y + HEAD)
        pen.rectangle([SCALE * edge for edge in box], fill=COLOURS[colour])
    for row, shape in enumerate(table.rows, start=1):
        _draw_shape(pen, shape, cell_centre(table, row, 0), HEAD, table.ink, table.background)
    for row, characters in enumerate(table.cells, start=1):
        for column, character in enumerate(characters, start=1):
            x, y = cell_centre(table, row, column)
            face = font(table.font, SCALE * LETTER)
            pen.text((SCALE * x, SCALE * y), character, font=face, fill=table.ink, anchor="mm")


def _draw_chart(pen: ImageDraw.ImageDraw, chart: Chart) -> None:
    axis = (90, 90, 90)
    for value in range(11):
        y = SCALE * (BASELINE - value * UNIT)
        pen.line((SCALE * (AXIS - 3), y, SCALE * AXIS, y), fill=axis, width=SCALE)
    pen.line((SCALE * AXIS, SCALE * 6, SCALE * AXIS, SCALE * BASELINE), fill=axis, width=SCALE)
    pen.line((SCALE * AXIS, SCALE * BASELINE, SCALE * 94, SCALE * BASELINE), fill=axis, width=SCALE)
    for (colour, _), (left, top, right, bottom) in zip(chart.bars, bar_boxes(chart), strict=True):
        pen.rectangle((SCALE * left, SCALE * top, SCALE * right - 1, SCALE * bottom - 1), fill=COLOURS[colour])


def _draw_sign(pen: ImageDraw.ImageDraw, sign: Sign) -> None:
    """At the image's own size: fonts have smooth edges already."""
    width, height = text_size(sign.text, sign.font, sign.size)
    pen.rectangle((sign.x - 3, sign.y - 2, sign.x + width + 2, sign.y + height + 1), fill=sign.paper)
    pen.text((sign.x, sign.y), sign.text, font=font(sign.font, sign.size), fill=sign.ink)


def _with_noise(image: Image.Image, seed: int) -> Image.Image:
    pixels = np.asarray(image, dtype=np.int16)
    noise = np.random.Generator(np.random.SFC64(seed)).integers(-8, 9, pixels.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def draw(world: World) -> Image.Image:
    """``world`` as an RGB image of ``IMAGE_SIZE`` x ``IMAGE_SIZE`` pixels."""
    image = Image.new("RGB", (IMAGE_SIZE * SCALE, IMAGE_SIZE * SCALE), world.background)
    pen = ImageDraw.Draw(image)
    if isinstance(world, Scene):
        for thing in world.things:
            _draw_thing(pen, thing, world.background)
    elif isinstance(world, Chart):
        _draw_chart(pen, world)
    elif isinstance(world, Table):
        _draw_table(pen, world)
    image = image.reduce(SCALE)
    if isinstance(world, Sign):
        _draw_sign(ImageDraw.Draw(image), world)
    return _with_noise(image, world.grain)
