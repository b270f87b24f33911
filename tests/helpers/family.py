"""What a family is to the tests, and prompts for it without a processor.

A family is how its model is built and what an image or a video becomes in a prompt. How prompts are laid out, padded
and joined, and how a second turn follows a first, is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from helpers.models import IMAGE, PAD, contrasted

VIDEO, START, END = 98, 97, 96  # placeholders of a video; what stands before and behind an image
SPECIAL = [IMAGE, VIDEO, START, END]  # a random model may say them: suppress them in `generate`


@dataclass(frozen=True)
class Visual:
    """One image or video: its ids in the prompt, and the arguments that come with them, to be joined along dim 0."""

    ids: Tensor
    arguments: dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A tiny model and the prompts it takes.

    Attributes:
        build: a fresh model, the same each time; takes the attention implementation.
        visuals: ``"image"``, ``"wide"`` (another image, of another size) and perhaps ``"video"``.
        visual_ids: the placeholders that are visual tokens.
        mrope: positions are three-dimensional, and the model wants to know which tokens are which modality.
        types: the argument that says which tokens let each other see both ways; None where attention is causal.
    """

    name: str
    build: Callable[..., Any]
    visuals: dict[str, Callable[[Generator], Visual]]
    visual_ids: tuple[int, ...]
    mrope: bool = False
    types: str | None = None

    @property
    def kinds(self) -> list[str]:
        """The batches this family has."""
        return [
            name
            for name, prompts in PROMPTS.items()
            if {part for prompt in prompts for part in prompt if isinstance(part, str)} <= {*self.visuals}
        ]

    def batch(self, kind: str) -> dict[str, Tensor]:
        """The model's keyword arguments for one of :data:`PROMPTS`."""
        return self.arguments(*PROMPTS[kind], padding="right" if kind == "padded right" else "left")

    def arguments(self, *prompts: tuple[int | str, ...], padding: str = "left", seed: int = 0) -> dict[str, Tensor]:
        """The model's keyword arguments for prompts such as ``(4, "image", 3)``: a number is so many text tokens."""
        generator = torch.Generator().manual_seed(seed)
        rows, visuals = [], []
        for prompt in prompts:
            pieces = []
            for part in prompt:
                if isinstance(part, int):
                    pieces.append(words(part, generator))
                else:
                    visuals.append(self.visuals[part](generator))
                    pieces.append(visuals[-1].ids)
            rows.append(torch.cat(pieces))
        ids, mask = _padded(rows, padding)
        arguments = {"input_ids": ids, "attention_mask": mask}
        if self.mrope:
            arguments["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        if self.types:
            arguments[self.types] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
        for key in dict.fromkeys(key for visual in visuals for key in visual.arguments):
            arguments[key] = _joined([visual.arguments[key] for visual in visuals if key in visual.arguments])
        return arguments

    def turns(self, model: Any, *second: int | str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Arguments of two calls over one cache, ``(5, "image", 7)`` and ``second`` behind it, and of both as one call.

        With M-RoPE the second call has to be told its positions, those of the whole conversation cut to the chunk. The
        stock model by itself makes one for every key and fails, or, without a mask, counts on through an image as if
        it were text. What it remembers for decoding (``rope_deltas``) stays the first turn's.
        """
        first, chunk = self.arguments((5, "image", 7)), self.arguments(second, seed=1)
        per_token = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        whole = {k: torch.cat((first[k], chunk[k]), -1) for k in per_token if k in first}
        for key in dict.fromkeys([*first, *chunk]):
            if key not in whole:
                whole[key] = _joined([turn[key] for turn in (first, chunk) if key in turn])
        chunk = {**chunk, "attention_mask": whole["attention_mask"]}
        if self.types:  # the stock model reads them by position in the sequence
            chunk[self.types] = whole[self.types]
        if self.mrope:
            grids = {k: whole[k] for k in (*per_token, "image_grid_thw", "video_grid_thw") if k in whole}
            positions, _ = model.model.get_rope_index(**grids)
            chunk["position_ids"] = positions[..., first["input_ids"].shape[1] :]
        return first, chunk, whole


#: name -> the prompts of a batch
PROMPTS: dict[str, list[tuple[int | str, ...]]] = {
    "one image": [(5, "image", 7)],
    "two images": [(4, "image", 3, "wide", 6)],
    "batch alike": [(5, "image", 7), (5, "image", 7)],
    "padded left": [(5, "image", 9), (2, "wide", 4), (3, "image", 2, "wide", 5), (8,)],
    "padded right": [(5, "image", 9), (2, "wide", 4), (3, "image", 2, "wide", 5), (8,)],
    "video": [(4, "video", 6)],
    "image and video": [(3, "image", 2, "video", 5)],
}
#: what a second turn may be; to :meth:`Family.turns`
SECOND = {"image first": ("wide", 6), "image": (4, "wide", 5), "text": (5,)}


def words(tokens: int, generator: Generator) -> Tensor:
    return torch.randint(1, END, (tokens,), generator=generator)


def _padded(rows: list[Tensor], padding: str) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[batch, longest]``."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if padding == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    return ids, mask


def _joined(tensors: list[Tensor]) -> Tensor:
    """Along dim 0; LLaVA-OneVision's ``[1, tiles, 3, height, width]`` padded to the most tiles, as by its processor."""
    if tensors[0].ndim == 5:
        most = max(t.shape[1] for t in tensors)
        tensors = [torch.cat((t, t.new_zeros(1, most - t.shape[1], *t.shape[2:])), 1) for t in tensors]
    return torch.cat(tensors)


def finished(model: Any, attention: str) -> Any:
    """Norms start as ones and biases as zeros, whose confusion nobody would see: they become all different."""
    with torch.no_grad():
        for parameter in model.model.get_decoder().parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model = contrasted(model.eval())
    model.set_attn_implementation(attention)
    return model
