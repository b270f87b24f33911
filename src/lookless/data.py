"""Samples: images, a question, the answer to be given. From the reference tasks, or from a JSONL file.

Images in files are opened when they are needed and not kept, so that a thousand photos take no more memory than one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from . import reference
from .errors import DataError
from .files import parse, sentence


class SeenWarning(UserWarning):
    """A plan is tested on what it was calibrated on, or nothing is left to test it on."""


SEED = 0  # of the draw from a file, if no other is given


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, opened anew each time it is asked for.

    Attributes:
        path: where it is.
        context: begins the sentence if it cannot be read: ``"data.jsonl, line 3: "``.
    """

    path: Path
    context: str = ""

    def open(self) -> Image.Image:
        """As :func:`load_image`."""
        return load_image(self.path, self.context)


@dataclass(frozen=True)
class Sample:
    """One question about ``images`` (none for a text-only question), and its answer.

    Attributes:
        images: each an RGB image, or a file that :meth:`opened` opens.
        question, answer: what is put to the model, and what it should say.
        where: for sentences about this sample: ``data.jsonl, line 3``.
    """

    images: tuple[Image.Image | ImageFile, ...] = field(repr=False)
    question: str
    answer: str
    where: str = field(default="", compare=False, repr=False)

    def opened(self) -> list[Image.Image]:
        """The images in RGB, decoded.

        Raises:
            DataError: a file is gone or damaged.
        """
        return [image.open() if isinstance(image, ImageFile) else image for image in self.images]

    @cached_property
    def hash(self) -> str:
        """sha256 of every pixel and of the question, 16 hex digits: two samples with one hash are one prompt.

        The answer is left out: calibration does not read it, so a prompt with another answer has been seen too.
        """
        digest = hashlib.sha256()
        for image in self.opened():
            digest.update(repr(image.size).encode() + image.tobytes())
        digest.update(repr(self.question).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Samples:
    """A named, ordered set of samples.

    Attributes:
        name: for a reader.
        items: the samples.
        seed: of the draw, where they were drawn from a file; else None.
        left_out: lines passed over because their prompts are among those to leave out.
        drawn_from: lines of the file that could be taken; None of the endless reference tasks.
    """

    name: str
    items: tuple[Sample, ...]
    seed: int | None = None
    left_out: int = 0
    drawn_from: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.items)

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """:attr:`Sample.hash` of each."""
        return tuple(sample.hash for sample in self.items)

    @cached_property
    def hash(self) -> str:
        """sha256 of every pixel, question and answer, 16 hex digits."""
        digest = hashlib.sha256()
        for prompt, sample in zip(self.hashes, self.items, strict=True):
            digest.update(repr((prompt, sample.answer)).encode())
        return digest.hexdigest()[:16]


class _Line(BaseModel):
    """One line of a data file."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = None
    images: list[str] = []
    question: str
    answer: str
    task: str | None = None

    @model_validator(mode="after")
    def _one_spelling(self) -> _Line:
        if self.image is not None and self.images:
            raise ValueError("give either image or images, not both")
        return self

    @property
    def names(self) -> list[str]:
        return self.images if self.image is None else [self.image]


def load_data(
    where: str,
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int | None = None,
    without: Collection[str] = (),
) -> Samples:
    """The samples called ``where``.

    A file has no splits of its own. Its ``calibration`` split is drawn at random, and what was not drawn is for
    testing::

        calibration = load_data("mine.jsonl", split="calibration", limit=20)
        test = load_data("mine.jsonl", split="test", without=calibration.hashes)

    Args:
        where: ``reference:TASK``, ``reference`` for all six tasks in turn, or the path of a JSONL file with a
            ``{"image" | "images", "question", "answer"}`` per line, paths relative to the file, and perhaps a ``task``.
        split: ``test``: the lines of a file in their order; ``calibration``: lines with an image, drawn at random,
            equally many from each ``task``. The reference tasks have both, disjoint.
        limit: at most so many; the reference tasks are endless and give 100 by default.
        seed: of the draw from a file, 0 by default. The reference tasks have one of their own.
        without: the :attr:`Sample.hash` of those to leave out: what a plan was calibrated on.

    Raises:
        DataError: nothing is there, nothing is left, or something in it cannot be read; says which line or file.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no sample: give 1 or more.")
    if where == "reference" or where.startswith("reference:"):
        if seed is not None:
            raise DataError(f"seed {seed} is for the draw from a file: {where} is drawn by a seed of its own.")
        return _reference(where, split, limit or 100)
    if split not in ("calibration", "test"):
        raise DataError(f"split {split!r} of a file is not one of calibration, test.")
    path = Path(where)
    lines = _read(path)
    if split == "calibration":
        seed = SEED if seed is None else seed
        lines = _drawn(lines, seed)
    elif seed is not None:
        raise DataError(f"seed {seed} is for the calibration split: test takes the lines of {path} in their order.")
    items: list[Sample] = []
    left_out = 0
    for number, line in lines:
        sample = _sample(path, number, line)
        if without and sample.hash in without:
            left_out += 1
        else:
            items.append(sample)
        if len(items) == limit:
            break
    if not items:
        raise DataError(
            f"all {left_out} prompts of {path} were calibrated on, so none is left to test on: calibrate on fewer, or "
            f"test on another file."
        )
    return Samples(path.name, tuple(items), seed, left_out, len(lines))


def _reference(where: str, split: str, count: int) -> Samples:
    _, _, task = where.partition(":")
    if task and task not in reference.TASKS:
        raise DataError(f"there is no reference task {task!r}; choose one of {', '.join(reference.TASKS)}.")
    tasks = [task] if task else list(reference.TASKS)
    items = []
    for i in range(count):
        image, question, answer = reference.question(tasks[i % len(tasks)], split, i // len(tasks))
        items.append(Sample((image,), question, answer))
    return Samples(f"{where} ({split})", tuple(items))


Numbered = tuple[int, _Line]


def _read(path: Path) -> list[Numbered]:
    """Every line of a data file with its number, the first being 1; no image is opened."""
    lines = []
    try:
        with path.open("rb") as file:  # whose lines end at \n alone: a question may hold any other separator
            for number, content in enumerate(file, start=1):
                if content.strip() and content.strip() != b"\xef\xbb\xbf":
                    lines.append((number, _line(path, number, content)))
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read as data ({problem.strerror}): give reference, reference:TASK, or a JSONL file."
        ) from None
    if not lines:
        raise DataError(f"{path} holds no sample: it needs a JSON object per line with image, question and answer.")
    return lines


def _line(path: Path, number: int, content: bytes) -> _Line:
    try:
        return _Line.model_validate(parse(content))
    except ValidationError as problem:
        raise DataError(f"{path}, line {number}: {sentence(problem)}.") from None
    except ValueError as problem:
        raise DataError(f"{path}, line {number} cannot be read: {problem}.") from None


def _drawn(lines: Sequence[Numbered], seed: int) -> list[Numbered]:
    """The lines with an image in an order by chance, one of each task in turn; all, if none has an image.

    The first so many are a sample of any size, and a larger one holds a smaller one.
    """
    by_task: dict[str | None, list[Numbered]] = {}
    for numbered in [pair for pair in lines if pair[1].names] or lines:
        by_task.setdefault(numbered[1].task, []).append(numbered)
    chance = random.Random(seed)
    piles = list(by_task.values())
    chance.shuffle(piles)
    for pile in piles:
        chance.shuffle(pile)
    longest = max(map(len, piles))
    return [pile[i] for i in range(longest) for pile in piles if i < len(pile)]


def _sample(path: Path, number: int, line: _Line) -> Sample:
    """``line`` with its images decoded once, so that a damaged one is found before the work."""
    where = f"{path}, line {number}"
    sample = Sample(
        tuple(ImageFile(path.parent / name, f"{where}: ") for name in line.names), line.question, line.answer, where
    )
    sample.hash  # noqa: B018
    return sample


def load_image(path: Path, context: str = "") -> Image.Image:
    """The RGB image at ``path``, decoded in full, upright as its EXIF says, 16 bits a pixel scaled to 8.

    Raises:
        DataError: there is none, it is no image, it is cut off, too large, or its pixels have no known range.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        with Image.open(path) as image:
            image.load()
            return _eight_bits(_upright(image)).convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{context}the image {path} does not exist.") from None
    except Exception as problem:  # of its many decoders, each with errors of its own
        reason = " ".join(str(problem).split()).rstrip(".") or type(problem).__name__
        raise DataError(f"{context}the image {path} cannot be read ({reason}): it is damaged or no image.") from None


def _upright(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF says; as it is where that cannot be read, as every viewer does."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF around good pixels is common, and raises whatever its parser stumbles over
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """``image`` with at most eight bits a channel, scaled where it has more: a plain conversion clips at 255."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"its pixels of mode {image.mode} have no known range, save it with 8 or 16 bits a pixel")
    return Image.fromarray((pixels.astype(np.float64) / 257).round().astype(np.uint8), "L")


def overlap(hashes: Iterable[str], others: Iterable[str]) -> int:
    """How many of ``hashes`` are among ``others``."""
    known = set(others)
    return sum(one in known for one in hashes)
