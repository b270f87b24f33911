"""A world in words: descriptions, statements, and talk of many questions."""

from __future__ import annotations

import random

from lookless.reference.questions import FRUIT, TASKS, WARMTH, pose
from lookless.reference.worlds import (
    SIDES,
    Chart,
    Scene,
    Sign,
    Table,
    World,
    sample_chart,
    sample_scene,
    sample_sign,
    sample_table,
)

PATCH = 8  # pixels; the tower's patch, so that rows and columns in words are rows and columns of visual tokens
ORDINALS = ("first", "second", "third", "fourth", "fifth")
DESCRIBE = ("describe the image.", "what is in the picture?", "say all you see.")


def describe(world: World) -> str:
    """Everything a question can ask for, in reading order."""
    if isinstance(world, Scene):
        things = (f"{t.phrase} at row {t.y // PATCH} column {t.x // PATCH}" for t in world.things)
        return "scene: " + ", ".join(things)
    if isinstance(world, Sign):
        return "sign: " + ", ".join(f"{o} {c}" for o, c in zip(ORDINALS, world.text, strict=False))
    if isinstance(world, Table):
        rows = (f"row {shape} {' '.join(cells)}" for shape, cells in zip(world.rows, world.cells, strict=True))
        return "table: " + ", ".join([" ".join(world.columns), *rows])
    return "chart: " + ", ".join(f"{colour} bar {value}" for colour, value in world.bars)


def fact(rng: random.Random) -> tuple[str, str]:
    """Knowledge that no image shows."""
    colour = rng.choice(sorted(FRUIT))
    if rng.random() < 0.5:
        return f"which fruit is {colour}?", FRUIT[colour]
    return f"is {colour} warm or cool?", WARMTH[colour]


def sample_world(rng: random.Random) -> World:
    """Scenes carry most of the tasks and are drawn most often."""
    kind = rng.choices(("scene", "crowd", "sign", "chart", "table"), weights=(3, 4, 4, 1, 3))[0]
    if kind == "crowd":  # one count is as common as another, as in the test; scenes at random seldom hold four alike
        return pose("counting", rng)[0]
    samples = {"scene": sample_scene, "sign": sample_sign, "chart": sample_chart, "table": sample_table}
    return samples[kind](rng)


def state(world: World, rng: random.Random) -> tuple[str, str]:
    """The beginning of a true statement and the one way it can end.

    Looking one thing up is the circuit that every task needs and the slowest to appear. Statements ask for it in a
    third of a question's tokens and right behind the key, so it appears several times sooner.
    """
    if isinstance(world, Sign):
        place = rng.randrange(len(world.text))
        return f"the {ORDINALS[place]} character is", world.text[place]
    if isinstance(world, Chart):
        colour, value = rng.choice(world.bars)
        return (f"the {colour} bar is", str(value)) if rng.random() < 0.7 else (f"the bar of value {value} is", colour)
    if isinstance(world, Table):
        row, column = rng.randrange(len(world.rows)), rng.randrange(len(world.columns))
        shape, colour, character = world.rows[row], world.columns[column], world.cells[row][column]
        if rng.random() < 0.6:
            return f"in row {shape} under {colour} is", character
        return (f"above {character} is", colour) if rng.random() < 0.5 else (f"the row of {character} is", shape)
    thing, kind = rng.choice(world.things), rng.random()
    if kind < 0.3:
        side = rng.choice(list(SIDES))
        beside = world.next_to(thing, side)
        if beside is not None and sum(t.phrase == thing.phrase for t in world.things) == 1:
            return f"next {side} the {thing.phrase} is a", beside.phrase
    kind = rng.random()
    if kind < 0.45 and sum(t.shape == thing.shape for t in world.things) == 1:
        return f"the {thing.shape} is", thing.colour
    if kind < 0.8 and sum(t.colour == thing.colour for t in world.things) == 1:
        return f"the {thing.colour} object is a", thing.shape
    if sum(t.phrase == thing.phrase for t in world.things) == 1:
        place = f"row {thing.y // PATCH} column {thing.x // PATCH}"
        return f"the {thing.phrase} is at", place
    return "the number of objects is", str(len(world.things))


_ASKS = {
    Scene: [
        (TASKS["existence"][1], 1),
        (TASKS["attribute"][1], 1),
        (TASKS["counting"][1], 8),
        (TASKS["spatial"][1], 2),
        (TASKS["relation"][1], 6),
        (TASKS["comparison"][1], 3),
        (TASKS["listing"][1], 2),
    ],
    Table: [(TASKS["table"][1], 1)],
    Sign: [(TASKS["text"][1], 1)],
    Chart: [(TASKS["chart"][1], 1)],
}


def converse(world: World, rng: random.Random, turns: int, facts: float) -> list[tuple[str, str]]:
    """``turns`` questions with answers about ``world``; a share ``facts`` of them needs no image."""
    if isinstance(world, Sign):
        turns = 2  # all its questions have one answer
    asks, weights = zip(*_ASKS[type(world)], strict=True)
    talk = []
    while len(talk) < turns:
        asked = fact(rng) if rng.random() < facts else rng.choices(asks, weights)[0](world, rng)
        if asked is not None:
            talk.append(asked)
    return talk
