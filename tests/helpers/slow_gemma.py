"""The slow reference of what Gemma's layers have besides: written from the model's code, one step after another."""

from __future__ import annotations

import torch

from helpers import slow_lfm2 as lfm2
from helpers.slow_norms import after_ffn


def whole_ffn(layer, x, h):
    """What the FFN adds to each of ``x [n, hidden]``, which are ``h`` behind its norm."""
    made = lfm2.ffn(layer)(h[None])[0]  # experts take no two-dimensional rows
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
    is_open = getattr(attention, "is_sliding", False) or kind == "gemma4_unified_text"
    return kind.startswith("gemma3") or (is_gemma4(attention) and said == "vision" and is_open)


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


def reachable(attention, prompt):
    """``[query, key]``: who comes before whom in its window, or is a neighbour in the same image that is open both
    ways."""
    at, visual = torch.arange(prompt.n), prompt.visual
    near = at[:, None] - at < (getattr(attention, "sliding_window", None) or prompt.n)
    before = (at <= at[:, None]) & near
    if not is_both_ways(attention):
        return before
    run = (visual & ~torch.nn.functional.pad(visual, (1, 0))[:-1]).cumsum(0)
    beside = visual[:, None] & visual & (run[:, None] == run) & (prompt.call <= prompt.call[:, None])
    return before | (beside if sees_past_windows(attention) else beside & near)
