"""The attention of one layer: query rows over key rows, in the cheapest calls that compute no score for nothing.

Three ways. In a prompt that begins the sequence, slices of the key rows go to causal calls (:func:`_prefill`). Prompts
of a batch that differ go to one masked call, padded, where that costs less (:func:`_one_call`). After earlier turns, or
under a mask of the caller's own, one masked call goes over all keys that are held (:func:`_with_past`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..layer_plan import AttentionPart, LayerWork
from .cache import UNKNOWN, VISUAL, remember_kinds, select, store
from .calls import Call, attend, causal_calls, padded_mask, scaled_dot_product, sliding_calls, window_calls
from .inplace import linear, output_projection, project_gated
from .prompts import Prompts
from .record import LayerRecord, Past
from .rows import Rows


@dataclass(frozen=True)
class Padded:
    """Keys and values of ``rows``, padded, ``[batch, slots, kv_heads, head_dim]``; ``positions`` as :class:`Past`'s,
    ``[batch or 1, slots]``."""

    rows: Rows
    key: Tensor
    value: Tensor
    positions: Tensor


def run_attention(
    work: LayerWork,
    prompts: Prompts,
    record: LayerRecord,
    x: Tensor,
    cache: Any,
    *,
    owns_x: bool,
    keeps_record: bool,
) -> Tensor:
    """The compact living rows ``x`` with the attention's output added; in place where the caller ``owns_x``.

    ``keeps_record``: the record is read later, so queries may not go to the buffers it lies in.
    """
    module, live = record.module, prompts.live
    value = prompts.sink_values(record.rows, record.value) if work.is_sink else record.value
    if cache is not None and work.window is not None:
        remember_kinds(cache, module.layer_idx)
    stores = cache is not None and not record.borrowed
    held = _store(record, value, prompts.rows(work.cached), cache, prompts) if stores else None
    buffers = None if keeps_record else prompts.buffers
    may_add = owns_x and not torch.is_grad_enabled()
    for part in work.attention:
        query_rows = prompts.rows(part.query)
        if not query_rows.count:  # a chunk that is all image, or an image withdrawn
            continue
        normed = prompts.within(query_rows, record.rows).gather(record.normed)
        query, gate = project_gated(module, "q", normed, prompts.turn_of(query_rows, record.rotary), buffers)
        part_value = value if part.is_sink else record.value
        output = _attend(part, prompts, record, query, part_value, held if part_value is value else None)
        output = output if gate is None else output * gate.sigmoid()
        output = linear(output_projection(module), output, prompts.buffers, "up")
        output = output if record.norm_after is None else record.norm_after(output)
        inner = prompts.within(query_rows, live)
        x, may_add = inner.scatter_add_(x, output) if may_add else inner.scatter_add(x, output), True
    return x


def _attend(
    part: AttentionPart, prompts: Prompts, record: LayerRecord, query: Tensor, value: Tensor, held: Padded | None
) -> Tensor:
    """The heads' outputs, side by side, of one part's compact ``query``."""
    is_masked = record.mask is not None and part.query.visual != "none"  # text sees no further than row sets say
    if is_masked or not prompts.is_plain_prefill:
        return _with_past(part, prompts, record, query, value)
    if part.window is None and prompts.is_one_call(prompts.rows(part.query), prompts.rows(part.key)):
        return _one_call(part, prompts, record, query, value, held)
    return _prefill(part, prompts, record, query, value)


def _prefill(part: AttentionPart, prompts: Prompts, record: LayerRecord, query: Tensor, value: Tensor) -> Tensor:
    """In a prompt that begins the sequence: slices of the key rows, and no more than are read."""
    query_rows, key_rows, window = prompts.rows(part.query), prompts.rows(part.key), part.window
    reach = record.reach

    def calls() -> list[Call]:
        if window is not None:
            found = window_calls(query_rows, key_rows, prompts.visual, window.blocks, window.size, reach)
        elif reach is not None:
            found = sliding_calls(query_rows, key_rows, reach)
        else:
            heads = query.shape[0] * query.shape[2]
            found = causal_calls(query_rows, key_rows, scattered=part.query.choice is not None, heads=heads)
        return [call.added(query.dtype) for call in found]

    inner = prompts.within(key_rows, record.rows)
    made = prompts.once(("calls", query_rows, key_rows, window, reach, query.dtype), calls)
    key, value = inner.gather(record.key), inner.gather(value)
    return attend(query, key, value, made, record.module.scaling, _dropout(record.module))


def _one_call(
    part: AttentionPart, prompts: Prompts, record: LayerRecord, query: Tensor, value: Tensor, held: Padded | None
) -> Tensor:
    """In prompts that begin the sequence and differ: one masked call over padded keys; those that the cache got, if
    they are the key rows."""
    query_rows, key_rows, dtype = prompts.rows(part.query), prompts.rows(part.key), query.dtype
    if held is None or held.rows is not key_rows:
        inner = prompts.within(key_rows, record.rows)
        key, value = (key_rows.pad(inner.gather(x)) for x in (record.key, value))
        held = Padded(key_rows, key, value, key_rows.positions)
    positions = held.positions
    # Keys of whole sequences are at their positions; padded ones are not.
    mask = prompts.once(
        ("mask", query_rows, key_rows, positions.shape[0] == 1, record.reach, dtype),
        lambda: padded_mask(query_rows, key_rows, positions, dtype, record.reach),
    )
    q, k, v = (x.transpose(1, 2) for x in (query_rows.pad(query), held.key, held.value))
    output = scaled_dot_product(q, k, v, mask, record.module.scaling, _dropout(record.module))
    return query_rows.unpad(output.transpose(1, 2).flatten(2))


def _with_past(part: AttentionPart, prompts: Prompts, record: LayerRecord, query: Tensor, value: Tensor) -> Tensor:
    """After earlier turns, or under a mask of the caller's own: one masked call over all keys held."""
    query_rows, key_rows, rows, past = prompts.rows(part.query), prompts.rows(part.key), record.rows, record.past
    key, value, positions = all_keys(prompts, rows, record.key, value, past)
    batch = key.shape[0]
    new = rows.positions.expand(batch, -1)
    is_visual = prompts.visual.to(new.device).gather(1, new.clamp_min(0)) & (new >= 0)
    queries = query_rows.positions.expand(batch, -1).clamp_min(0)  # rows of this call
    mask = attention_mask(record.mask, positions, queries, prompts.past, record.reach)
    if key_rows is not rows:  # text that may not attend to this call's visual keys; of earlier ones none is held
        earlier = is_visual.new_zeros(batch, positions.shape[1] - is_visual.shape[1])
        mask = _only(mask, ~torch.cat((earlier, is_visual), dim=1)[:, None, None])
    elif part.window is not None:
        if past is not None:
            is_visual = torch.cat((_known_visual(record.module, past), is_visual), dim=1)
        near = (positions[:, None] - queries[..., None] - prompts.past).abs() < part.window.size
        mask = _only(mask, (near | ~is_visual[:, None])[:, None])
    padded = query_rows.pad(query).transpose(1, 2)
    output = scaled_dot_product(padded, key, value, mask, record.module.scaling, _dropout(record.module))
    return query_rows.unpad(output.transpose(1, 2).flatten(2))


def all_keys(
    prompts: Prompts, rows: Rows, key: Tensor, value: Tensor, past: Past | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values ``[batch, kv_heads, slots, head_dim]`` of earlier turns and of the compact ``rows``, and their
    positions in the sequence, ``[batch, slots]``, -1 for none."""
    key, value = (rows.pad(x).transpose(1, 2) for x in (key, value))
    new = rows.positions.expand(key.shape[0], -1)
    positions = torch.where(new < 0, new, new + prompts.past)
    if past is None:
        return key, value, positions
    key, value = torch.cat((past.keys, key), dim=2), torch.cat((past.values, value), dim=2)
    return key, value, torch.cat((past.positions, positions), dim=1)


def _dropout(module: Any) -> float:
    """Of attention weights, as the model's own attention has it: in training only."""
    return float(module.attention_dropout) if module.training else 0.0


def _known_visual(module: Any, past: Past) -> Tensor:
    """Which tokens of earlier turns are visual, bool ``[batch, slots]``.

    Raises:
        ModelError: it is not known of some.
    """
    if past.kinds is None or ((past.kinds == UNKNOWN) & (past.positions >= 0)).any():
        raise ModelError(
            f"layer {module.layer_idx} of this plan reads through a window, and it is not known which tokens of "
            f"earlier turns are visual: apply the plan from the first turn on, with the default dynamic cache."
        )
    return past.kinds == VISUAL


def attention_mask(
    mask: Tensor | None, positions: Tensor, queries: Tensor, past: int, reach: int | None = None
) -> Tensor:
    """The mask of some queries over some keys, ``[batch, heads or 1, queries, slots]``: bool, or what is added to their
    scores.

    Args:
        mask: the layer's, as in :class:`LayerRecord`; without one each query attends to all keys up to itself.
        positions: of the keys in the sequence, ``[batch, slots]``, -1 where a slot is empty.
        queries: rows of this call, ``[batch, queries]``.
        past: tokens before this call.
        reach: how many of those keys; None for all.
    """
    if mask is None:
        own = queries[..., None] + past
        allowed = (positions[:, None] <= own) & (positions >= 0)[:, None]
        return (allowed if reach is None else allowed & (positions[:, None] > own - reach))[:, None]
    wide = mask.expand(len(queries), -1, -1, -1)
    index = queries[:, None, :, None].expand(-1, wide.shape[1], -1, wide.shape[3])
    return select(wide.gather(2, index), positions, queries.shape[1], past + mask.shape[2])


def _only(mask: Tensor, allowed: Tensor) -> Tensor:
    """What :func:`attention_mask` returns, where it is also ``allowed``."""
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)


def _store(record: LayerRecord, value: Tensor, cached: Rows, cache: Any, prompts: Prompts) -> Padded:
    """Cache the keys and values of the rows ``cached``; all rows as the stock model does, if nothing is left out."""
    index, rows = record.module.layer_idx, record.rows
    if prompts.is_complete(cached):
        key, val = (rows.to_sequences(x) for x in (record.key, value))
        positions, held = None, Padded(rows, key, val, prompts.every_position)
    else:
        inner = prompts.within(cached, rows)
        key, val = (cached.pad(inner.gather(x)) for x in (record.key, value))
        positions, held = cached.positions, Padded(cached, key, val, cached.positions)
    store(cache, index, key.transpose(1, 2), val.transpose(1, 2), positions, prompts.length, prompts.visual)
    return held
