"""The slow reference of what GLM-4V's layers have besides, one number after another."""

from __future__ import annotations

import torch


def turns_neighbours(attention):
    return attention.config.model_type in ("glm4v_text", "glm_ocr_text")


def turned(attention, x, cos, sin):
    """``x [n, heads, head_dim]``: two numbers are turned by one angle, as many as the embedding is wide. They are
    neighbours in GLM-4V, half the embedding apart in all others."""
    out, half = x.clone(), cos.shape[-1] // 2
    for i in range(half):
        one, other = (2 * i, 2 * i + 1) if turns_neighbours(attention) else (i, half + i)
        a, b, c, s = x[..., one], x[..., other], cos[..., one], sin[..., one]
        out[..., one], out[..., other] = a * c - b * s, b * c + a * s
    return out


def is_fused(mlp):
    return hasattr(mlp, "gate_up_proj")


def inner(mlp, h):
    """What a gated FFN makes in between, if one matrix makes its gate and then the rest."""
    gate, up = mlp.gate_up_proj(h).tensor_split(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
