"""What an image of the reference tasks shows, before a pixel is drawn.

A *world* is frozen data: a :class:`Scene` of coloured shapes, a :class:`Sign` with a few characters, a :class:`Chart`
of bars, or a :class:`Table` of characters. :mod:`lookless.reference.draw` makes an image of it, and
:mod:`lookless.reference.questions` a question about it. All choices come from one ``random.Random``, so its seed
determines the image, and splits with different seeds share no image.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeAlias

from .fonts import text_size

IMAGE_SIZE = 96  # pixels, square
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 90, 220),
    "yellow": (236, 205, 30),
    "purple": (135, 60, 180),
    "orange": (250, 130, 20),
    "brown": (125, 75, 35),
    "pink": (245, 150, 195),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "ring")
# Of each pair that is easily confused (0/O, 1/I, 5/S, 8/B, 2/Z, ...) only one: some fonts draw both alike.
CHARACTERS = "ACEFHJKLMNPRTUVXY2346789"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmss10",
)
LIGHT = ((250, 250, 248), (232, 236, 240), (245, 238, 225), (225, 240, 230))
DARK = ((38, 42, 50), (20, 20, 24), (30, 45, 60))
GRID = 4  # objects are placed in the cells of a GRID x GRID lattice, so they never overlap
CELL = IMAGE_SIZE // GRID  # of that lattice, and of a table; pixels
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # steps on the lattice: down, right
MOST_OBJECTS = 6
TOP_VALUE = 9  # bars are 1 .. TOP_VALUE units tall


@dataclass(frozen=True)
class Thing:
    """One object of a scene; centre ``x, y`` and ``radius`` in pixels."""

    colour: str
    shape: str
    x: int
    y: int
    radius: int

    @property
    def phrase(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column on the lattice."""
        return self.y // CELL, self.x // CELL


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    grain: int  # seed of the background noise

    def next_to(self, thing: Thing, side: str) -> Thing | None:
        """The nearest object on that side (a key of :data:`SIDES`) in the same row or column of the lattice."""
        down, right = SIDES[side]
        row, column = thing.cell
        for step in range(1, GRID):
            for other in self.things:
                if other.cell == (row + step * down, column + step * right):
                    return other
        return None


@dataclass(frozen=True)
class Sign:
    """``text`` in font ``font`` of ``size`` pixels; ``x, y`` is the upper left corner of its box, in pixels."""

    text: str
    font: str
    size: int
    x: int
    y: int
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]
    background: tuple[int, int, int]
    grain: int


@dataclass(frozen=True)
class Chart:
    """Bars from left to right as (colour, value in 1 .. TOP_VALUE); colours differ."""

    bars: tuple[tuple[str, int], ...]
    width: int  # of a bar, pixels
    background: tuple[int, int, int]
    grain: int


@dataclass(frozen=True)
class Table:
    """Characters in cells of ``CELL`` pixels, all different. Each column has a colour as its head, each row a shape.

    ``x, y`` is the upper left corner, in pixels, of the empty cell between row heads and column heads.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[str, ...]  # a string of characters per row, one a column
    font: str
    x: int
    y: int
    ink: tuple[int, int, int]
    background: tuple[int, int, int]
    grain: int


World: TypeAlias = "Scene | Sign | Chart | Table"


def shade(rng: random.Random, rgb: tuple[int, int, int], by: int = 14) -> tuple[int, int, int]:
    """The colour ``rgb`` with each channel changed by at most ``by``, so that no two reds are the same red."""
    r, g, b = (min(255, max(0, channel + rng.randint(-by, by))) for channel in rgb)
    return r, g, b


def sample_scene(rng: random.Random) -> Scene:
    """2 to 6 objects. Few colours and shapes per scene, so that counts above one and near misses occur often."""
    count = rng.randint(2, MOST_OBJECTS)
    colours = rng.sample(list(COLOURS), rng.randint(2, 5))
    shapes = rng.sample(SHAPES, rng.randint(2, 5))
    things = []
    for place in sorted(rng.sample(range(GRID * GRID), count)):
        radius = rng.randint(8, 10)
        slack = CELL // 2 - radius
        things.append(
            Thing(
                colour=rng.choice(colours),
                shape=rng.choice(shapes),
                x=place % GRID * CELL + CELL // 2 + rng.randint(-slack, slack),
                y=place // GRID * CELL + CELL // 2 + rng.randint(-slack, slack),
                radius=radius,
            )
        )
    return Scene(tuple(things), shade(rng, rng.choice(LIGHT + DARK), 6), rng.getrandbits(32))


def sample_sign(rng: random.Random) -> Sign:
    """2 to 5 characters, dark on light or light on dark, anywhere in the image."""
    text = "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(2, 5)))
    font = rng.choice(FONTS)
    size = rng.randint(18, 28)
    while text_size(text, font, size)[0] > IMAGE_SIZE - 10:
        size -= 1
    width, height = text_size(text, font, size)
    light, dark = shade(rng, rng.choice(LIGHT), 6), shade(rng, rng.choice(DARK), 6)
    ink, paper = (dark, light) if rng.random() < 0.6 else (light, dark)
    return Sign(
        text=text,
        font=font,
        size=size,
        x=rng.randint(4, IMAGE_SIZE - 4 - width),
        y=rng.randint(4, IMAGE_SIZE - 4 - height),
        ink=ink,
        paper=paper,
        background=shade(rng, rng.choice(LIGHT + tuple(COLOURS.values())), 6),
        grain=rng.getrandbits(32),
    )


def sample_chart(rng: random.Random) -> Chart:
    """3 to 5 bars of different colours and different values, so that every comparison has one answer."""
    count = rng.randint(3, 5)
    values = rng.sample(range(1, TOP_VALUE + 1), count)
    return Chart(
        bars=tuple(zip(rng.sample(list(COLOURS), count), values, strict=True)),
        width=rng.randint(10, 14),
        background=shade(rng, rng.choice(LIGHT), 4),
        grain=rng.getrandbits(32),
    )


def sample_table(rng: random.Random) -> Table:
    """Two or three rows and columns, anywhere in the image."""
    columns, rows = rng.randint(2, GRID - 1), rng.randint(2, GRID - 1)
    characters = rng.sample(CHARACTERS, rows * columns)
    return Table(
        columns=tuple(rng.sample(list(COLOURS), columns)),
        rows=tuple(rng.sample(SHAPES, rows)),
        cells=tuple("".join(characters[row * columns : (row + 1) * columns]) for row in range(rows)),
        font=rng.choice(("DejaVuSans-Bold", "DejaVuSansMono-Bold")),
        x=rng.randint(0, IMAGE_SIZE - CELL * (columns + 1)),
        y=rng.randint(0, IMAGE_SIZE - CELL * (rows + 1)),
        ink=shade(rng, rng.choice(DARK), 6),
        background=shade(rng, rng.choice(LIGHT), 4),
        grain=rng.getrandbits(32),
    )
