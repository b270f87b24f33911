"""Questions with their answers, dense, under the plan and under other methods, and small copies of their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..data import Sample
from ..errors import DataError
from ..evaluation import Answer, Evaluation, normal
from .material import Material, Other
from .pictures import Album, small

#: Bytes of all images together, and cases with images, shared by the tasks.
ALL_BYTES, MOST_IMAGES = 2_000_000, 60
#: Cases of a task whose answer stays, as examples.
SAME = 3
#: Changed answers of a task that a page shows without being asked, and then :data:`SAME` more.
OPEN = 16
#: What becomes of an answer, and how a page says it; the order of the cases.
KINDS = {
    "lost": "lost: dense right, plan wrong",
    "gained": "gained: dense wrong, plan right",
    "changed": "changed: both wrong",
    "same": "same answer",
}


@dataclass(frozen=True)
class Reply:
    """What another method answers; ``kind``: a key of :data:`KINDS`."""

    name: str
    words: str
    kind: str


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        kind: a key of :data:`KINDS`.
        others: the answers of other methods, where they are known.
        images: data URIs.
    """

    task: str
    kind: str
    answer: Answer
    others: tuple[Reply, ...] = ()
    images: tuple[str, ...] = ()

    @property
    def losers(self) -> list[str]:
        """The other methods that lose the answer."""
        return [reply.name for reply in self.others if reply.kind == "lost"]


@dataclass(frozen=True)
class Row:
    """How one method answers the questions that all were asked.

    Attributes:
        kept, time: the shares of the prefill's FLOPs and of its time that are left; None if they are not known.
        right: answers that are right.
        counts: answers by kind.
    """

    name: str
    kept: float | None
    time: float | None
    right: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Cases:
    """The cases of one task.

    Attributes:
        shown: every answer that changed under the plan, then those that only another method changed, then some that
            stay.
        counts: questions by kind, of all.
        asked: of so many questions all methods were asked.
        methods: on these, the plan and each other method; empty without others.
        note: why there are no images, or not all of them; empty otherwise.
    """

    task: str
    shown: tuple[Case, ...]
    counts: Mapping[str, int]
    asked: int = 0
    methods: tuple[Row, ...] = ()
    note: str = ""

    @property
    def labelled(self) -> bool:
        """Whether the data say what is right."""
        return any(case.answer.expected for case in self.shown)

    @property
    def open(self) -> int:
        """So many of ``shown`` are seen without being asked for."""
        return min(OPEN, sum(case.kind != "same" for case in self.shown)) + SAME

    @property
    def questions(self) -> int:
        return sum(self.counts.values())


def kind_of(answer: Answer) -> str:
    """A key of :data:`KINDS`, by the evaluation's metric."""
    if normal(answer.dense) == normal(answer.plan or ""):
        return "same"
    change = (answer.plan_score or 0.0) - answer.dense_score
    return "lost" if change < 0 else "gained" if change > 0 else "changed"


def cases_of(material: Material, album: Album) -> list[Cases]:
    """The cases of every task, with images of ``album`` as far as the bounds allow."""
    budget, found = ALL_BYTES, []
    for task, evaluation in material.evaluations.items():
        chosen, room = chosen_of(task, evaluation, material.others), MOST_IMAGES // len(material.evaluations)
        samples, problem = _samples(task, [case.answer for case in chosen], album)
        shown, left_out = [], 0
        for case in chosen:
            sample = samples.get(case.answer.sample_hash or "")
            images = [] if sample is None else small(sample)
            weight = sum(map(len, images))
            if images and (not room or weight > budget):
                images, weight, left_out = [], 0, left_out + 1
            room, budget = room - bool(images), budget - weight
            shown.append(replace(case, images=tuple(images)))
        note = problem or (f"{left_out} images are left out to keep the page small." if left_out else "")
        asked, rows = _methods(task, evaluation, material)
        found.append(Cases(task, tuple(shown), _counts(evaluation.answers), asked, rows, note))
    return found


def chosen_of(task: str, evaluation: Evaluation, others: Sequence[Other] = ()) -> list[Case]:
    """Every answer that changed, and the first few that did not."""
    replies = {other.name: _by_hash(other.evaluations[task]) for other in others if task in other.evaluations}
    cases = [
        Case(task, kind_of(answer), answer, _replies(answer, replies))
        for answer in evaluation.answers
        if answer.plan is not None
    ]
    order = [*KINDS]
    changed = sorted((case for case in cases if case.kind != "same"), key=lambda case: order.index(case.kind))
    same = [case for case in cases if case.kind == "same"]
    elsewhere = [case for case in same if any(reply.kind != "same" for reply in case.others)]
    stays = [case for case in same if case not in elsewhere]
    return [*changed, *sorted(elsewhere, key=_losses, reverse=True), *stays[:SAME]]


def _losses(case: Case) -> int:
    return sum(reply.kind == "lost" for reply in case.others)


def _by_hash(evaluation: Evaluation) -> dict[str, Answer]:
    return {one.sample_hash: one for one in evaluation.answers if one.sample_hash and one.plan is not None}


def _replies(answer: Answer, replies: Mapping[str, Mapping[str, Answer]]) -> tuple[Reply, ...]:
    """To the question of ``answer``, judged against its dense answer."""
    found = []
    for name, known in replies.items():
        other = known.get(answer.sample_hash or "")
        if other is not None and other.plan is not None:
            found.append(Reply(name, other.plan, kind_of(answer.under(other))))
    return tuple(found)


def _counts(answers: Sequence[Answer]) -> dict[str, int]:
    return {kind: sum(kind_of(a) == kind for a in answers if a.plan is not None) for kind in KINDS}


def _methods(task: str, evaluation: Evaluation, material: Material) -> tuple[int, tuple[Row, ...]]:
    """Of the questions that all methods were asked, how many there are, and how each method did."""
    others = [(other, _by_hash(other.evaluations[task])) for other in material.others if task in other.evaluations]
    if not others:
        return 0, ()
    mine = [one for one in evaluation.answers if all(one.sample_hash in known for _, known in others)]
    plan = Other("the plan", {}, material.share(material.examined), material.time(material.examined))
    rows = [_row(plan, mine)]
    for other, known in others:
        rows.append(_row(other, [one.under(known[one.sample_hash or ""]) for one in mine]))
    return len(mine), tuple(rows)


def _row(method: Other, answers: Sequence[Answer]) -> Row:
    right = sum(one.plan_score == 1 for one in answers)
    return Row(method.name, method.kept, method.time, right, _counts(answers))


def _samples(task: str, answers: Sequence[Answer], album: Album) -> tuple[dict[str, Sample], str]:
    """The samples of ``answers`` by hash, and why there are none."""
    wanted = {answer.sample_hash for answer in answers if answer.sample_hash is not None}
    if not wanted:
        return {}, "The evaluation does not name its samples, so there are no images." if answers else ""
    try:
        found = album.samples(task, wanted)
    except DataError as problem:
        return {}, f"No images: {problem}"
    missing, where = len(wanted) - len(found), album.data[task]
    return found, f"{missing} of these questions are not in {where}, so they have no image." if missing else ""
