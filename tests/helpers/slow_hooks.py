"""Skipped operators the slow way, by hooks: all is computed, and what image tokens get is thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lookless import Plan, Skip


@contextmanager
def slow(model, plan: Plan) -> Iterator[None]:
    """``plan`` the slow way: each skipped operator's output is zeroed where the input is an image token."""
    visual: list[torch.Tensor | None] = [None]

    def see(_, args, kwargs):
        ids = args[0] if args else kwargs.get("input_ids")
        visual[0] = None if ids is None else ids == model.config.image_token_id

    def throw_away(_, __, output):
        update = output[0] if isinstance(output, tuple) else output
        if visual[0] is not None and visual[0].shape == update.shape[:2]:
            update = update.masked_fill(visual[0][..., None], 0.0)
        return (update, *output[1:]) if isinstance(output, tuple) else update

    hooks = [model.model.register_forward_pre_hook(see, with_kwargs=True)]
    for layer, row in zip(model.model.get_decoder().layers, plan.layers, strict=True):
        if row.attention == Skip():
            hooks.append(layer.self_attn.register_forward_hook(throw_away))
        if row.ffn == Skip():
            hooks.append(layer.mlp.register_forward_hook(throw_away))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
