"""The slow reference of what Gemma's layers have besides: written from the model's code, one step after another."""

from __future__ import annotations

import torch


def is_gemma4(attention):
    return attention.config.model_type.startswith("gemma4")


def is_both_ways(attention):
    """Whether the tokens of an image see each other both ways: in Gemma 3 always, in Gemma 4 in windows, if at all."""
    kind, said = attention.config.model_type, getattr(attention.config, "use_bidirectional_attention", None)
    return kind.startswith("gemma3") or (is_gemma4(attention) and said == "vision" and attention.is_sliding)


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


def near(attention, n):
    """Bool ``[query, key]``: who is in whose sliding window, among ``n`` tokens."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return i - j < (getattr(attention, "sliding_window", None) or n)


def before_or_beside(attention, prompt):
    """``[query, key]``: who comes before whom, or is a neighbour in the same image that both ways are open to."""
    at = torch.arange(prompt.n)
    before = at[None, :] <= at[:, None]
    if not is_both_ways(attention):
        return before
    visual = prompt.visual
    run = (visual & ~torch.nn.functional.pad(visual, (1, 0))[:-1]).cumsum(0)
    beside = visual[:, None] & visual & (run[:, None] == run) & (prompt.call <= prompt.call[:, None])
    return before | beside
