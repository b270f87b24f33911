"""The norms around a layer's two operators, by the names that models give them."""

from __future__ import annotations

from torch import nn

_NOTHING = nn.Identity()


def is_sandwich(layer):
    """Gemma's: each operator has a norm before and behind it."""
    return hasattr(layer, "pre_feedforward_layernorm")


def before_ffn(layer):
    return layer.pre_feedforward_layernorm if is_sandwich(layer) else layer.post_attention_layernorm


def after_attention(layer):
    glm = getattr(layer, "post_self_attn_layernorm", _NOTHING)
    return layer.post_attention_layernorm if is_sandwich(layer) else glm


def after_ffn(layer):
    glm = getattr(layer, "post_mlp_layernorm", _NOTHING)
    return layer.post_feedforward_layernorm if is_sandwich(layer) else glm
