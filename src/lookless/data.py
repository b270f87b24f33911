"""Samples: images, a question and the expected answer, from the reference tasks or from a JSONL file.

Image files are opened when they are needed and not kept, so a thousand photos take no more memory than one.
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
    """A plan is tested on samples that it was calibrated on, or no other samples are left."""


SEED = 0  # of the draw from a file, by default


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, opened anew at each use.

    Attributes:
        path: of the file.
        context: how an error message about it begins: ``"data.jsonl, line 3: "``.
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
        question: the prompt's text, without a chat template.
        answer: what the model should answer.
        where: its place, for error messages: ``data.jsonl, line 3``.
    """

    images: tuple[Image.Image | ImageFile, ...] = field(repr=False)
    question: str
    answer: str
    where: str = field(default="", compare=False, repr=False)

    def opened(self) -> list[Image.Image]:
        """The images, decoded, in RGB.

        Raises:
            DataError: a file does not exist or cannot be decoded.
        """
        return [image.open() if isinstance(image, ImageFile) else image for image in self.images]

    @property
    def hash(self) -> str:
        """sha256 of all pixels and of the question, 16 hex digits: samples with equal hashes are the same prompt.

        The answer is not part of it: calibration does not use answers, so the same prompt with another answer has been
        seen too.
        """
        return self._hashes[0]

    @property
    def image_hashes(self) -> tuple[str, ...]:
        """sha256 of the pixels of each image, 16 hex digits: it tells which questions are about the same image."""
        return self._hashes[1]

    @cached_property
    def _hashes(self) -> tuple[str, tuple[str, ...]]:
        """Both, so that no image is opened twice."""
        digest, images = hashlib.sha256(), []
        for image in self.opened():
            content = repr(image.size).encode() + image.tobytes()
            digest.update(content)
            images.append(hashlib.sha256(content).hexdigest()[:16])
        digest.update(repr(self.question).encode())
        return digest.hexdigest()[:16], tuple(images)


@dataclass(frozen=True)
class Samples:
    """A named, ordered set of samples.

    Attributes:
        name: for display.
        items: the samples.
        seed: of the random draw from a file; None if there was none.
        left_out: how many lines were left out because of ``without``.
        drawn_from: how many lines of the file could be taken; None for the reference tasks, which are endless.
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
        """:attr:`Sample.hash` of each sample."""
        return tuple(sample.hash for sample in self.items)

    @cached_property
    def hash(self) -> str:
        """sha256 of all pixels, questions and answers, 16 hex digits."""
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
    """The samples named by ``where``.

    A file has no splits of its own. Its ``calibration`` split is drawn at random; test on the lines that were not
    drawn::

        calibration = load_data("mine.jsonl", split="calibration", limit=20)
        test = load_data("mine.jsonl", split="test", without=calibration.hashes)

    Args:
        where: ``reference:TASK``, ``reference`` for all its tasks in turn, or the path of a JSONL file. Each line of
            the file is an object with ``question``, ``answer``, ``image`` or ``images`` (paths relative to the file),
            and optionally ``task``.
        split: ``test``: the lines of a file in their order; ``calibration``: lines with an image, drawn at random,
            equally many from each ``task``. The two splits of a reference task are disjoint.
        limit: the largest number of samples; by default all of a file, and 100 of the reference tasks.
        seed: of the draw from a file, 0 by default. The reference tasks have a seed of their own.
        without: the :attr:`Sample.hash` of samples to leave out, for example those a plan was calibrated on.

    Raises:
        DataError: there is no such file or task, a line or an image cannot be read, or no sample is left.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no sample: give 1 or more.")
    if where == "reference" or where.startswith("reference:"):
        if seed is not None:
            raise DataError(f"seed {seed} is for the draw from a file: {where} has a seed of its own.")
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
    """Every line of a data file with its number, from 1; no image is opened."""
    lines = []
    try:
        with path.open("rb") as file:  # lines end at \n alone: a question may contain any other separator
            for number, content in enumerate(file, start=1):
                if content.strip() and content.strip() != b"\xef\xbb\xbf":
                    lines.append((number, _line(path, number, content)))
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read as data ({problem.strerror}): give reference, reference:TASK, or a JSONL file."
        ) from problem
    if not lines:
        raise DataError(f"{path} holds no sample: it needs a JSON object per line with image, question and answer.")
    return lines


def _line(path: Path, number: int, content: bytes) -> _Line:
    try:
        return _Line.model_validate(parse(content))
    except ValidationError as problem:
        raise DataError(f"{path}, line {number}: {sentence(problem)}.") from problem
    except ValueError as problem:
        raise DataError(f"{path}, line {number} cannot be read: {problem}.") from problem


def _drawn(lines: Sequence[Numbered], seed: int) -> list[Numbered]:
    """The lines with an image in random order, one of each task in turn; all lines, if none has an image.

    Take the first N as a sample of N lines: a larger sample contains each smaller one.
    """
    by_task: dict[str | None, list[Numbered]] = {}
    for numbered in [pair for pair in lines if pair[1].names] or lines:
        by_task.setdefault(numbered[1].task, []).append(numbered)
    generator = random.Random(seed)
    piles = list(by_task.values())
    generator.shuffle(piles)
    for pile in piles:
        generator.shuffle(pile)
    longest = max(map(len, piles))
    return [pile[i] for i in range(longest) for pile in piles if i < len(pile)]


def _sample(path: Path, number: int, line: _Line) -> Sample:
    """``line`` as a sample; its images are decoded once, so that a damaged one is found before the work starts."""
    where = f"{path}, line {number}"
    sample = Sample(
        tuple(ImageFile(path.parent / name, f"{where}: ") for name in line.names), line.question, line.answer, where
    )
    sample.hash  # noqa: B018
    return sample


def load_image(path: Path, context: str = "") -> Image.Image:
    """The RGB image at ``path``, fully decoded, turned as its EXIF says, 16 bits a channel scaled to 8.

    Args:
        context: how an error message begins: ``"data.jsonl, line 3: "``.

    Raises:
        DataError: there is no such file, it is not an image, truncated or too large, or its pixels have no known range.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        with Image.open(path) as image:
            image.load()
            return _eight_bits(_upright(image)).convert("RGB")
    except FileNotFoundError as problem:
        raise DataError(f"{context}the image {path} does not exist.") from problem
    except Exception as problem:  # Pillow has many decoders, each with errors of its own
        reason = " ".join(str(problem).split()).rstrip(".") or type(problem).__name__
        raise DataError(
            f"{context}the image {path} cannot be read ({reason}): it is damaged or not an image."
        ) from problem


def _upright(image: Image.Image) -> Image.Image:
    """``image`` turned as its EXIF says; unchanged if the EXIF cannot be read, as image viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF with good pixels is common, and its parser raises many kinds of errors
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """``image`` with at most 8 bits a channel, scaled if it has more: Pillow's own conversion clips at 255."""
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
