"""Questions with their answers, dense and under the plan, and small copies of their images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from ..data import Sample, load_data
from ..errors import DataError
from ..evaluation import Answer, Evaluation, normal

#: Pixels of the longer side of an image, bytes of one and of all together, and cases with images, shared by the tasks.
SIDE, MOST_BYTES, ALL_BYTES, MOST_IMAGES = 224, 40_000, 2_000_000, 60
#: Cases of a task whose answer stays, as examples.
SAME = 3
#: Cases of a task that a page shows without being asked.
OPEN = 16
#: What becomes of an answer, and how a page says it; the order of the cases.
KINDS = {
    "lost": "lost: dense right, plan wrong",
    "gained": "gained: dense wrong, plan right",
    "changed": "changed: both wrong",
    "same": "same answer",
}


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        kind: a key of :data:`KINDS`.
        images: data URIs.
    """

    task: str
    kind: str
    answer: Answer
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cases:
    """The cases of one task.

    Attributes:
        shown: every answer that changed, then some that did not; the page folds those after :data:`OPEN`.
        counts: questions by kind, of all.
        note: why there are no images, or not all of them; empty otherwise.
    """

    task: str
    shown: tuple[Case, ...]
    counts: Mapping[str, int]
    note: str = ""

    @property
    def questions(self) -> int:
        return sum(self.counts.values())


def kind_of(answer: Answer) -> str:
    """A key of :data:`KINDS`, by exact match as in :func:`lookless.evaluate`."""
    expected, dense, plan = (normal(a or "") for a in (answer.expected, answer.dense, answer.plan))
    if dense == plan:
        return "same"
    return "lost" if dense == expected else "gained" if plan == expected else "changed"


def cases_of(evaluations: Mapping[str, Evaluation], data: Mapping[str, str]) -> list[Cases]:
    """The cases of every task, with images as far as the bounds allow.

    Args:
        evaluations: by task.
        data: where to load the samples of a task.
    """
    budget, found = ALL_BYTES, []
    for task, evaluation in evaluations.items():
        chosen, room = _chosen(task, evaluation), MOST_IMAGES // len(evaluations)
        samples, problem = _samples([case.answer for case in chosen], data.get(task))
        shown, left_out = [], 0
        for case in chosen:
            sample = samples.get(case.answer.sample_hash or "")
            images = [] if sample is None else _small(sample)
            weight = sum(map(len, images))
            if images and (not room or weight > budget):
                images, weight, left_out = [], 0, left_out + 1
            room, budget = room - bool(images), budget - weight
            shown.append(Case(task, case.kind, case.answer, tuple(images)))
        note = problem or (f"{left_out} images are left out to keep the page small." if left_out else "")
        counts = {kind: sum(kind_of(a) == kind for a in evaluation.answers if a.plan is not None) for kind in KINDS}
        found.append(Cases(task, tuple(shown), counts, note))
    return found


def _chosen(task: str, evaluation: Evaluation) -> list[Case]:
    """Every answer that changed, and the first few that did not."""
    cases = [Case(task, kind_of(answer), answer) for answer in evaluation.answers if answer.plan is not None]
    same = [case for case in cases if case.kind == "same"][:SAME]
    order = [*KINDS]
    return sorted((c for c in cases if c.kind != "same"), key=lambda c: order.index(c.kind)) + same


def _samples(answers: Sequence[Answer], where: str | None) -> tuple[dict[str, Sample], str]:
    """The samples of ``answers`` by hash, and why there are none."""
    wanted = {answer.sample_hash for answer in answers if answer.sample_hash is not None}
    if not wanted:
        return {}, "The evaluation does not name its samples, so there are no images." if answers else ""
    if where is None:
        return {}, "Where the images are is not known: give --data."
    try:
        found = _look_up(where, wanted)
    except DataError as problem:
        return {}, f"No images: {problem}"
    missing = len(wanted) - len(found)
    return found, f"{missing} of these questions are not in {where}, so they have no image." if missing else ""


def _look_up(where: str, wanted: Iterable[str]) -> dict[str, Sample]:
    """The samples of ``where`` that are wanted. A reference task is endless: so many are drawn."""
    left, found = set(wanted), dict[str, Sample]()
    endless = where == "reference" or where.startswith("reference:")
    for limit in (100, 600) if endless else (None,):
        for sample in load_data(where, limit=limit) if left else ():
            if sample.hash in left:
                found[sample.hash] = sample
                left.discard(sample.hash)
    return found


def _small(sample: Sample) -> list[str]:
    """Data URIs of the images of ``sample``, none if one of them cannot be opened or made small enough."""
    try:
        uris = [_uri(image) for image in sample.opened()]
    except DataError:
        return []
    return [] if None in uris else [uri for uri in uris if uri]


def _uri(image: Image.Image) -> str | None:
    """``image`` as a small PNG or JPEG, whichever takes fewer bytes; None if both take too many."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    options: tuple[tuple[str, dict[str, object]], ...] = (("png", {"optimize": True}), ("jpeg", {"quality": 80}))
    written = {kind: _encoded(small, kind, **settings) for kind, settings in options}
    kind = min(written, key=lambda k: len(written[k]))
    if len(written[kind]) > MOST_BYTES:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(written[kind]).decode()}"


def _encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()
