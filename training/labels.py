"""Dense labels: what each patch of an image shows. They stand in for the image-text pretraining of a CLIP tower."""

from __future__ import annotations

import numpy as np

from describe import PATCH
from lookless.reference.draw import bar_boxes, character_boxes
from lookless.reference.worlds import CHARACTERS, COLOURS, IMAGE_SIZE, SHAPES, Scene, Sign, World

SIDE = IMAGE_SIZE // PATCH
VISUAL = SIDE * SIDE  # visual tokens of an image
CONTENT = ("nothing", *SHAPES, "bar", *CHARACTERS)
COLOUR = ("nothing", *COLOURS)
# number: a character's place in its sign, a bar's value; centre: the patch an object is counted at
HEADS = {"content": len(CONTENT), "colour": len(COLOUR), "number": 10, "centre": 2, "row": SIDE, "column": SIDE}


def _boxes(world: World):
    """(box, content, colour, number, centre x, centre y) of everything in ``world``."""
    if isinstance(world, Scene):
        for t in world.things:
            r = t.radius
            box = (t.x - r, t.y - r, t.x + r, t.y + r)
            yield box, CONTENT.index(t.shape), COLOUR.index(t.colour), 0, t.x, t.y
    elif isinstance(world, Sign):
        for i, (box, c) in enumerate(zip(character_boxes(world), world.text, strict=True)):
            yield box, CONTENT.index(c), 0, i + 1, (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    else:
        for box, (colour, value) in zip(bar_boxes(world), world.bars, strict=True):
            yield box, CONTENT.index("bar"), COLOUR.index(colour), value, (box[0] + box[2]) // 2, box[1]


def dense_labels(world: World) -> np.ndarray:
    """int64 ``[VISUAL, len(HEADS)]``: each patch is labelled by the box that covers most of it."""
    labels = np.zeros((SIDE, SIDE, len(HEADS)), dtype=np.int64)
    covered = np.zeros((SIDE, SIDE))
    edges = np.arange(SIDE) * PATCH
    for (left, top, right, bottom), content, colour, number, x, y in _boxes(world):
        wide = np.clip(np.minimum(edges + PATCH, right) - np.maximum(edges, left), 0, None)
        high = np.clip(np.minimum(edges + PATCH, bottom) - np.maximum(edges, top), 0, None)
        area = np.outer(high, wide)
        mine = area > np.maximum(covered, 12)
        labels[mine, :3] = content, colour, number
        covered[mine] = area[mine]
        row, column = y // PATCH, x // PATCH
        labels[row, column, :4] = content, colour, number, 1
        covered[row, column] = PATCH * PATCH
    labels[..., 4] = np.arange(SIDE)[:, None]
    labels[..., 5] = np.arange(SIDE)[None, :]
    return labels.reshape(VISUAL, len(HEADS))
