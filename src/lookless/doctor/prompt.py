"""One prompt with an image, as the model gets it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import reference
from ..data import Sample, load_image
from ..errors import DataError
from ..loading import Loaded
from ..runtime.families import Located, locate
from ..runtime.prompts import Prompts, prompts_of

QUESTION = "What is in the image?"


@dataclass(frozen=True)
class Prompt:
    """The arguments of one call of a model, and its tokens.

    Attributes:
        located: the model's parts.
        inputs: with which it is called.
        prompts: the same, as the runtime reads it.
        source: of the image, in words.
    """

    located: Located
    inputs: dict[str, Any]
    prompts: Prompts
    source: str

    @property
    def visual(self) -> int:
        return self.prompts.counts[0]

    @property
    def text(self) -> int:
        return len(self.prompts.text[0])


def prompt_of(loaded: Loaded, image: Path | None) -> Prompt:
    """A question about ``image``, or about a chart that ships with the package.

    Raises:
        DataError: the image cannot be read, or the processor makes no visual token of it.
    """
    picture, source = load_image(image) if image else reference.question("chart", "test", 0)[0], str(image or "shipped")
    inputs = loaded.inputs([Sample((picture,), QUESTION, "", where=source)])
    located = locate(loaded.model)
    prompts = prompts_of(located, inputs, 1)
    if prompts is None:
        raise DataError(
            f"the processor of {loaded.name} put no visual token into the prompt: its image token and the model's do "
            f"not agree."
        )
    return Prompt(located, inputs, prompts, f"{source}, {picture.width} x {picture.height}")
