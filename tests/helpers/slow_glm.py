"""The slow reference of what GLM-4V's layers have besides, one number after another."""

from __future__ import annotations

import torch


def turns_neighbours(attention):
    return attention.config.model_type in ("glm4v_text", "glm_ocr_text")


def turned(x, cos, sin):
    """``x [n, heads, head_dim]``: numbers 2i and 2i + 1 are turned by one angle, if the embedding is as wide."""
    out = x.clone()
    for i in range(0, cos.shape[-1], 2):
        a, b, c, s = x[..., i], x[..., i + 1], cos[..., i], sin[..., i]
        out[..., i], out[..., i + 1] = a * c - b * s, b * c + a * s
    return out


def is_fused(mlp):
    return hasattr(mlp, "gate_up_proj")


def inner(mlp, h):
    """What a gated FFN makes in between, if one matrix makes its gate and then the rest."""
    gate, up = mlp.gate_up_proj(h).tensor_split(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
