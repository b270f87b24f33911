"""One decoder layer under a plan: each operator on its own rows, and the rest of the layer as it was.

Stock (Llama, Mistral, Qwen2, Qwen3 and the decoders of Qwen-VL; ``norm`` is RMSNorm)::

    x = x + attention(norm(x))
    x = x + ffn(norm(x))

Here a layer is three row sets: who asks, who can be read, who is transformed. Work that is spared is not done: no
query, score, output projection or FFN of a spared row, no key of a row that nobody reads. Projections are called as
modules, so quantised linears, adapters and hooks on them stay in force.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cells import Neurons
from ..errors import ModelError
from ..layer_plan import VISUAL, AttentionPart, LayerWork
from .cache import UNKNOWN, PrunedLayer, cut, layer_of, remember, select, store
from .cache import VISUAL as VISUAL_TOKEN
from .inplace import Buffers, gated_ffn, is_own, is_small, linear, may_write, rms_norm, rotate
from .prompts import Prompts
from .rows import Call, Rows, attend, causal_calls, scaled_dot_product, wide_mask, window_calls

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Past:
    """What a layer's cache holds of earlier turns.

    Attributes:
        keys, values: ``[batch, kv_heads, slots, head_dim]``.
        places: which token of the sequence stands in each slot, -1 for none, int64 ``[batch, slots]``.
        kinds: of those tokens, as in :class:`lookless.runtime.cache.PrunedLayer`; None where the cache does not
            remember.
    """

    keys: Tensor
    values: Tensor
    places: Tensor
    kinds: Tensor | None


@dataclass(frozen=True)
class Seen:
    """What the attention of one layer computed; ranks of the next layer read it.

    Attributes:
        module: the layer's attention.
        rows: of the compact tensors below.
        normed: the attention's input, ``[groups, rows, hidden]``.
        key, value: ``[groups, rows, kv_heads, head_dim]``, keys rotated.
        rotary: cos and sin, ``[batch or 1, sequence, head_dim]``.
        past: what earlier turns left in the layer's cache; None without any.
        mask: the layer's, ``[batch or 1, heads or 1, sequence, keys]``, bool or added to scores; None reads as causal.
        entered: the layer's input, ``[batch, sequence, hidden]``.
        left: what the attention added to it, as the input behind the attention; None if not asked yet.
    """

    module: Any
    rows: Rows
    normed: Tensor
    key: Tensor
    value: Tensor
    rotary: Rotary
    past: Past | None
    mask: Tensor | None
    entered: Tensor
    left: Tensor | None = None


def run_layer(
    layer: nn.Module,
    work: LayerWork,
    prompts: Prompts,
    x: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_embeddings: Rotary,
    past_key_values: Any = None,
    observed: bool = False,
    **rest: Any,
) -> tuple[Tensor, Seen | None]:
    """``layer`` on ``x`` ``[batch, sequence, hidden]``, no more than its ``work``, and what was seen.

    The arguments are those Hugging Face gives a decoder layer; ``observed`` asks for the second result.
    """
    if not observed and _is_stock(layer, work, prompts, x, past_key_values):
        attended, *_ = layer.self_attn(
            hidden_states=rms_norm(layer.input_layernorm, x),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **rest,
        )
        out = x + attended
        del attended  # or it is held while the FFN runs
        return _ffn(layer, work, prompts, out, is_ours=True), None
    live = prompts.live
    h, is_ours = prompts.stream.enter(x, live)
    past, mask = _past(layer.self_attn, past_key_values), _heeded(prompts, attention_mask)
    readable = prompts.rows(work.key)
    taken = prompts.within(readable, live).take(h)
    buffers = None if observed else prompts.buffers
    seen = _keys(layer, prompts, readable, taken, position_embeddings, past, mask, x, buffers)
    out = _attention(work, prompts, seen, h, past_key_values, is_ours=is_ours, is_lasting=observed)
    shown = replace(seen, left=live.put(x, out)) if observed else None
    is_ours = (is_ours or out is not h) and not (observed and live.is_whole)
    del seen, taken, h  # what no rank reads is not held while the FFN runs
    out = _ffn(layer, work, prompts, out, is_ours=is_ours)
    is_watched = bool(layer._forward_hooks or layer._forward_pre_hooks)
    return prompts.stream.leave(x, live, out, is_watched=is_watched), shown


def _is_stock(layer: Any, work: LayerWork, prompts: Prompts, x: Tensor, cache: Any) -> bool:
    """Whether the layer's own attention runs: nothing in it is spared, and it is another than the kernel called here,
    has a mask to heed, or so little to do that ours would not pay."""
    if not (work.has_full_attention and prompts.live.is_whole):
        return False
    held = None if cache is None else layer_of(cache, layer.self_attn.layer_idx)
    if isinstance(held, PrunedLayer):
        return False
    return is_small(x) or not (prompts.is_cold and layer.self_attn.config._attn_implementation == "sdpa")


def look(layer: nn.Module, prompts: Prompts, x: Tensor, mask: Tensor | None, rotary: Rotary, cache: Any) -> Seen:
    """Keys and values of all live rows of ``x``, as this layer's attention would make them."""
    live = prompts.live
    return _keys(
        layer, prompts, live, live.take(x), rotary, _past(layer.self_attn, cache), _heeded(prompts, mask), x, None
    )


def _heeded(prompts: Prompts, mask: Tensor | None) -> Tensor | None:
    """The mask where it says more than causal and padding, which row sets say."""
    return None if prompts.is_cold or mask is None or mask.ndim != 4 else mask


def _keys(
    layer: nn.Module,
    prompts: Prompts,
    rows: Rows,
    taken: Tensor,
    rotary: Rotary,
    past: Past | None,
    mask: Tensor | None,
    entered: Tensor,
    buffers: Buffers | None,
) -> Seen:
    """Of the compact rows ``taken``. Without ``buffers`` what is seen lasts."""
    module: Any = layer.self_attn
    normed = _norm(layer.input_layernorm, taken, buffers)
    key = project(module, "k", normed, prompts.turned(rows, rotary))
    value = _heads(linear(module.v_proj, normed), module.head_dim)
    return Seen(module, rows, normed, key, value, rotary, past, mask, entered)


def _past(module: Any, cache: Any) -> Past | None:
    held = None if cache is None else layer_of(cache, module.layer_idx)
    if held is None or held.get_seq_length() == 0:
        return None
    kinds = None
    if isinstance(held, PrunedLayer):
        places: Tensor = held.places  # type: ignore[assignment]
        kinds = held.kinds
    else:
        places = torch.arange(int(held.get_seq_length()), device=held.keys.device).expand(held.keys.shape[0], -1)
    slots = places.shape[1]  # a static cache has empty places behind
    if held.keys.ndim != 4 or held.keys.shape[2] < slots:
        raise ModelError(
            f"a later turn under a plan reads the keys of earlier ones, and a {type(held).__name__} holds them in "
            f"another form (quantised): use the default dynamic cache."
        )
    return Past(held.keys[:, :, :slots], held.values[:, :, :slots], places, kinds)


def _attention(
    work: LayerWork,
    prompts: Prompts,
    seen: Seen,
    x: Tensor,
    cache: Any,
    *,
    is_ours: bool,
    is_lasting: bool,
) -> Tensor:
    """The compact living rows ``x`` with what attention adds to them; in place where they ``is_ours``.

    ``is_lasting``: buffers may not be written to, as what is seen lies in memory of its own for later.
    """
    module, readable, live = seen.module, seen.rows, prompts.live
    value = prompts.sunk(readable, seen.value) if work.is_sink else seen.value
    if cache is not None and work.window is not None:
        remember(cache, module.layer_idx)
    wide = None if cache is None else _store(seen, value, prompts.rows(work.cached), cache, prompts)
    buffers = None if is_lasting else prompts.buffers
    may_add = is_ours and not torch.is_grad_enabled()
    for part in work.attention:
        asks, reads = prompts.rows(part.query), prompts.rows(part.key)
        if not asks.count:  # a chunk that is all image, or an image withdrawn: nobody asks
            continue
        values = value if part.is_sink else seen.value
        taken = prompts.within(asks, readable).take(seen.normed)
        query = project(module, "q", taken, prompts.turned(asks, seen.rotary), buffers)
        if not prompts.is_cold:
            update = _warm(part, prompts, asks, reads, query, seen, values)
        elif prompts.is_one_call(asks, reads) and part.window is None:
            update = _at_once(prompts, asks, reads, query, seen, values, wide if values is value else None)
        else:
            shown = prompts.within(reads, readable)
            key, val = shown.take(seen.key), shown.take(values)
            update = _cold(part, prompts, asks, reads, query, key, val, module)
        update = linear(module.o_proj, update, prompts.buffers, "up")
        inner = prompts.within(asks, live)
        x, may_add = inner.add_(x, update) if may_add else inner.add(x, update), True
    return x


@dataclass(frozen=True)
class Wide:
    """Keys and values of ``rows`` as rectangles, ``[batch, slots, kv_heads, head_dim]``; ``places`` as
    :class:`Past`'s, ``[batch or 1, slots]``."""

    rows: Rows
    key: Tensor
    value: Tensor
    places: Tensor


def _at_once(
    prompts: Prompts, asks: Rows, reads: Rows, query: Tensor, seen: Seen, value: Tensor, wide: Wide | None
) -> Tensor:
    """Attention in prompts that begin the sequence and differ: one masked call over rectangles, those that the cache
    got if it holds what is read."""
    if wide is None or wide.rows is not reads:
        inner = prompts.within(reads, seen.rows)
        key, val = (reads.rectangle(inner.take(x)) for x in (seen.key, value))
        wide = Wide(reads, key, val, reads.places)
    made, dtype = wide, query.dtype
    of_whole = made.places.shape[0] == 1  # sequences, in which the same row stands elsewhere than in a rectangle
    mask = prompts.remembered(
        ("mask", id(asks), id(reads), of_whole, dtype), lambda: wide_mask(asks, reads, made.places, dtype)
    )
    q, k, v = (x.transpose(1, 2) for x in (asks.rectangle(query), made.key, made.value))
    out = scaled_dot_product(q, k, v, mask, seen.module.scaling, _dropout(seen.module))
    return asks.compact(out.transpose(1, 2).flatten(2))


def _cold(
    part: AttentionPart,
    prompts: Prompts,
    asks: Rows,
    reads: Rows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    module: Any,
) -> Tensor:
    """Attention in a prompt that begins the sequence: slices, and no key that is not read."""
    window = part.window

    def calls() -> list[Call]:
        if window is not None:
            return window_calls(asks, reads, prompts.visual, window.blocks, window.size)
        scattered = part.query.choice is not None
        return [call.added(query.dtype) for call in causal_calls(asks, reads, scattered=scattered)]

    key_of = ("window", window.size) if window else ("causal", id(asks), id(reads), query.dtype)
    return attend(query, key, value, prompts.remembered(key_of, calls), module.scaling, _dropout(module))


def _dropout(module: Any) -> float:
    """Of attention weights, as the model's own attention has it: in training only."""
    return float(module.attention_dropout) if module.training else 0.0


def _warm(
    part: AttentionPart,
    prompts: Prompts,
    asks: Rows,
    reads: Rows,
    query: Tensor,
    seen: Seen,
    value: Tensor,
) -> Tensor:
    """Attention behind earlier turns, or under a mask of the caller's own: one masked call over all keys held."""
    rows, past = seen.rows, seen.past
    key, value = (rows.rectangle(x).transpose(1, 2) for x in (seen.key, value))
    batch = key.shape[0]
    coming = rows.places.expand(batch, -1)
    places = torch.where(coming < 0, coming, coming + prompts.past)
    if past is not None:
        key, value = torch.cat((past.keys, key), dim=2), torch.cat((past.values, value), dim=2)
        places = torch.cat((past.places, places), dim=1)
    where = asks.places.expand(batch, -1).clamp_min(0)  # rows of this call that ask
    allowed = may_read(seen.mask, places, where, prompts.past)
    mine = prompts.visual.to(coming.device).gather(1, coming.clamp_min(0)) & (coming >= 0)
    if reads is not rows:  # text that may not read this layer's visual keys of this call; of others none is held
        earlier = mine.new_zeros(batch, places.shape[1] - mine.shape[1])
        allowed = _only(allowed, ~torch.cat((earlier, mine), dim=1)[:, None, None])
    elif part.window is not None:
        is_visual = mine if past is None else torch.cat((_known_visual(seen.module, past), mine), dim=1)
        near = places[:, None] > where[..., None] + prompts.past - part.window.size
        allowed = _only(allowed, (near | ~is_visual[:, None])[:, None])
    wide = asks.rectangle(query).transpose(1, 2)
    out = (
        scaled_dot_product(wide, key, value, allowed, seen.module.scaling, _dropout(seen.module))
        .transpose(1, 2)
        .flatten(2)
    )
    return asks.compact(out)


def _known_visual(module: Any, past: Past) -> Tensor:
    """Which tokens of earlier turns are visual, bool ``[batch, slots]``.

    Raises:
        ModelError: it is not known of some.
    """
    if past.kinds is None or ((past.kinds == UNKNOWN) & (past.places >= 0)).any():
        raise ModelError(
            f"layer {module.layer_idx} of this plan reads through a window, and it is not known which tokens of "
            f"earlier turns are visual: apply the plan from the first turn on, with the default dynamic cache."
        )
    return past.kinds == VISUAL_TOKEN


def may_read(mask: Tensor | None, places: Tensor, rows: Tensor, past: int) -> Tensor:
    """Which keys ``rows [batch, queries]`` of a call may read of those at ``places [batch, slots]`` of the sequence:
    ``[batch, heads or 1, queries, slots]``, bool, or in ``mask``'s type what is added to their scores.

    Without a mask all up to themselves; rows of the call come behind ``past`` tokens.
    """
    if mask is None:
        return ((places[:, None] <= rows[..., None] + past) & (places >= 0)[:, None])[:, None]
    wide = mask.expand(len(rows), -1, -1, -1)
    index = rows[:, None, :, None].expand(-1, wide.shape[1], -1, wide.shape[3])
    return select(wide.gather(2, index), places, rows.shape[1])


def _only(allowed: Tensor, readable: Tensor) -> Tensor:
    """What :func:`may_read` returns, and nothing that is not ``readable``."""
    if allowed.dtype == torch.bool:
        return allowed & readable
    return allowed.masked_fill(~readable, torch.finfo(allowed.dtype).min)


def _store(seen: Seen, value: Tensor, held: Rows, cache: Any, prompts: Prompts) -> Wide:
    """Cache the keys and values of the rows ``held``; all rows as the stock model does, if nothing is left out."""
    index, rows = seen.module.layer_idx, seen.rows
    if prompts.is_complete(held):
        key, val = (rows.spread(x) for x in (seen.key, value))
        places, wide = None, Wide(rows, key, val, prompts.every_place)
    else:
        inner = prompts.within(held, rows)
        key, val = (held.rectangle(inner.take(x)) for x in (seen.key, value))
        places, wide = held.places, Wide(held, key, val, held.places)
    store(cache, index, key.transpose(1, 2), val.transpose(1, 2), places, prompts.length, prompts.visual)
    return wide


def _ffn(layer: nn.Module, work: LayerWork, prompts: Prompts, x: Tensor, *, is_ours: bool) -> Tensor:
    """The compact living rows ``x`` with what the FFN adds; ``is_ours``: nobody else holds them, so that they may be
    added to in place."""
    live, rows = prompts.live, prompts.rows(work.ffn)
    parts: list[tuple[Rows, Tensor]] = []
    if rows.count:
        inner = prompts.within(rows, live)
        normed = _norm(layer.post_attention_layernorm, inner.take(x), prompts.buffers)
        parts.append((inner, gated_ffn(layer.mlp, normed, prompts.buffers)))
    if work.neurons is not None and prompts.rows(VISUAL).count:
        inner = prompts.within(prompts.rows(VISUAL), live)
        parts.append((inner, _neurons(layer, work.neurons, prompts, inner.take(x))))
    for inner, update in parts:
        x = inner.add_(x, update) if is_ours and not torch.is_grad_enabled() else inner.add(x, update)
    return x


def _neurons(layer: nn.Module, cell: Neurons, prompts: Prompts, taken: Tensor) -> Tensor:
    """The FFN of visual tokens by the channels that probe tokens of their own prompt excite most."""
    mlp: Any = layer.mlp
    for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        if type(projection) is not nn.Linear:
            raise ModelError(
                f"a subset of neurons needs the plain weights of an FFN, and this one has a "
                f"{type(projection).__name__}: merge adapters, load unquantised, or use a plan without Neurons."
            )
    rows = prompts.rows(VISUAL)
    h = rms_norm(layer.post_attention_layernorm, taken)
    updates = []
    for b, mine in enumerate(prompts.alive):
        start = sum(map(len, prompts.alive[:b])) if rows.packed else 0
        own = h[:, start : start + len(mine)] if rows.packed else h[b : b + 1]
        updates.append(_own_neurons(mlp, cell, own) if len(mine) else own)
    return torch.cat(updates, dim=1 if rows.packed else 0)


def _own_neurons(mlp: Any, cell: Neurons, h: Tensor) -> Tensor:
    count = h.shape[1]
    probes = torch.linspace(0, count - 1, int(cell.probes(count))).round().long()
    excited = mlp.act_fn(mlp.gate_proj(h[:, probes])) * mlp.up_proj(h[:, probes])
    magnitude = excited.abs().float().mean((0, 1))
    chosen = magnitude.topk(cell.channels(magnitude.numel())).indices.sort().values

    def part(linear: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, linear.weight[chosen], None if linear.bias is None else linear.bias[chosen])

    inner = mlp.act_fn(part(mlp.gate_proj, h)) * part(mlp.up_proj, h)
    return F.linear(inner, mlp.down_proj.weight[:, chosen], mlp.down_proj.bias)


def stock_mask(mask: Tensor | None, cache: Any, index: int, new: int, kind: int, *, has_window: bool) -> Tensor | None:
    """The mask of a stock call of ``new`` tokens of one kind, for a layer whose cache may hold fewer keys than there
    are; the cache then knows what it is about to be given. Through a window it must know which tokens are visual."""
    if has_window:
        remember(cache, index)
    layer = layer_of(cache, index)
    if isinstance(layer, PrunedLayer):
        layer.announce(new, kind)
    return cut(mask, layer, new)


def project(module: Any, which: str, normed: Tensor, rotary: Rotary | None, buffers: Buffers | None = None) -> Tensor:
    """Queries (``q``) or keys (``k``) ``[groups, rows, heads, head_dim]``, normed where the model does, and rotated.

    With ``buffers`` they lie where the FFN's gate will.
    """
    projection = getattr(module, f"{which}_proj")
    x = _heads(linear(projection, normed, buffers, "gate"), module.head_dim)
    is_ours = is_own(projection) and may_write(x)
    norm = getattr(module, f"{which}_norm", None)
    x = x if norm is None else rms_norm(norm, x, x if is_ours else None)
    return x if rotary is None else rotate(x, *rotary, in_place=is_ours)


def _norm(module: Any, x: Tensor, buffers: Buffers | None) -> Tensor:
    into = None if buffers is None or is_small(x) else buffers.take("normed", tuple(x.shape), x)
    return rms_norm(module, x, into)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """``[..., heads * head_dim]`` to ``[..., heads, head_dim]``."""
    return x.unflatten(-1, (-1, head_dim))
