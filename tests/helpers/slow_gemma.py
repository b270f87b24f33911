"""The slow reference of what Gemma's layers have besides: written from the model's code, one step after another."""

from __future__ import annotations

import torch
from torch import nn

_NOTHING = nn.Identity()


def is_sandwich(layer):
    """Whether each operator has a norm behind it as well."""
    return hasattr(layer, "pre_feedforward_layernorm")


def before_ffn(layer):
    return layer.pre_feedforward_layernorm if is_sandwich(layer) else layer.post_attention_layernorm


def after_attention(layer):
    return layer.post_attention_layernorm if is_sandwich(layer) else _NOTHING


def after_ffn(layer):
    return layer.post_feedforward_layernorm if is_sandwich(layer) else _NOTHING


def whole_ffn(layer, x, h):
    """What the FFN adds to each of ``x [n, hidden]``, which are ``h`` behind its norm."""
    made = layer.mlp(h[None])[0]  # experts take no two-dimensional rows
    if getattr(layer, "enable_moe_block", False):
        routed = torch.stack([_routed(layer, row) for row in x])
        made = layer.post_feedforward_layernorm_1(made) + layer.post_feedforward_layernorm_2(routed)
    return after_ffn(layer)(made)


def _routed(layer, row):
    """What the experts beside an FFN make of one row: those that its router likes best, weighed by how much."""
    router, experts = layer.router, layer.experts
    seen = row / (row.pow(2).mean() + router.eps).sqrt() * router.scale / len(row) ** 0.5
    liked = (router.proj.weight @ seen).softmax(0)
    best = liked.argsort(descending=True)[: router.config.top_k_experts]
    normed, total = layer.pre_feedforward_layernorm_2(row), 0
    for expert in best:
        gate, up = (experts.gate_up_proj[expert] @ normed).chunk(2)
        inner = torch.nn.functional.gelu(gate, approximate="tanh") * up
        weight = liked[expert] / liked[best].sum() * router.per_expert_scale[expert]
        total = total + weight * (experts.down_proj[expert] @ inner)
    return total


def is_gemma4(attention):
    return attention.config.model_type.startswith("gemma4")


def is_both_ways(attention):
    """Whether the tokens of an image see each other both ways, which in Gemma 4, if at all, they do in windows; in
    Gemma 3 and where Gemma 4 has no tower, everywhere."""
    kind, said = attention.config.model_type, getattr(attention.config, "use_bidirectional_attention", None)
    if not is_gemma4(attention):
        return kind.startswith("gemma3")
    return said == "vision" and (attention.is_sliding or kind == "gemma4_unified_text")


def sees_past_windows(attention):
    """Whether an image that is open both ways is so to its ends, also where it is longer than the window."""
    return attention.config.model_type == "gemma4_unified_text"


def borrows(attention):
    """Whether it reads keys of an earlier layer."""
    return is_gemma4(attention) and attention.is_kv_shared_layer


def values(attention, h):
    """``[kv_heads, n, head_dim]``; their norm has no weight."""
    made = (attention.k_proj if attention.v_proj is None else attention.v_proj)(h)
    made = made.view(len(h), -1, attention.head_dim)
    return (made / (made.pow(2).mean(-1, keepdim=True) + attention.config.rms_norm_eps).sqrt()).transpose(0, 1)


def pass_by(layer, x, embedded):
    """What every row of a layer undergoes; ``embedded [n, width]`` is the layer's own."""
    if not hasattr(layer, "layer_scalar"):
        return x
    if embedded is not None:
        inner = torch.nn.functional.gelu(layer.per_layer_input_gate(x), approximate="tanh") * embedded
        x = x + layer.post_per_layer_input_norm(layer.per_layer_projection(inner))
    return x * layer.layer_scalar


def capped(model, logits):
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    cap = cap if model.config.model_type.startswith("gemma4") else None
    return logits if cap is None else torch.tanh(logits / cap) * cap
