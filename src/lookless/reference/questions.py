"""Questions about a world, in tasks that need different visual skills: six need one look, four need several.

========== ======================================== ==========================
task       question                                 similar to
========== ======================================== ==========================
existence  is such an object there (near misses)    POPE
attribute  colour, shape, or a fact about them      VQA
counting   how many of a colour or a shape          VQA, TallyQA
spatial    how two objects stand to each other      GQA
text       2 to 5 characters, several fonts, sizes  OCRBench, TextVQA
chart      values and comparisons of bars           ChartQA

relation   what is next to an object, once or twice GQA
comparison which of a set there is most of          NLVR2
table      a cell by its row and column, or back    TableVQA
listing    every object in words, a long answer     captioning
========== ======================================== ==========================
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import TypeAlias

from .worlds import (
    COLOURS,
    SHAPES,
    SIDES,
    Chart,
    Scene,
    Sign,
    Table,
    Thing,
    World,
    sample_chart,
    sample_scene,
    sample_sign,
    sample_table,
)

QA = tuple[str, str]  # question, answer
FRUIT = {
    "red": "cherry",
    "green": "lime",
    "blue": "blueberry",
    "yellow": "banana",
    "purple": "grape",
    "orange": "tangerine",
    "brown": "coconut",
    "pink": "guava",
}
WARMTH = {c: "cool" if c in ("green", "blue", "purple") else "warm" for c in COLOURS}
MARGIN = 12  # pixels by which two objects must differ for a question about "left of" or "above"
MOST_COUNTED = 4  # so that a guess without the image is right one time in five


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _unique(things: tuple[Thing, ...]) -> list[Thing]:
    seen = Counter(t.phrase for t in things)
    return [t for t in things if seen[t.phrase] == 1]


def ask_existence(scene: Scene, rng: random.Random) -> QA:
    """Half of the answers are no. Most of those name a colour and a shape that are both there, in different objects."""
    there = {(t.colour, t.shape) for t in scene.things}
    if rng.random() < 0.5:
        colour, shape = rng.choice(sorted(there))
    else:
        colours = sorted({c for c, _ in there}) if rng.random() < 0.8 else list(COLOURS)
        shapes = sorted({s for _, s in there}) if rng.random() < 0.8 else list(SHAPES)
        absent = [(c, s) for c in colours for s in shapes if (c, s) not in there]
        absent = absent or [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in there]
        colour, shape = rng.choice(absent)
    wording = rng.choice(
        ("is there a {} {}?", "does the image show a {} {}?", "can you see a {} {}?", "is a {} {} in the picture?")
    )
    question = wording.format(colour, shape).replace(" a orange", " an orange")
    return question, _yes((colour, shape) in there)


def ask_attribute(scene: Scene, rng: random.Random) -> QA | None:
    """About the only object of its shape, or of its colour. A third of the questions also need a fact about colours."""
    shapes = Counter(t.shape for t in scene.things)
    colours = Counter(t.colour for t in scene.things)
    by_shape = [t for t in scene.things if shapes[t.shape] == 1]
    by_colour = [t for t in scene.things if colours[t.colour] == 1]
    if by_colour and rng.random() < 0.4:
        thing = rng.choice(by_colour)
        wording = rng.choice(("what shape is the {} object?", "which shape is {}?", "what is the {} thing?"))
        return wording.format(thing.colour), thing.shape
    if not by_shape:
        return None
    thing = rng.choice(by_shape)
    kind = rng.random()
    if kind < 0.2:
        wording = rng.choice(("which fruit has the colour of the {}?", "name a fruit coloured like the {}."))
        return wording.format(thing.shape), FRUIT[thing.colour]
    if kind < 0.35:
        return f"is the colour of the {thing.shape} warm or cool?", WARMTH[thing.colour]
    wording = rng.choice(("what colour is the {}?", "which colour does the {} have?", "tell me the colour of the {}."))
    return wording.format(thing.shape), thing.colour


def ask_counting(scene: Scene, rng: random.Random) -> QA | None:
    """0 to 4 objects of one colour or one shape. Counts of zero are easy, and therefore rare."""
    if rng.random() < 0.5:
        counts, wordings = (
            Counter(dict.fromkeys(COLOURS, 0)),
            ("how many {} objects are there?", "count the {} things.", "how many objects are {}?"),
        )
        counts.update(t.colour for t in scene.things)
    else:
        counts, wordings = (
            Counter(dict.fromkeys(SHAPES, 0)),
            ("how many objects are a {}?", "how many times do you see a {}?", "count every {}."),
        )
        counts.update(t.shape for t in scene.things)
    by_count: dict[int, list[str]] = {}
    for name, count in counts.items():
        if count <= MOST_COUNTED:
            by_count.setdefault(count, []).append(name)
    count = rng.choices(sorted(by_count), weights=[0.5 + c for c in sorted(by_count)])[0]
    return rng.choice(wordings).format(rng.choice(by_count[count])), str(count)


def ask_spatial(scene: Scene, rng: random.Random) -> QA | None:
    """Between two objects, each the only one of its colour and shape, at least ``MARGIN`` pixels apart."""
    unique = _unique(scene.things)
    pairs = [
        (a, b, axis)
        for a in unique
        for b in unique
        for axis in ("x", "y")
        if a is not b and abs(getattr(a, axis) - getattr(b, axis)) >= MARGIN
    ]
    if not pairs:
        return None
    a, b, axis = rng.choice(pairs)
    before, after = ("left of", "right of") if axis == "x" else ("above", "below")
    is_before = getattr(a, axis) < getattr(b, axis)
    if rng.random() < 0.5:
        side = rng.choice((before, after))
        wording = rng.choice(("is the {} {} the {}?", "does the {} stand {} the {}?"))
        return wording.format(a.phrase, side, b.phrase), _yes((side == before) == is_before)
    first, second = rng.sample((before, after), 2)
    side = before if is_before else after
    return f"is the {a.phrase} {first} or {second} the {b.phrase}?", side.removesuffix(" of")


def ask_text(sign: Sign, rng: random.Random) -> QA:
    return rng.choice(("what does the sign say?", "read the text.", "what is written here?")), sign.text


def ask_chart(chart: Chart, rng: random.Random) -> QA:
    kind = rng.random()
    if kind < 0.4:
        colour, value = rng.choice(chart.bars)
        wording = rng.choice(("what is the value of the {} bar?", "how tall is the {} bar?"))
        return wording.format(colour), str(value)
    if kind < 0.7:
        extreme = rng.choice(("tallest", "shortest"))
        best = (max if extreme == "tallest" else min)(chart.bars, key=lambda bar: bar[1])
        return rng.choice(("which bar is the {}?", "what colour is the {} bar?")).format(extreme), best[0]
    (c1, v1), (c2, v2) = rng.sample(chart.bars, 2)
    taller = rng.random() < 0.5
    return f"is the {c1} bar {'taller' if taller else 'shorter'} than the {c2} bar?", _yes((v1 > v2) == taller)


def ask_relation(scene: Scene, rng: random.Random) -> QA | None:
    """What is next to the only object of its shape or colour; half of the questions take a second step from there."""
    kind, asked = rng.choice((("shape", "colour"), ("colour", "shape")))
    counts = Counter(getattr(t, kind) for t in scene.things)
    hops = rng.choice((1, 2))
    chains = [
        (start, sides, end)
        for start in scene.things
        if counts[getattr(start, kind)] == 1
        for sides in product(SIDES, repeat=hops)
        if (end := _follow(scene, start, sides)) not in (None, start)
    ]
    if not chains:
        return None
    start, sides, end = rng.choice(chains)
    place = f"{sides[0]} the {getattr(start, kind)}"
    if kind == "colour":
        place += " object"
    if hops == 2:
        place = f"{sides[1]} what is {place}"
    return f"what {asked} is next {place}?", getattr(end, asked)


def _follow(scene: Scene, thing: Thing, sides: tuple[str, ...]) -> Thing | None:
    """The object reached by steps to the next one on each of ``sides``; None where a step finds none."""
    for side in sides:
        following = scene.next_to(thing, side)
        if following is None:
            return None
        thing = following
    return thing


def ask_comparison(scene: Scene, rng: random.Random) -> QA | None:
    """Which colour or shape is most common among all objects, or which of two."""
    kind = rng.choice(("colour", "shape"))
    (first, most), *others = Counter(getattr(t, kind) for t in scene.things).most_common()
    fewer = [name for name, count in others if count < most]
    if rng.random() < 0.4:
        if not fewer:
            return None
        pair = [first, rng.choice(fewer)]
        rng.shuffle(pair)
        wording = rng.choice(("are more objects {} or {}?", "is {} or {} more common?"))
        return wording.format(*pair), first
    if len(fewer) < len(others) or most == 1:
        return None
    return rng.choice(("which {} is most common?", "what {} do most objects have?")).format(kind), first


def ask_table(table: Table, rng: random.Random) -> QA:
    row, column = rng.randrange(len(table.rows)), rng.randrange(len(table.columns))
    shape, colour, character = table.rows[row], table.columns[column], table.cells[row][column]
    kind = rng.random()
    if kind < 0.6:
        wording = rng.choice(("what is in row {} under {}?", "what does row {} say under {}?"))
        return wording.format(shape, colour), character
    if kind < 0.8:
        return f"which colour heads the column of {character}?", colour
    return f"which shape heads the row of {character}?", shape


def ask_listing(scene: Scene, rng: random.Random) -> QA:
    wording = rng.choice(("list all objects.", "name every object.", "which objects are there?"))
    return wording, ", ".join(t.phrase for t in scene.things)


Task: TypeAlias = "tuple[Callable[[random.Random], World], Callable[..., QA | None]]"
#: By name. The first six need one look; the others need several, and listing a long answer.
TASKS: dict[str, Task] = {
    "existence": (sample_scene, ask_existence),
    "attribute": (sample_scene, ask_attribute),
    "counting": (sample_scene, ask_counting),
    "spatial": (sample_scene, ask_spatial),
    "text": (sample_sign, ask_text),
    "chart": (sample_chart, ask_chart),
    "relation": (sample_scene, ask_relation),
    "comparison": (sample_scene, ask_comparison),
    "table": (sample_table, ask_table),
    "listing": (sample_scene, ask_listing),
}


def _answers(task: str) -> tuple[str, ...]:
    """All answers of a closed task, which :func:`pose` makes equally frequent; empty for open tasks."""
    return {"existence": ("yes", "no"), "counting": tuple("01234")}.get(task, ())


def pose(task: str, rng: random.Random) -> tuple[World, str, str]:
    """One world with one question about it, as (world, question, answer). Answers of closed tasks are balanced."""
    sample, ask = TASKS[task]
    wanted = rng.choice(_answers(task)) if _answers(task) else None
    while True:
        world = sample(rng)
        asked = ask(world, rng)
        if asked is not None and wanted in (None, asked[1]):
            return world, *asked
