"""The norms around a layer's two operators, by the names that models give them."""

from __future__ import annotations

from torch import nn

from helpers.slow_lfm2 import is_lfm2

_NOTHING = nn.Identity()


def is_sandwich(layer):
    """Gemma's: each operator has a norm before and behind it."""
    return hasattr(layer, "pre_feedforward_layernorm")


def before_attention(layer):
    return layer.operator_norm if is_lfm2(layer) else layer.input_layernorm


def last(decoder):
    return decoder.norm if hasattr(decoder, "norm") else decoder.embedding_norm


def before_ffn(layer):
    if is_lfm2(layer):
        return layer.ffn_norm
    return layer.pre_feedforward_layernorm if is_sandwich(layer) else layer.post_attention_layernorm


def after_attention(layer):
    glm = getattr(layer, "post_self_attn_layernorm", _NOTHING)
    return layer.post_attention_layernorm if is_sandwich(layer) else glm


def after_ffn(layer):
    glm = getattr(layer, "post_mlp_layernorm", _NOTHING)
    return layer.post_feedforward_layernorm if is_sandwich(layer) else glm


def of_heads(attention, name):
    """Of queries (``q``), keys or values."""
    return getattr(attention, f"{name}_norm", getattr(attention, f"{name}_layernorm", _NOTHING))
