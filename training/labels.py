"""Dense labels of visual tokens: what each patch shows, and how what it shows stands to what came before it.

They stand in for the image-text pretraining of larger models. Heads read them off the *visual rows* behind layers of
the decoder and are thrown away; the tower is too shallow to know the answers, so the decoder has to look.
The second set joins patches that are far apart. A visual row sees the rows before it, so each of its labels is about
what stands earlier in reading order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lookless.reference.draw import HEAD, Box, bar_boxes, cell_centre, character_boxes, letter_box
from lookless.reference.worlds import CHARACTERS, COLOURS, IMAGE_SIZE, SHAPES, Chart, Scene, Sign, Table, World

from .describe import PATCH

SIDE = IMAGE_SIZE // PATCH
VISUAL = SIDE * SIDE  # visual tokens of an image
CONTENT = ("nothing", *SHAPES, "bar", *CHARACTERS)
COLOUR = ("nothing", *COLOURS)
MOST = 15  # things in one image: a table of three rows and columns with its heads
# number: a character's place in its sign, a bar's value; counted: whether the patch is the one a thing is counted at
NEAR = {"content": len(CONTENT), "colour": len(COLOUR), "number": 10, "counted": 2, "row": SIDE, "column": SIDE}
# ordinals, from one: among all, so a bar's rank by height, among those of its colour, of its content; then what stands
# next to it on the left and above it, and in a table what heads its row and its column
FAR = {
    "ordinal": MOST + 1,
    "ordinal of colour": MOST + 1,
    "ordinal of content": MOST + 1,
    "left content": len(CONTENT),
    "left colour": len(COLOUR),
    "above content": len(CONTENT),
    "above colour": len(COLOUR),
}
LABELS = (*NEAR, *FAR)
IGNORED = -100


@dataclass(frozen=True)
class Item:
    """One thing in an image; all places in pixels.

    Attributes:
        x, y: its middle, or the top of a bar.
        seen: the y by which a reader from above has seen all of it. It is counted at the patch of ``x, seen``.
        left, above: (content, colour) of what stands there.
    """

    box: Box
    x: int
    y: int
    seen: int
    content: int
    colour: int = 0
    number: int = 0
    left: tuple[int, int] = (0, 0)
    above: tuple[int, int] = (0, 0)


def _scene(scene: Scene) -> Iterator[Item]:
    def at(side, thing):
        other = scene.next_to(thing, side)
        return (CONTENT.index(other.shape), COLOUR.index(other.colour)) if other else (0, 0)

    for t in scene.things:
        box = (t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius)
        content, colour = CONTENT.index(t.shape), COLOUR.index(t.colour)
        yield Item(box, t.x, t.y, t.y + t.radius - 1, content, colour, left=at("left of", t), above=at("above", t))


def _sign(sign: Sign) -> Iterator[Item]:
    before = (0, 0)
    for i, (box, character) in enumerate(zip(character_boxes(sign), sign.text, strict=True), start=1):
        content = CONTENT.index(character)
        x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
        yield Item(box, x, y, box[3] - 1, content, number=i, left=before)
        before = (content, 0)


def _chart(chart: Chart) -> Iterator[Item]:
    """Tallest first, as their tops come in reading order; what stands beside a bar may come after it."""
    bars = zip(bar_boxes(chart), chart.bars, strict=True)
    for box, (colour, value) in sorted(bars, key=lambda bar: -bar[1][1]):
        content, unknown = CONTENT.index("bar"), (IGNORED, IGNORED)
        middle = (box[0] + box[2]) // 2
        yield Item(box, middle, box[1], box[1], content, COLOUR.index(colour), value, unknown, unknown)


def _table(table: Table) -> Iterator[Item]:
    columns = [(CONTENT.index("square"), COLOUR.index(colour)) for colour in table.columns]
    rows = [(CONTENT.index(shape), 0) for shape in table.rows]

    def head(row, column, kind, **beside):
        x, y = cell_centre(table, row, column)
        return Item((x - HEAD, y - HEAD, x + HEAD, y + HEAD), x, y, y + HEAD - 1, *kind, **beside)

    for column, kind in enumerate(columns, start=1):
        yield head(0, column, kind)
    for row, kind in enumerate(rows, start=1):
        yield head(row, 0, kind)
        for column, character in enumerate(table.cells[row - 1], start=1):
            content = CONTENT.index(character)
            box, centre = letter_box(table, row, column), cell_centre(table, row, column)
            yield Item(box, *centre, box[3] - 1, content, left=kind, above=columns[column - 1])


_ITEMS = {Scene: _scene, Sign: _sign, Chart: _chart, Table: _table}


def items(world: World) -> list[Item]:
    """Everything in ``world``, in the order in which a reader from above meets it."""
    return list(_ITEMS[type(world)](world))


def patch(x: int, y: int) -> int:
    """The index of the patch of that pixel."""
    return y // PATCH * SIDE + x // PATCH


def dense_labels(world: World) -> np.ndarray:
    """int64 ``[VISUAL, len(LABELS)]``: each patch is labelled by the box that covers most of it.

    Labels in ``FAR`` are ignored but where things are counted.
    """
    labels = np.zeros((SIDE, SIDE, len(LABELS)), dtype=np.int64)
    labels[..., len(NEAR) :] = IGNORED
    covered = np.zeros((SIDE, SIDE))
    edges = np.arange(SIDE) * PATCH
    colours: Counter[int] = Counter()
    contents: Counter[int] = Counter()
    for ordinal, item in enumerate(items(world), start=1):
        left, top, right, bottom = item.box
        wide = np.clip(np.minimum(edges + PATCH, right) - np.maximum(edges, left), 0, None)
        high = np.clip(np.minimum(edges + PATCH, bottom) - np.maximum(edges, top), 0, None)
        area = np.outer(high, wide)
        mine = area > np.maximum(covered, 12)
        labels[mine, :3] = item.content, item.colour, item.number
        covered[mine] = area[mine]
        colours[item.colour] += 1
        contents[item.content] += 1
        ordinals = ordinal, colours[item.colour], contents[item.content]
        row, column = divmod(patch(item.x, item.seen), SIDE)
        labels[row, column, :4] = item.content, item.colour, item.number, 1
        labels[row, column, len(NEAR) :] = *ordinals, *item.left, *item.above
        covered[row, column] = PATCH * PATCH
    labels[..., 4] = np.arange(SIDE)[:, None]
    labels[..., 5] = np.arange(SIDE)[None, :]
    return labels.reshape(VISUAL, len(LABELS))
