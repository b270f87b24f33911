"""A question about images with its right answers, and a set of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Literal

from PIL import Image

from .images import Stored


class SeenWarning(UserWarning):
    """A plan is tested on samples that it was calibrated on, or no other samples are left."""


class SkippedWarning(UserWarning):
    """Samples that cannot be used were skipped, as was asked for."""


class Seen(Enum):
    """In a turn: the sample's next image, or its next video."""

    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: who speaks, and texts and places of images in their order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Seen, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    def count(self, seen: Seen) -> int:
        """How many of its parts are ``seen``."""
        return self.parts.count(seen)

    def message(self) -> dict[str, Any]:
        """As chat templates of transformers take it."""
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": p.value} for p in self.parts]
        return {"role": self.role, "content": content}


@dataclass(frozen=True)
class Sample:
    """One question about ``images`` (none for a text-only question), and its answer.

    Attributes:
        images: each an RGB image, or one on disk that :meth:`opened` opens.
        question: the prompt's text, without a chat template.
        answer: what the model should answer; the first of several right answers.
        where: its place, for error messages: ``data.jsonl, line 3``.
        others: further right answers.
        id, task: of the data; carried through to the results.
        suffix: is added to the question in the prompt: ``"\\nAnswer with one word."``.
        videos: each as its frames.
        fps: of these frames a second, for models that are told the time; Qwen-VL samples 2 of its own accord.
        turns: a whole conversation up to the question, which is the text of the last turn; empty: the question alone,
            behind its images.
    """

    images: tuple[Image.Image | Stored, ...] = field(repr=False)
    question: str
    answer: str
    where: str = field(default="", compare=False, repr=False)
    others: tuple[str, ...] = ()
    id: str | None = None
    task: str | None = None
    suffix: str = ""
    videos: tuple[tuple[Image.Image | Stored, ...], ...] = field(default=(), repr=False)
    fps: float = 2.0
    turns: tuple[Turn, ...] = ()

    @property
    def right(self) -> tuple[str, ...]:
        """All right answers."""
        return (self.answer, *self.others)

    @property
    def pictures(self) -> tuple[Image.Image | Stored, ...]:
        """The images, and the frames of all videos."""
        return (*self.images, *(frame for video in self.videos for frame in video))

    def opened(self) -> list[Image.Image]:
        """The images, decoded, in RGB.

        Raises:
            DataError: a file does not exist or cannot be decoded.
        """
        return [_opened(image) for image in self.images]

    def opened_videos(self) -> list[list[Image.Image]]:
        """The frames of each video, as :meth:`opened`."""
        return [[_opened(frame) for frame in video] for video in self.videos]

    def conversation(self) -> tuple[Turn, ...]:
        """The turns of the prompt, with the suffix."""
        if not self.turns:
            seen = (Seen.IMAGE,) * len(self.images) + (Seen.VIDEO,) * len(self.videos)
            return (Turn("user", (*seen, self.question + self.suffix)),)
        *before, last = self.turns
        *parts, end = last.parts
        ends = (end + self.suffix,) if isinstance(end, str) else (end, self.suffix)
        return (*before, Turn(last.role, (*parts, *ends))) if self.suffix else self.turns

    @property
    def hash(self) -> str:
        """sha256 of all pixels and of the question, 16 hex digits: samples with equal hashes are the same prompt.

        The answer is not part of it: calibration does not use answers, so the same prompt with another answer has been
        seen too. Neither is the suffix: a question has been seen in whatever form it was put.
        """
        return self._hashes[0]

    @property
    def image_hashes(self) -> tuple[str, ...]:
        """sha256 of the pixels of each image, and of each video's frames, 16 hex digits: it tells which questions are
        about the same image."""
        return self._hashes[1]

    @cached_property
    def _hashes(self) -> tuple[str, tuple[str, ...]]:
        """Both, so that no image is opened twice."""
        digest, images = hashlib.sha256(), []
        for image in self.opened():
            content = _content(image)
            digest.update(content)
            images.append(hashlib.sha256(content).hexdigest()[:16])
        for video in self.videos:
            own = hashlib.sha256()
            digest.update(f"video of {len(video)} at {self.fps}".encode())
            for frame in map(_opened, video):
                content = _content(frame)
                digest.update(content)
                own.update(content)
            images.append(own.hexdigest()[:16])
        digest.update(repr(self.question).encode())
        if self.turns:
            digest.update(repr(self.turns).encode())
        return digest.hexdigest()[:16], tuple(images)


def _content(image: Image.Image) -> bytes:
    pixels: bytes = image.tobytes()
    return repr(image.size).encode() + pixels


def _opened(image: Image.Image | Stored) -> Image.Image:
    return image if isinstance(image, Image.Image) else image.open()


@dataclass(frozen=True)
class Samples:
    """A named, ordered set of samples.

    Attributes:
        name: for display.
        items: the samples.
        seed: of the random draw from a file; None if there was none.
        left_out: how many lines were left out because of ``without``.
        drawn_from: how many lines of the file could be taken; None for the reference tasks, which are endless.
        bad: what is wrong with each sample that was skipped.
        metric: by which answers are scored, unless another is asked for.
    """

    name: str
    items: tuple[Sample, ...]
    seed: int | None = None
    left_out: int = 0
    drawn_from: int | None = None
    bad: tuple[str, ...] = ()
    metric: str = "exact"

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
        """sha256 of all pixels, questions, suffixes and answers, 16 hex digits."""
        digest = hashlib.sha256()
        for prompt, sample in zip(self.hashes, self.items, strict=True):
            digest.update(repr((prompt, sample.answer)).encode())
            if sample.others or sample.suffix:
                digest.update(repr((sample.others, sample.suffix)).encode())
        return digest.hexdigest()[:16]


def overlap(hashes: Iterable[str], others: Iterable[str]) -> int:
    """How many of ``hashes`` are among ``others``."""
    known = set(others)
    return sum(one in known for one in hashes)


def warn_of_skipped(bad: Sequence[str]) -> None:
    """Warns: SkippedWarning: which samples were skipped, and why, as ``bad`` says; of many, the first few."""
    if bad:
        count, first = len(bad), " ".join(bad[:3])
        what = "1 sample is skipped" if count == 1 else f"{count} samples are skipped"
        more = f" (and {count - 3} more)" if count > 3 else ""
        warnings.warn(f"{what}: {first}{more}", SkippedWarning, stacklevel=2)
