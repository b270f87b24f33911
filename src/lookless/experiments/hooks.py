"""Diagnostics on the stock model, for what no plan can say. They change the prefill alone, and save nothing.

A plan knows visual tokens only, and skips or reduces. What a paper's control needs beyond that (adding something else,
reducing text) is a hook on the model's own modules, within a ``with``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..loading import Loaded
from ..runtime.families import Located, locate


@dataclass
class Prompt:
    """Of the call that is running: which tokens are visual and which are no padding, bool ``[batch, sequence]``; None
    in a decode step."""

    visual: Tensor | None = None
    real: Tensor | None = None

    @property
    def is_prefill(self) -> bool:
        return self.visual is not None


@contextmanager
def watched(loaded: Loaded) -> Iterator[tuple[Located, Prompt]]:
    """The model's parts, and the prompt of each call of it, for hooks to read."""
    located, prompt = locate(loaded.model), Prompt()

    def enter(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        visual = None if ids is None or ids.shape[1] == 1 else located.visual(ids)
        prompt.visual = visual
        if visual is not None:
            mask = kwargs.get("attention_mask")
            prompt.real = torch.ones_like(visual) if mask is None or mask.dim() != 2 else mask.bool()

    hook = located.inner.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield located, prompt
    finally:
        hook.remove()


@contextmanager
def removed(hooks: list[Any]) -> Iterator[None]:
    """``hooks`` in force inside, and gone after it."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
