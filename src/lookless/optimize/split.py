"""Each data set in four parts that share no prompt: to calibrate, to search, to select, and to certify on.

What is certified holds for data that nothing was chosen by. So the parts are drawn before anything is measured, and the
last is not looked at until the plans and their order are fixed. Answers about one image are alike, so of a file the
last part holds one question about each image, and no image of the other parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from .. import reference
from ..answers import scored_by
from ..certification.independent import image_files, one_by_one, one_per_image
from ..data import AS_IS, Reading, Sample, Samples
from ..errors import DataError
from ..loading import Loaded
from .folder import Part, TaskData, task_names

PARTS = ("calibration", "tuning", "selection", "certification")
#: Shares of a file that is too short for what is wanted of it, of all parts but the last.
SHORT = (0.1, 0.2, 0.2)
LEAST = 8  #: prompts of a file


@dataclass(frozen=True)
class Sizes:
    """Samples of each task in each part."""

    calibration: int
    tuning: int
    selection: int
    certification: int

    @property
    def seen(self) -> tuple[int, int, int]:
        """Of the parts that choices are made by."""
        return self.calibration, self.tuning, self.selection


@dataclass(frozen=True)
class Task:
    """One data set in its four parts.

    Attributes:
        name: the short one, for files and tables.
        data: as given.
    """

    name: str
    data: str
    calibration: Samples
    tuning: Samples
    selection: Samples
    certification: Samples

    @property
    def bad(self) -> tuple[str, ...]:
        """What is wrong with each sample that was skipped."""
        return tuple(dict.fromkeys(one for part in PARTS for one in getattr(self, part).bad))

    def fitting(self, loaded: Loaded) -> Task:
        """Without the samples that the model's processor refuses. Raises: DataError: none of a part is left."""
        parts = {part: loaded.fitting(getattr(self, part)) for part in PARTS}
        return replace(self, **parts)  # type: ignore[arg-type]

    @property
    def record(self) -> TaskData:
        parts = {name: _part(getattr(self, name)) for name in PARTS}
        return TaskData(task=self.name, data=self.data, **parts)


def _part(samples: Samples) -> Part:
    return Part(hash=samples.hash, sample_hashes=samples.hashes)


def split(model: str, data: Sequence[str], sizes: Sizes, *, seed: int = 0, reading: Reading = AS_IS) -> list[Task]:
    """Each of ``data`` in four parts.

    A reference task has splits: the last part is of the one, the others are of the other, and as many as
    are wanted. A file has the samples that it has: they are drawn by ``seed``, equally many of each of its tasks, and
    if they are too few, each part has its share of them. ``reference`` is all tasks that ``model`` knows.

    Args:
        reading: how data are read and scored, where they do not say it themselves.

    Raises:
        DataError: no such data, the same data twice, or a file of too few different prompts with an image.
    """
    wheres = [where for given in data for where in _expanded(given, model)]
    if len(set(wheres)) < len(wheres):
        twice = next(where for where in wheres if wheres.count(where) > 1)
        raise DataError(f"{twice} is given twice: give each data set once.")
    pairs = zip(task_names(wheres), wheres, strict=True)
    return [_task(name, where, sizes, seed, reading) for name, where in pairs]


def _expanded(where: str, model: str) -> list[str]:
    return [f"reference:{task}" for task in reference.tasks_of(model)] if where == "reference" else [where]


def _task(name: str, where: str, sizes: Sizes, seed: int, reading: Reading) -> Task:
    if where.startswith("reference:"):
        drawn = reading.load(where, split="calibration", limit=sum(sizes.seen))
        drawn = scored_by(drawn, one_by_one(drawn.metric, where))
        test = reading.load(where, limit=sizes.certification)
        known = set(drawn.hashes)
        return _made(name, where, drawn, sizes.seen, [item for item in test if item.hash not in known])
    drawn = reading.load(where, split="calibration", seed=seed)
    drawn = scored_by(drawn, one_by_one(drawn.metric, where))  # before the work, which may take hours
    items = _different(drawn.items)
    if not any(item.pictures for item in items):
        raise DataError(f"none of the {len(items)} prompts of {where} has an image: there is nothing to make faster.")
    if len(items) < LEAST:
        raise DataError(
            f"{where} holds {len(items)} different prompts with an image, and {LEAST} are needed to calibrate, to "
            f"compare plans and to test them on different ones: give more."
        )
    seen = sizes.seen
    if len(items) < sum(seen) + sizes.certification:  # half of what is there, at least, is for the certificate
        wanted = zip(seen, SHORT, strict=True)
        seen = tuple(max(1, min(want, int(share * len(items)))) for want, share in wanted)  # type: ignore[assignment]
    first, last = _apart_by_image(items, sum(seen), seed)
    if not last:
        raise DataError(
            f"the {len(items)} prompts of {where} are about too few images: none is left to certify on, as choices may "
            f"not be tested on their own images. Give prompts about more images, or smaller parts."
        )
    return _made(name, where, replace(drawn, items=first, left_out=0), seen, last[: sizes.certification])


def _apart_by_image(items: Sequence[Sample], count: int, seed: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """``count`` of ``items``, of as few images as may be, in their order; and one question about each other image."""
    files = [image_files(item) for item in items]
    begun: dict[frozenset[str], int] = {}
    for index, mine in enumerate(files):
        begun.setdefault(mine, index)
    by_image = sorted(range(len(items)), key=lambda index: begun[files[index]] if files[index] else index)
    chosen, rest = sorted(by_image[:count]), sorted(by_image[count:])
    first = tuple(items[index] for index in chosen)
    known = frozenset[str]().union(*(files[index] for index in chosen))
    others = tuple(items[index] for index in rest if not files[index] & known)
    return first, one_per_image(Samples("others", others), seed).items


def _different(items: Sequence[Sample]) -> tuple[Sample, ...]:
    """Each prompt once."""
    return tuple({item.hash: item for item in items}.values())


def _made(name: str, where: str, drawn: Samples, seen: Sequence[int], last: Sequence[Sample]) -> Task:
    """The first of ``drawn`` in parts of the sizes ``seen``, and ``last`` to certify on."""
    ends = list(accumulate(seen, initial=0))
    firsts = [drawn.items[start:end] for start, end in pairwise(ends)]
    plain = drawn.name.removesuffix(" (calibration)")  # a reference task's split, which the last part is not of
    parts = [replace(drawn, name=plain, items=tuple(items), left_out=0) for items in (*firsts, last)]
    return Task(name, where, *parts)
