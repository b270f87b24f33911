"""Which visual tokens a plan leaves alive, drawn on the pictures: what is dropped fades."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from ..calibration.kept_tokens import KeptSample, drops_tokens
from ..calibration.token_places import Grid
from ..data import Sample
from ..errors import DataError
from ..evaluation import Answer
from .cases import kind_of
from .material import Material
from .pictures import SIDE, Album, uri
from .svg import tag

#: Pictures that a page shows, shared by the tasks, and stages of one prompt; from more stages, the first and the last.
MOST_PICTURES, MOST_STAGES = 24, 6


@dataclass(frozen=True)
class Stage:
    """From a layer on: what is left, in words, and drawn on each picture."""

    words: str
    drawings: tuple[Markup, ...]


@dataclass(frozen=True)
class Kept:
    """One prompt. ``kind``: a key of :data:`lookless.pages.cases.KINDS`; empty where there are no answers."""

    task: str
    question: str
    kind: str
    answer: Answer | None
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class KeptView:
    """Prompts with what is left of them; ``note``: what is not shown, and why."""

    shown: tuple[Kept, ...]
    note: str = ""


def kept_view(material: Material, album: Album) -> KeptView | None:
    """None where nothing was measured; without a picture where nothing is dropped."""
    if material.examined is None:
        return None
    if not drops_tokens(material.examined):
        return KeptView((), f"No token is dropped: {material.examined_name} keeps every visual token in every layer.")
    found = material.kept_tokens
    if found is None or found.plan_hash != material.examined.hash:
        return None
    shown, notes, each = list[Kept](), list[str](), max(1, MOST_PICTURES // max(1, len(found.kept)))
    for task, prompts in found.kept.items():
        try:
            samples = album.samples(task, [one.sample_hash for one in prompts])
        except DataError as problem:
            notes.append(f"{task}: no pictures, {problem}")
            continue
        shown += _of_task(material, task, prompts, samples, each, len(shown))
        if not all(one.grids for one in prompts):
            notes.append(f"{task}: of some prompts it is not known where in the picture the tokens lie.")
    return KeptView(tuple(shown), " ".join(notes))


def _of_task(
    material: Material, task: str, prompts: Sequence[KeptSample], samples: Mapping[str, Sample], most: int, before: int
) -> list[Kept]:
    answers = material.evaluations[task].answers if task in material.evaluations else ()
    by_hash = {one.sample_hash: one for one in answers}
    shown: list[Kept] = []
    for prompt in prompts:
        sample, answer = samples.get(prompt.sample_hash), by_hash.get(prompt.sample_hash)
        if sample is None or not prompt.grids or len(shown) == most:
            continue
        stages = _stages(prompt, sample, f"seen-{before + len(shown)}")
        kind = kind_of(answer) if answer is not None and answer.plan is not None else ""
        if stages:
            shown.append(Kept(task, sample.question, kind, answer, stages))
    return shown


def _stages(prompt: KeptSample, sample: Sample, name: str) -> tuple[Stage, ...]:
    """All tokens, and then what is left from each layer on; none if an image cannot be shown."""
    images = [(image.size, uri(image)) for image in sample.opened()]
    if any(source is None for _, source in images):
        return ()
    layers = [(0, tuple(range(prompt.visual))), *((stage.layer, stage.kept) for stage in prompt.stages)]
    if len(layers) > MOST_STAGES:
        layers = [*layers[: MOST_STAGES - 1], layers[-1]]
    stages = []
    for place, (layer, kept) in enumerate(layers):
        drawings = []
        for number, (size, source) in enumerate(images):
            levels = _levels(prompt.grids, number)
            for level, grids in enumerate(levels):
                first = source if place == level == 0 else None
                drawings.append(_drawn(f"{name}-{number}", size, first, grids, {*kept} if place else None))
        stages.append(Stage(_words(layer, len(kept), prompt.visual, place), tuple(drawings)))
    return tuple(stages)


def _words(layer: int, kept: int, visual: int, place: int) -> str:
    if not place:
        return f"{visual} visual tokens"
    return f"from layer {layer} on: {kept or 'none'}"


def _levels(grids: Iterable[Grid], image: int) -> list[list[Grid]]:
    """The grids of one picture: those of the whole of it, then those of its tiles."""
    mine = sorted((grid for grid in grids if grid.image == image), key=lambda grid: grid.level)
    return [[*group] for _, group in groupby(mine, key=lambda grid: grid.level)]


def _drawn(
    name: str, size: tuple[int, int], source: str | None, grids: Sequence[Grid], kept: set[int] | None
) -> Markup:
    """A picture with a veil over the cells whose tokens are dropped, and over what the model does not see.

    Args:
        name: of the picture on the page: it is written once, with its ``source``, and used again.
        kept: numbers of the tokens that are left; None draws the cells themselves.
    """
    scale = SIDE / max(size)
    frame = (size[0] * scale, size[1] * scale)
    whole = {"width": frame[0], "height": frame[1]}
    picture = (
        tag("use", href=f"#{name}")
        if source is None
        else tag("image", id=name, href=source, preserveAspectRatio="none", **whole)
    )
    edges = "".join(_rectangle(grid, frame, 0, 0, grid.rows, grid.columns) for grid in grids)
    unseen = tag("path", d=f"M0 0H{frame[0]:.4g}V{frame[1]:.4g}H0z{edges}", class_="unseen")
    if kept is None:
        marks = [tag("path", d="".join(_lines(grid, frame) for grid in grids), class_="cells")]
        said = "the picture with its cells"
    else:
        marks = [tag("path", d="".join(_dropped(grid, frame, kept) for grid in grids), class_="gone")]
        tokens = [
            grid.first + row * grid.step + c for grid in grids for row in range(grid.rows) for c in range(grid.columns)
        ]
        said = f"{sum(token in kept for token in tokens)} of {len(tokens)} cells of the picture are left"
    box = f"0 0 {frame[0]:.4g} {frame[1]:.4g}"
    return tag("svg", picture, unseen, *marks, viewBox=box, role="img", class_="kept", aria_label=said)


def _dropped(grid: Grid, frame: tuple[float, float], kept: set[int]) -> str:
    """The cells whose tokens are not ``kept``; neighbours in a row are one rectangle."""
    parts = []
    for row in range(grid.rows):
        first = grid.first + row * grid.step
        for is_kept, run in groupby(range(grid.columns), key=lambda column: first + column in kept):
            columns = [*run]
            if not is_kept:
                parts.append(_rectangle(grid, frame, row, columns[0], row + 1, columns[-1] + 1))
    return "".join(parts)


def _rectangle(grid: Grid, frame: tuple[float, float], top: int, left: int, bottom: int, right: int) -> str:
    """Between rows and columns of ``grid``."""
    (x1, y1), (x2, y2) = _at(grid, frame, top, left), _at(grid, frame, bottom, right)
    return f"M{x1:.4g} {y1:.4g}H{x2:.4g}V{y2:.4g}H{x1:.4g}z"


def _lines(grid: Grid, frame: tuple[float, float]) -> str:
    """Between all cells."""
    down = [(_at(grid, frame, 0, c), _at(grid, frame, grid.rows, c)) for c in range(grid.columns + 1)]
    across = [(_at(grid, frame, r, 0), _at(grid, frame, r, grid.columns)) for r in range(grid.rows + 1)]
    return "".join(f"M{x1:.4g} {y1:.4g}L{x2:.4g} {y2:.4g}" for (x1, y1), (x2, y2) in (*down, *across))


def _at(grid: Grid, frame: tuple[float, float], row: int, column: int) -> tuple[float, float]:
    left, top, right, bottom = grid.box
    x = (left + (right - left) * column / grid.columns) * frame[0]
    y = (top + (bottom - top) * row / grid.rows) * frame[1]
    return x, y
