"""Where text looks, and how alike the visual attention of neighbouring layers is: saturation itself.

Two numbers a layer. The *mass* is the attention that text after the image pays to visual tokens: the sum over visual
keys, mean over heads and over those text rows. The *similarity* is the cosine between the visual attention maps of a
layer and of the one before: the map is ``[visual queries, visual keys]``, mean over heads. Where it is near 1, the
layer mixes visual tokens as the one before has done already.

Maps are computed by the model's own eager attention, layer by layer, and two are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from .. import files
from ..data import Samples
from ..errors import ModelError
from ..loading import Loaded
from ..runtime.families import Located, locate
from .replay import VisualPrompt, visual_prompts


class AttentionProfile(BaseModel):
    """Attention on one set of samples.

    Attributes:
        data, data_hash: name and sha256 of the samples.
        mass: ``[samples][layers]``, between 0 and 1.
        similarity: ``[samples][layers - 1]``, of each layer but the first with the one before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    data_hash: str
    mass: tuple[tuple[float, ...], ...] = Field(min_length=1)
    similarity: tuple[tuple[float, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> AttentionProfile:
        layers = len(self.mass[0])
        if any(len(row) != layers for row in self.mass) or any(len(row) != layers - 1 for row in self.similarity):
            raise ValueError(f"mass needs {layers} numbers a sample and similarity {layers - 1}")
        return self

    @property
    def samples(self) -> int:
        return len(self.mass)

    @property
    def mean_mass(self) -> tuple[float, ...]:
        return tuple(map(fmean, zip(*self.mass, strict=True)))

    @property
    def mean_similarity(self) -> tuple[float, ...]:
        return tuple(map(fmean, zip(*self.similarity, strict=True)))


class AttentionProfiles(BaseModel):
    """Of one model, by task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    model: str
    profiles: dict[str, AttentionProfile] = Field(min_length=1)

    def save(self, path: str | Path) -> Path:
        """Write ``path``, completely or not at all."""
        files.write_text(Path(path), files.dump(self))
        return Path(path)


def attention_profile(loaded: Loaded, samples: Samples, *, progress: bool = True) -> AttentionProfile:
    """Mass and similarity of every layer on each sample with an image.

    Memory is that of one layer's attention weights, ``heads x tokens x tokens``, and of two maps.

    Raises:
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or some layer has no attention.
    """
    located = locate(loaded.model)
    if located.geometry.states is not None:
        raise ModelError(
            f"{located.geometry.model_type} has layers with a {located.geometry.states}, which weigh no token by "
            f"another: there is no attention map of them."
        )
    rows = [
        _sample(located, prompt)
        for prompt in visual_prompts(loaded, samples, f"attention on {samples.name}", "last", progress)
    ]
    return AttentionProfile(
        data=samples.name,
        data_hash=samples.hash,
        mass=tuple(tuple(row.mass) for row in rows),
        similarity=tuple(tuple(row.similarity) for row in rows),
    )


@dataclass
class _Watch:
    """Reduces the weights of each layer as they come; ``visual``, ``text``: indices of the rows."""

    visual: Tensor
    text: Tensor
    mass: list[float] = field(default_factory=list)
    similarity: list[float] = field(default_factory=list)
    before: Tensor | None = None

    def __call__(self, module: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
        weights = output[1][0].float().mean(0)  # over heads
        seen = weights[:, self.visual]
        self.mass.append(float(seen[self.text].sum(-1).mean()))
        now = seen[self.visual].flatten()
        if self.before is not None:
            self.similarity.append(float(F.cosine_similarity(now, self.before, dim=0)))
        self.before = now


@torch.no_grad()
def _sample(located: Located, prompt: VisualPrompt) -> _Watch:
    visual = prompt.visual.nonzero().flatten()
    text = torch.arange(len(prompt.visual), device=visual.device)
    text = text[(text > visual[0]) & ~prompt.visual.to(visual.device)]
    if not len(text):
        text = visual[-1:]  # a prompt that ends in an image: its last row reads for the answer
    watch = _Watch(visual, text)
    hooks = [layer.self_attn.register_forward_hook(watch) for layer in located.layers]  # type: ignore[union-attr]
    try:
        with eager_attention(located):
            located.inner(**prompt.inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return watch


@contextmanager
def eager_attention(located: Located) -> Iterator[None]:
    """With attention that returns its weights."""
    config: Any = located.decoder.config
    usual = config._attn_implementation
    located.decoder.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        yield
    finally:
        located.decoder.set_attn_implementation(usual)  # type: ignore[operator]
