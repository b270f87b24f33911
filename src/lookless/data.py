"""Samples: images, a question, the answer to be given. From the reference tasks, or from a JSONL file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from . import reference
from .errors import DataError
from .files import sentence


@dataclass(frozen=True)
class Sample:
    """One question about ``images`` (none for a text-only question), and its answer."""

    images: tuple[Image.Image, ...] = field(repr=False)
    question: str
    answer: str


@dataclass(frozen=True)
class Samples:
    """A named, ordered set of samples."""

    name: str
    items: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.items)

    @cached_property
    def hash(self) -> str:
        """sha256 of every pixel, question and answer, 16 hex digits."""
        digest = hashlib.sha256()
        for sample in self.items:
            for image in sample.images:
                digest.update(repr(image.size).encode() + image.tobytes())
            digest.update(repr((sample.question, sample.answer)).encode())
        return digest.hexdigest()[:16]


class _Line(BaseModel):
    """One line of a data file."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = None
    images: list[str] = []
    question: str
    answer: str

    @model_validator(mode="after")
    def _one_spelling(self) -> _Line:
        if self.image is not None and self.images:
            raise ValueError("give either image or images, not both")
        return self


def load_data(where: str, *, split: str = "test", limit: int | None = None) -> Samples:
    """The samples called ``where``.

    Args:
        where: ``reference:TASK``, ``reference`` for all six tasks in turn, or the path of a JSONL file with a
            ``{"image" | "images", "question", "answer"}`` per line, paths relative to the file.
        split: ``calibration`` or ``test``, for the reference tasks; a file is what it is.
        limit: at most so many; the reference tasks are endless and give 100 by default.

    Raises:
        DataError: nothing is there, or something in it cannot be read; says which line or file.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no sample: give 1 or more.")
    if where == "reference" or where.startswith("reference:"):
        return _reference(where, split, limit or 100)
    return _jsonl(Path(where), limit)


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


def _jsonl(path: Path, limit: int | None) -> Samples:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise DataError(
            f"{path} cannot be read as data ({reason}): give reference, reference:TASK, or a JSONL file."
        ) from None
    items: list[Sample] = []
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(items) == limit:
            break
        if not line.strip():
            continue
        try:
            record = _Line.model_validate(json.loads(line))
        except json.JSONDecodeError as problem:
            raise DataError(f"{path}, line {number} is not JSON: {problem}.") from None
        except ValidationError as problem:
            raise DataError(f"{path}, line {number}: {sentence(problem)}.") from None
        names = record.images or ([record.image] if record.image is not None else [])
        images = tuple(load_image(path.parent / name, f"{path}, line {number}: ") for name in names)
        items.append(Sample(images, record.question, record.answer))
    if not items:
        raise DataError(f"{path} holds no sample: it needs a JSON object per line with image, question and answer.")
    return Samples(path.name, tuple(items))


def load_image(path: Path, context: str = "") -> Image.Image:
    """The RGB image at ``path``, decoded in full.

    Raises:
        DataError: there is none, it is no image, or it is cut off.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{context}the image {path} does not exist.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise DataError(f"{context}the image {path} cannot be read ({problem}): it is damaged or no image.") from None
