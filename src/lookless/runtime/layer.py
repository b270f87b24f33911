"""One decoder layer under a plan: each operator on its own rows, and the rest of the layer as it was.

Stock (Llama, Mistral, Qwen2, Qwen3, Qwen3.5 and the decoders of Qwen-VL; ``norm`` is RMSNorm, and in some layers of
Qwen3.5 a gated delta rule takes the place of attention)::

    x = x + attention(norm(x))
    x = x + ffn(norm(x))

What else a layer may be is in :class:`lookless.runtime.decoders.Block`.

Here a layer is three sets of rows: query rows, key rows and FFN rows. What is spared is not computed: no query, score,
output projection or FFN of a spared row, no key of a row that no query reads. Projections are called as modules, so
quantised linears, adapters and hooks on them stay in force.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..layer_plan import VISUAL, LayerWork
from .affine import affine_of_visual
from .attention import run_attention
from .cache import PrunedLayer, layer_of
from .convolution import run_convolution
from .delta import run_delta
from .ffn import run_ffn
from .inplace import Rotary, is_small, rms_norm
from .mixers import call_stock, has_state, is_convolution, is_delta
from .prompts import Prompts
from .record import LayerRecord, borrow_keys, record_keys


def run_layer(
    layer: nn.Module,
    work: LayerWork,
    prompts: Prompts,
    x: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_embeddings: Rotary,
    past_key_values: Any = None,
    wants_record: bool = False,
    **rest: Any,
) -> tuple[Tensor, LayerRecord | None]:
    """``layer`` on ``x [batch, sequence, hidden]``, its ``work`` and no more; and a record if one is wanted.

    The other arguments are those that transformers gives a decoder layer.
    """
    block = prompts.block
    made, prompts.made = prompts.made, None  # of this layer alone
    if not wants_record and _is_stock(layer, work, prompts, x, past_key_values):
        normed = rms_norm(block.norm(layer), x)
        attended = call_stock(layer, normed, attention_mask, position_embeddings, past_key_values, **rest)
        del normed
        norm = block.of_attention(layer)
        out = x + (attended if norm is None else norm(attended))
        del attended  # or it is held while the FFN runs
        out = run_ffn(layer, work, prompts, out, owns_x=True)
        return (out if block.pass_by is None else block.pass_by(layer, out, prompts.live, rest)), None
    live, key_rows = prompts.live, prompts.rows(work.key)
    h, owns_h = prompts.stream.enter(x, live)
    if block.shares_keys and block.borrows(layer):
        shared = rest.get("shared_kv_states")
        record = borrow_keys(layer, prompts, h, x, shared, mask=attention_mask, rotary=position_embeddings)
    elif made is not None and key_rows.same_as(made.rows):
        record = replace(made, rows=key_rows)
    else:
        gathered = prompts.within(key_rows, live).gather(h)
        call = {"mask": attention_mask, "rotary": position_embeddings, "cache": past_key_values}
        buffers = None if wants_record else prompts.buffers
        record = record_keys(layer, prompts, key_rows, gathered, x, **call, buffers=buffers)
        del gathered
    mix = run_delta if is_delta(layer) else run_convolution if is_convolution(layer) else run_attention
    out = mix(work, prompts, record, h, past_key_values, owns_x=owns_h, keeps_record=wants_record)
    if work.attention_affine is not None and prompts.rows(VISUAL).count:  # their rows are still the layer's input
        inner, update = affine_of_visual(work.attention_affine, block.norm(layer), prompts, out)
        out = inner.add(out, update, owns_x=owns_h or out is not h)
    kept = replace(record, after_attention=live.scatter(x, out)) if wants_record else None
    owns_out = (owns_h or out is not h) and not (wants_record and live.is_whole)
    del record, made, h  # what no rank reads is not held while the FFN runs
    out = run_ffn(layer, work, prompts, out, owns_x=owns_out)
    out = out if block.pass_by is None else block.pass_by(layer, out, live, rest)
    is_hooked = bool(layer._forward_hooks or layer._forward_pre_hooks)
    return prompts.stream.leave(x, live, out, is_hooked=is_hooked), kept


def _is_stock(layer: Any, work: LayerWork, prompts: Prompts, x: Tensor, cache: Any) -> bool:
    """Whether the layer's own mixer runs: nothing of it is spared, and either it is another than the kernel called
    here, or it has a mask of its own, or there is so little to do that ours would not pay."""
    if not (work.has_full_attention and prompts.live.is_whole):
        return False
    if has_state(layer):  # the kernel is the same
        return True
    if prompts.block.shares_keys and (prompts.block.lends(layer) or prompts.block.borrows(layer)):
        return False  # later layers read what row sets say
    held = None if cache is None else layer_of(cache, layer.self_attn.layer_idx)
    if isinstance(held, PrunedLayer):
        return False
    is_masked = not prompts.is_plain_prefill or (prompts.both_ways and prompts.block.is_both_ways(layer.self_attn))
    return is_small(x) or is_masked or layer.self_attn.config._attn_implementation != "sdpa"
