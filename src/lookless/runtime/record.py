"""What the attention of a layer computed, for the layer itself and for ranks of the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicSlidingWindowLayer

from ..errors import ModelError
from .cache import PrunedLayer, layer_of
from .inplace import Buffers, Rotary, heads, linear, norm_into, project, project_normed
from .mixers import has_state, mixer_of
from .prompts import Prompts
from .rows import Rows


@dataclass(frozen=True)
class Past:
    """What a layer's cache holds of earlier turns.

    Attributes:
        keys, values: ``[batch, kv_heads, slots, head_dim]``.
        positions: which token of the sequence each slot holds, -1 for none, int64 ``[batch, slots]``.
        kinds: of those tokens, as in :class:`lookless.runtime.cache.PrunedLayer`; None where the cache does not
            remember.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    kinds: Tensor | None


@dataclass(frozen=True)
class LayerRecord:
    """What the attention of one layer computed; ranks of the next layer read it.

    Attributes:
        module: the layer's attention, or what else mixes its rows.
        rows: of the compact tensors below.
        normed: the attention's input, ``[groups, rows, hidden]``.
        key, value: ``[groups, rows, kv_heads, head_dim]``, keys rotated; without heads where there is a state instead.
        rotary: cos and sin, ``[batch or 1, sequence, head_dim]``.
        past: what earlier turns left in the layer's cache; None without any.
        mask: the layer's, ``[batch or 1, heads or 1, sequence, keys]``, bool or added to scores; None means causal.
        layer_input: ``[batch, sequence, hidden]``.
        reach: how many keys a row may read, itself among them, by their positions; None for all up to itself.
        norm_after: of what the mixer adds; None without.
        borrowed: keys and values are those of an earlier layer.
        after_attention: ``layer_input`` with the attention's output added, ``[batch, sequence, hidden]``; None if no
            rank needs it.
    """

    module: Any
    rows: Rows
    normed: Tensor
    key: Tensor
    value: Tensor
    rotary: Rotary
    past: Past | None
    mask: Tensor | None
    layer_input: Tensor
    reach: int | None = None
    norm_after: Any = None
    borrowed: bool = False
    after_attention: Tensor | None = None


@dataclass(frozen=True)
class Lent:
    """Keys and values of all living rows that later layers read, as :class:`LayerRecord` has them."""

    rows: Rows
    key: Tensor
    value: Tensor
    past: Past | None


def project_keys(
    layer: nn.Module, prompts: Prompts, x: Tensor, mask: Tensor | None, rotary: Rotary, cache: Any
) -> LayerRecord:
    """Keys and values of all live rows of the layer's input ``x [batch, sequence, hidden]``."""
    live = prompts.live
    return record_keys(layer, prompts, live, live.gather(x), x, mask=mask, rotary=rotary, cache=cache)


def record_keys(
    layer: Any,
    prompts: Prompts,
    rows: Rows,
    gathered: Tensor,
    layer_input: Tensor,
    *,
    mask: Tensor | None,
    rotary: Rotary,
    cache: Any,
    buffers: Buffers | None = None,
) -> LayerRecord:
    """Keys and values of the compact key rows ``gathered`` from the layer's input.

    With ``buffers`` the normed rows lie in memory that the next layer writes to.
    """
    module, block = mixer_of(layer), prompts.block
    normed = norm_into(block.norm(layer), gathered, buffers)
    if has_state(layer):  # its keys are in a state
        none = normed.new_zeros(*normed.shape[:2], 0, 0)
        return LayerRecord(module, rows, normed, none, none, rotary, None, None, layer_input)
    turn = prompts.turn_of(rows, rotary)
    if block.norms_values:
        key, value = project_normed(module, normed, turn)
    else:
        key, value = project(module, "k", normed, turn), heads(linear(module.v_proj, normed), module.head_dim)
    past, own_mask = _past(module, cache), _own(mask, prompts, module)
    made = LayerRecord(
        *(module, rows, normed, key, value, rotary, past, own_mask, layer_input),
        reach=block.reach(module, prompts.past + prompts.length) if block.slides else None,
        norm_after=None if block.after_attention is None else getattr(layer, block.after_attention),
    )
    if block.shares_keys and block.lends(layer):
        prompts.lent[module.layer_type] = Lent(rows, key, value, made.past)
    return made


def borrow_keys(
    layer: Any, prompts: Prompts, h: Tensor, layer_input: Tensor, shared: Any, *, mask: Tensor | None, rotary: Rotary
) -> LayerRecord:
    """The record of a layer that reads the keys of an earlier one; ``h`` are its compact living rows.

    A pass that began behind that layer finds them in ``shared``, as the stock model made them.
    """
    module, block = layer.self_attn, prompts.block
    lent = prompts.lent.get(module.layer_type)
    if lent is None:
        key, value = (prompts.live.gather(x.transpose(1, 2)) for x in shared[module.layer_type])
        lent = prompts.lent[module.layer_type] = Lent(prompts.live, key, value, None)
    key, value = (x.to(h.device) for x in (lent.key, lent.value))
    if lent.rows.packed != prompts.live.packed:  # by what this layer chooses, its prompts may differ
        key, value = (prompts.live.gather(lent.rows.to_sequences(x)) for x in (key, value))
    normed = norm_into(block.norm(layer), h, None)
    return LayerRecord(
        *(module, prompts.live, normed, key, value, rotary, lent.past, _own(mask, prompts, module), layer_input),
        reach=block.reach(module, prompts.past + prompts.length),
        norm_after=block.of_attention(layer),
        borrowed=True,
    )


def _own(mask: Tensor | None, prompts: Prompts, module: Any) -> Tensor | None:
    """A layer's mask, where it says more than row sets do: those say what a causal one with padding says."""
    says_more = not prompts.is_plain_prefill or (prompts.both_ways and prompts.block.is_both_ways(module))
    return mask if says_more and mask is not None and mask.ndim == 4 else None


def _past(module: Any, cache: Any) -> Past | None:
    held = None if cache is None else layer_of(cache, module.layer_idx)
    if held is None or held.get_seq_length() == 0:
        return None
    kinds = None
    if isinstance(held, PrunedLayer):
        positions: Tensor = held.positions  # type: ignore[assignment]
        kinds = held.kinds
    else:
        length = int(held.get_seq_length())
        first = length - held.keys.shape[2] if isinstance(held, DynamicSlidingWindowLayer) else 0
        positions = torch.arange(first, length, device=held.keys.device).expand(held.keys.shape[0], -1)
    slots = positions.shape[1]  # a static cache has empty slots after them
    if held.keys.ndim != 4 or held.keys.shape[2] < slots:
        raise ModelError(
            f"a later turn under a plan reads the keys of earlier ones, and a {type(held).__name__} holds them in "
            f"another form (quantised): use the default dynamic cache."
        )
    return Past(held.keys[:, :, :slots], held.values[:, :, :slots], positions, kinds)
