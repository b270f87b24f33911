"""Attention between row sets: the calls of the fused kernel by which queries attend to keys, and no others.

A call costs as much as some thousand scores. So many small runs go to one masked call, and long runs to causal calls
that score no key after them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from .rows import Rows, runs_of

LONG = 512  # keys of one prompt, from which on a causal call of many rows scores noticeably less than a masked one
FEW = 1 << 14  # scores that cost less than a call
CALLS = 6  # more runs of queries than this in one prompt go to one masked call


@dataclass(frozen=True)
class Call:
    """One attention call: compact query rows ``query`` over compact key rows ``keys``, each one or more slices.

    ``mask`` is ``[queries, keys]``, bool or added to scores; None means top-left causal, which for one query is
    everything.
    """

    query: slice
    keys: tuple[slice, ...]
    mask: Tensor | None

    def added(self, dtype: torch.dtype) -> Call:
        """The same with the mask as what is added to scores, which PyTorch would otherwise make at every call."""
        return self if self.mask is None else replace(self, mask=_added(self.mask, dtype))


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def is_one_call(query: Rows, key: Rows) -> bool:
    """Whether one masked call over the padded tensors of all prompts costs less than a call for each prompt.

    A call costs as much as some thousand scores, and waits for all threads. The padded call also scores fillers and, of
    many rows, what a causal call would leave out.
    """
    if not query.packed:
        return False
    mine, theirs = ([len(rows) for rows in side.prompts] for side in (query, key))
    wanted = sum(q * k for q, k in zip(mine, theirs, strict=True))
    scored = len(mine) * max(mine) * max(theirs)
    return max(theirs) <= LONG and scored <= wanted + wanted // 4 + FEW


def padded_mask(query: Rows, key: Rows, positions: Tensor, dtype: torch.dtype, reach: int | None = None) -> Tensor:
    """What is added to scores of ``query.pad`` over keys of ``key``, so that each row attends to its own prompt up to
    itself: ``[batch, 1, queries, keys]``.

    ``positions [batch or 1, keys]`` are the keys' own, -1 for none; in one row for all prompts, those of sequences.
    Keys ``reach`` positions before a row are not read; None reads all.
    """
    own = query.positions.clamp_min(0)[..., None]
    allowed = (positions[:, None] <= own) & (positions >= 0)[:, None]
    if reach is not None:
        allowed = allowed & (positions[:, None] > own - reach)
    if key.packed and positions.shape[0] == 1:  # of whole sequences: keep those that are rows
        real = torch.zeros(len(key.prompts), key.length, dtype=torch.bool)
        for b, rows in enumerate(key.prompts):
            real[b, rows] = True
        allowed = allowed & real.to(positions.device)[:, None]
    allowed = allowed | ~allowed.any(-1, keepdim=True)  # fillers, which are ignored, must stay numbers
    return _added(allowed, dtype)[:, None]


def causal_calls(query: Rows, key: Rows, *, heads: int, scattered: bool = False) -> list[Call]:
    """The calls by which each of ``query``'s rows attends to ``key``'s rows of its own prompt, up to itself.

    Query rows are among the key rows. A run of consecutive queries needs no key after it, and a run at the very
    beginning no mask. ``scattered`` rows, or more than a few runs, go to one masked call. So do runs that score so few
    keys more, in all ``heads`` of all prompts of a call, that a call of their own costs more.
    """

    def of_prompt(queries: list[int], count: int, q_start: int, k_start: int) -> list[Call]:
        runs = runs_of(queries)
        is_one = scattered or len(runs) > CALLS
        calls, at = [], q_start
        for group in [runs] if is_one else _together(runs, FEW // heads):
            rows = torch.cat([torch.arange(start, end, device=query.device) for start, end in group])
            end = count if is_one else group[-1][1]
            is_causal = len(rows) == end or (len(rows) == 1 and group[0][1] == end)
            mask = None if is_causal else torch.arange(end, device=query.device)[None, :] <= rows[:, None]
            calls.append(Call(slice(at, at + len(rows)), (slice(k_start, k_start + end),), mask))
            at += len(rows)
        return calls

    return _by_prompt(query, key, of_prompt)


def _together(runs: list[tuple[int, int]], most: int) -> list[list[tuple[int, int]]]:
    """Runs of queries, side by side as long as a call of all of them scores at most so many keys for nothing."""
    groups: list[list[tuple[int, int]]] = []
    spare = 0
    for start, end in runs:
        before = sum(last - first for first, last in groups[-1]) if groups else 0
        more = before * (end - groups[-1][-1][1]) if groups else 0
        if groups and spare + more <= most:
            groups[-1].append((start, end))
            spare += more
        else:
            groups.append([(start, end)])
            spare = 0
    return groups


def sliding_calls(query: Rows, key: Rows, reach: int) -> list[Call]:
    """The calls by which each of ``query``'s rows attends to ``key``'s rows of its own prompt, up to itself and less
    than ``reach`` positions back: at most ``reach`` queries at a time, which see the keys of all their windows. Runs
    of queries are apart, unless there are many."""
    calls: list[Call] = []
    q_start = k_start = 0
    for b in range(len(query.prompts)) if query.packed else range(1):
        mine, keys = query.prompts[b], key.prompts[b]
        lengths = [end - start for start, end in runs_of(mine.tolist())]
        lengths = lengths if len(lengths) <= CALLS else [len(mine)]
        pieces = [min(reach, length - at) for length in lengths for at in range(0, length, reach)]
        for at, queries in zip(accumulate([0, *pieces]), mine.split(pieces), strict=False):
            low, high = torch.searchsorted(keys, torch.stack((queries[0] - reach + 1, queries[-1] + 1))).tolist()
            near, own = keys[low:high], queries[:, None]
            mask = ((near <= own) & (near > own - reach)).to(query.device)
            here = slice(q_start + at, q_start + at + len(queries))
            calls.append(Call(here, (slice(k_start + low, k_start + high),), mask))
        q_start, k_start = q_start + len(mine), k_start + len(keys)
    return calls


def window_calls(
    visual: Rows,
    key: Rows,
    is_visual: Tensor,
    blocks: Callable[[int, int], object],
    size: int,
    reach: int | None = None,
) -> list[Call]:
    """The calls by which ``visual``'s rows attend to all text before them and to visual keys at most ``size - 1``
    positions back.

    Blocks are of living rows, wherever they are: those at most ``size - 1`` positions back are among the last
    ``size - 1`` living ones. So scattered rows cost what the same number in one run does.

    Args:
        is_visual: bool ``[batch, sequence]`` on the CPU.
        blocks: of :class:`lookless.cells.Window`, from a run of rows to (first, end, first key).
        reach: of the layer's own window, over text too; None without one.
    """
    calls: list[Call] = []
    q_start = k_start = 0
    groups = range(len(visual.prompts)) if visual.packed else range(1)
    for b in groups:
        mine, keys = visual.prompts[b], key.prompts[b]
        kinds = is_visual[b, keys]
        number = kinds.cumsum(0) - 1  # of a visual key, among the living
        for first, last, low in blocks(0, len(mine)):  # type: ignore[attr-defined]
            queries = mine[first:last]
            wanted = (keys <= queries[-1]) & (~kinds | (number >= low))
            if reach is not None:
                wanted &= keys > queries[0] - reach
            positions = keys[wanted]
            slices = tuple(slice(k_start + s, k_start + e) for s, e in runs_of(wanted.nonzero().flatten().tolist()))
            mask = positions[None, :] <= queries[:, None]
            mask &= ~kinds[wanted][None, :] | (positions[None, :] > queries[:, None] - size)
            if reach is not None:
                mask &= positions[None, :] > queries[:, None] - reach
            calls.append(Call(slice(q_start + first, q_start + last), slices, mask.to(visual.device)))
        q_start, k_start = q_start + len(mine), k_start + len(keys)
    return calls


def _by_prompt(query: Rows, key: Rows, of_prompt: Callable[..., list[Call]]) -> list[Call]:
    calls: list[Call] = []
    q_start = k_start = 0
    for b in range(len(query.prompts)) if query.packed else range(1):
        found = torch.searchsorted(key.prompts[b], query.prompts[b]).tolist()
        calls += of_prompt(found, len(key.prompts[b]), q_start, k_start)
        q_start, k_start = q_start + len(query.prompts[b]), k_start + len(key.prompts[b])
    return calls


def attend(
    query: Tensor, key: Tensor, value: Tensor, calls: list[Call], scaling: float, dropout: float = 0.0
) -> Tensor:
    """Attention of compact ``query [groups, rows, heads, head_dim]`` over compact ``key, value
    [groups, rows, kv_heads, head_dim]`` by ``calls``, which cover the query's rows in order.

    Returns ``[groups, rows, heads * head_dim]``.
    """
    outputs = []
    for call in calls:
        k, v = (_slices(x, call.keys).transpose(1, 2) for x in (key, value))
        outputs.append(scaled_dot_product(query[:, call.query].transpose(1, 2), k, v, call.mask, scaling, dropout))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)).transpose(1, 2).flatten(2)


def _slices(x: Tensor, slices: tuple[slice, ...]) -> Tensor:
    return x[:, slices[0]] if len(slices) == 1 else torch.cat([x[:, s] for s in slices], dim=1)


def scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float = 0.0
) -> Tensor:
    """PyTorch's fused attention on ``[batch, heads, rows, head_dim]``; without a mask it is top-left causal.

    The model's own implementation may be another (eager, FlashAttention); they are equal to rounding.
    """
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype),
        dropout_p=dropout,
        is_causal=mask is None and query.shape[2] > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
