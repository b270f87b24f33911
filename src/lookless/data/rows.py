"""One row of data, from any kind of file, checked and made a sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ..errors import DataError
from ..files import sentence
from .harness import Asked
from .images import ImageFile, Stored
from .samples import Sample, Seen, Turn
from .tables import Embedded


def _text(value: Any) -> Any:
    """A whole number as its digits: tables hold ids and answers so."""
    return str(value) if type(value) is int else value


def _answers(value: Any) -> Any:
    """Right answers as texts; VQA's data have each with who gave it."""
    if isinstance(value, list):
        return [_text(one["answer"] if isinstance(one, dict) and "answer" in one else one) for one in value]
    return _text(value)


Text = Annotated[str, BeforeValidator(_text)]
Picture = str | Embedded | Asked


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "image", "video"]
    text: str = ""


class Message(BaseModel):
    """A turn, as chat templates of transformers have it."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]

    @property
    def turn(self) -> Turn:
        if isinstance(self.content, str):
            return Turn(self.role, (self.content,))
        return Turn(self.role, tuple(p.text if p.type == "text" else Seen(p.type) for p in self.content))


class Row(BaseModel):
    """What a line of a data file may say."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    image: Picture | None = None
    images: list[Picture] = []
    video: list[Picture] | None = None
    videos: list[list[Picture]] = []
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    question: str | None = None
    messages: list[Message] = []
    answer: Annotated[str | list[str], BeforeValidator(_answers)]
    id: Text | None = None
    task: Text | None = None

    @model_validator(mode="after")
    def _one_spelling(self) -> Row:
        for one, many in (("image", "images"), ("video", "videos")):
            if getattr(self, one) is not None and getattr(self, many):
                raise ValueError(f"give either {one} or {many}, not both")
        if (self.question is None) == (not self.messages):
            raise ValueError("field required: question, or messages" if self.question is None else _BOTH)
        if self.answer == []:
            raise ValueError("answer is an empty list")
        if self.messages:
            self._check_turns()
        return self

    def _check_turns(self) -> None:
        turns = [message.turn for message in self.messages]
        if turns[-1].role != "user":
            raise ValueError(f"the last message is of the {turns[-1].role}, and the question has to be the user's")
        for seen, given in ((Seen.IMAGE, len(self.all_images)), (Seen.VIDEO, len(self.all_videos))):
            placed = sum(turn.count(seen) for turn in turns)
            if placed not in (0, given):
                raise ValueError(f"its messages have {placed} {seen.value}s and it names {given}")

    @property
    def all_images(self) -> list[Picture]:
        return self.images if self.image is None else [self.image]

    @property
    def all_videos(self) -> list[list[Picture]]:
        return self.videos if self.video is None else [self.video]

    @property
    def is_seen(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.all_images or self.all_videos)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The messages; images that none of them places stand at the beginning of the first of the user."""
        turns = [message.turn for message in self.messages]
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
        for seen, given in ((Seen.VIDEO, len(self.all_videos)), (Seen.IMAGE, len(self.all_images))):
            if turns and not any(turn.count(seen) for turn in turns):
                turns[first] = Turn(turns[first].role, ((seen,) * given) + turns[first].parts)
        return tuple(turns)

    def sample(self, folder: Path, where: str, suffix: str) -> Sample:
        """With paths relative to ``folder``."""
        turns = self.turns
        first, *others = [self.answer] if isinstance(self.answer, str) else self.answer

        def stored(picture: Picture) -> Stored:
            context = f"{where}: "
            return ImageFile(folder / picture, context) if isinstance(picture, str) else picture.at(context)

        return Sample(
            images=tuple(stored(image) for image in self.all_images),
            question=self.question if self.question is not None else turns[-1].text,
            answer=first,
            where=where,
            others=tuple(others),
            id=self.id,
            task=self.task,
            suffix=suffix,
            videos=tuple(tuple(stored(frame) for frame in video) for video in self.all_videos),
            fps=self.fps,
            turns=turns,
        )


_BOTH = "give either question or messages, not both"
KEYS = tuple(Row.model_fields)


def row_of(values: Mapping[str, Any], where: str, columns: Mapping[str, str] | None) -> Row:
    """``values`` as a row; with ``columns``, of the keys that they name, and of those that have our names.

    Raises:
        DataError: a key is missing or not known, or a value is not what it should be.
    """
    given = ", ".join(str(key) for key in values if key not in KEYS)
    if columns is not None:
        missing = next((theirs for theirs in columns.values() if theirs not in values), None)
        if missing is not None:
            raise DataError(f"{where}: there is no {missing!r}, it has {', '.join(map(str, values)) or 'nothing'}.")
        ours = {key: values[key] for key in KEYS if key in values and key not in columns.values()}
        values = ours | {key: values[theirs] for key, theirs in columns.items()}
    try:
        return Row.model_validate(values)
    except ValidationError as problem:
        first = problem.errors()[0]
        if first["type"] == "value_error":
            raise DataError(f"{where}: {first['ctx']['error']}.") from problem
        hints = {"extra_forbidden": " (--columns names the keys to read)"}
        if given:
            hints["missing"] = f" (it has {given[:100]}; --columns says which is which)"
        raise DataError(f"{where}: {sentence(problem)}{hints.get(first['type'], '')}.") from problem
