"""Which rows of a batch of prompts an operator runs on, how to take them out and put them back, and who reads whom.

The residual stream keeps its shape ``[batch, sequence, hidden]``. An operator runs on a *row set*: text tokens, visual
tokens that are alive, or some of them. Where every prompt of the batch has it in the same places, compact tensors are
``[batch, rows, ...]``, and a few runs of consecutive rows are slices. Where prompts differ, or some tokens are padding,
which is in no row set, the rows of all prompts stand one behind the other: compact tensors are *packed*,
``[1, rows of all prompts, ...]``. So no operator computes a row that nobody asked for, and both cases are one code.

No position is assumed: prompts with several images, interleaved images or dead rows differ in their row sets only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

SLICES = 6  # more runs than this are gathered by index
LONG = 512  # keys of one prompt, from which on a causal call of many rows scores noticeably less than a masked one
FEW = 1 << 14  # scores that cost less than a call
CALLS = 6  # more runs of queries than this in one prompt are asked in one masked call


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of each prompt of a batch.

    Attributes:
        prompts: of each prompt, its rows in ascending order; int64 on the CPU, ``[rows]``.
        length: of the sequence they are rows of.
        packed: compact tensors are ``[1, all rows, ...]``; otherwise all prompts have the same rows.
        device: where the tensors are that rows are taken from.
    """

    prompts: tuple[Tensor, ...]
    length: int
    packed: bool
    device: torch.device

    @cached_property
    def count(self) -> int:
        """Rows over the whole batch."""
        return sum(map(len, self.prompts))

    @cached_property
    def is_whole(self) -> bool:
        """Every row of every prompt: nothing is taken out, and what is taken is the tensor itself."""
        return not self.packed and len(self.prompts[0]) == self.length

    @cached_property
    def is_view(self) -> bool:
        """What is taken shares the memory it is taken from."""
        return not self.packed and len(self._spans) <= 1

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return runs_of(self.prompts[0].tolist())

    @cached_property
    def _row(self) -> Tensor:
        """Of compact tensors' rows, which of the sequence each is; packed, of all prompts' sequences joined."""
        if not self.packed:
            return self.prompts[0].to(self.device)
        return torch.cat([rows + b * self.length for b, rows in enumerate(self.prompts)]).to(self.device)

    @cached_property
    def _of_one(self) -> Tensor:
        """As :attr:`_row`, of what all prompts share."""
        return torch.cat(self.prompts).to(self.device) if self.packed else self._row

    def take(self, x: Tensor) -> Tensor:
        """``[batch or 1, sequence, ...]`` to compact; a view where it can be."""
        if self.is_whole:
            return x
        if self.packed:
            flat, rows = (x[0], self._of_one) if x.shape[0] == 1 else (x.flatten(0, 1), self._row)
            return flat.index_select(0, rows)[None]
        if len(self._spans) <= SLICES:
            pieces = [x[:, start:end] for start, end in self._spans]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1) if pieces else x[:, :0]
        return x.index_select(1, self._row)

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """``x`` with the compact ``update`` added to its rows; ``x`` itself is left as it was."""
        return x + update if self.is_whole else self.add_(x.clone(memory_format=torch.contiguous_format), update)

    def add_(self, x: Tensor, update: Tensor) -> Tensor:
        """``x``, contiguous, its rows changed in place by the compact ``update`` added to them."""
        if self.is_whole:
            x += update
        elif self.packed:
            x.view(-1, x.shape[-1]).index_add_(0, self._row, update[0].to(x.dtype))
        elif len(self._spans) <= SLICES:
            at = 0
            for start, end in self._spans:
                x[:, start:end].add_(update[:, at : at + end - start])  # `+=` would copy it onto itself
                at += end - start
        else:
            x.index_add_(1, self._row, update.to(x.dtype))
        return x

    def put(self, x: Tensor, compact: Tensor) -> Tensor:
        """``x`` with its rows replaced by ``compact``; ``x`` itself is left as it was."""
        if self.is_whole:
            return compact
        x = x.clone(memory_format=torch.contiguous_format)
        if self.packed:
            x.view(-1, x.shape[-1]).index_copy_(0, self._row, compact[0].to(x.dtype))
        else:
            x.index_copy_(1, self._row, compact.to(x.dtype))
        return x

    def within(self, outer: Rows) -> Rows:
        """The same rows, as rows of ``outer``'s compact tensors; every one must be in ``outer``."""
        if self is outer:
            return Rows((torch.arange(self.groups_length),), self.groups_length, False, self.device)
        found = [torch.searchsorted(o, mine) for o, mine in zip(outer.prompts, self.prompts, strict=True)]
        if not self.packed:
            return Rows((found[0],), len(outer.prompts[0]), False, self.device)
        joined = torch.cat([rows + start for rows, start in zip(found, outer._starts, strict=False)])
        return Rows((joined,), outer.count, False, self.device)

    @property
    def groups_length(self) -> int:
        """Length of compact tensors."""
        return self.count if self.packed else len(self.prompts[0])

    def rectangle(self, x: Tensor) -> Tensor:
        """Compact to ``[batch, most rows of one prompt, ...]``; behind a prompt's last row stands another, for nobody
        to read."""
        return self._fill(x, self._filled) if self.packed else x

    def compact(self, wide: Tensor) -> Tensor:
        """What :meth:`rectangle` made, compact again."""
        return wide.flatten(0, 1).index_select(0, self._slot)[None] if self.packed else wide

    def spread(self, x: Tensor) -> Tensor:
        """Compact to ``[batch, length, ...]``; where no row is stands another, for nobody to read."""
        return x if self.is_whole else self._fill(x, self._spread)

    def _fill(self, x: Tensor, rows: Tensor) -> Tensor:
        """Compact ``x``'s ``rows [batch or 1, wanted]``."""
        if not x.shape[1]:  # nothing to stand anywhere
            return x.new_zeros(len(self.prompts), rows.shape[1], *x.shape[2:])
        if not self.packed:
            return x.index_select(1, rows[0])
        return x[0].index_select(0, rows.flatten()).unflatten(0, (len(self.prompts), -1))

    @cached_property
    def _starts(self) -> list[int]:
        """Where each prompt's rows begin in packed tensors."""
        return [0, *accumulate(len(rows) for rows in self.prompts)]

    @cached_property
    def _filled(self) -> Tensor:
        slots = torch.arange(max(map(len, self.prompts)))
        rows = [torch.where(slots < len(p), slots + at, 0) for p, at in zip(self.prompts, self._starts, strict=False)]
        return torch.stack(rows).to(self.device)

    @cached_property
    def _slot(self) -> Tensor:
        most = max(map(len, self.prompts))
        return torch.cat([torch.arange(len(rows)) + b * most for b, rows in enumerate(self.prompts)]).to(self.device)

    @cached_property
    def _spread(self) -> Tensor:
        prompts = self.prompts if self.packed else self.prompts[:1]
        rows = torch.zeros(len(prompts), self.length, dtype=torch.int64)
        for b, mine in enumerate(prompts):
            rows[b, mine] = torch.arange(len(mine)) + (self._starts[b] if self.packed else 0)
        return rows.to(self.device)

    @cached_property
    def places(self) -> Tensor:
        """Where each row of :meth:`rectangle` stands in its prompt, -1 where there is none; ``[batch, most]``."""
        most = max(map(len, self.prompts))
        return torch.stack([F.pad(rows, (0, most - len(rows)), value=-1) for rows in self.prompts]).to(self.device)


def runs_of(rows: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs (first, last + 1) of consecutive ones."""
    runs: list[tuple[int, int]] = []
    start = previous = None
    for row in rows:
        if previous is None or row != previous + 1:
            if start is not None and previous is not None:
                runs.append((start, previous + 1))
            start = row
        previous = row
    if start is not None and previous is not None:
        runs.append((start, previous + 1))
    return runs


@dataclass(frozen=True)
class Call:
    """One attention call: compact query rows ``query`` over compact key rows ``keys``, each one or more slices.

    ``mask`` is ``[queries, keys]``, bool or added to scores; None reads as top-left causal, which for one query is
    everything.
    """

    query: slice
    keys: tuple[slice, ...]
    mask: Tensor | None

    def added(self, dtype: torch.dtype) -> Call:
        """The same with the mask as what is added to scores, which PyTorch else makes of it at every call."""
        return self if self.mask is None else replace(self, mask=_added(self.mask, dtype))


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def is_one_call(query: Rows, key: Rows) -> bool:
    """Whether one masked call over rectangles of all prompts costs less than a call for each prompt.

    A call costs as much as some thousand scores, and waits for all threads; what a rectangle scores beside what is
    asked for is fillers and, of many rows, what a causal call would leave out.
    """
    if not query.packed:
        return False
    mine, theirs = ([len(rows) for rows in side.prompts] for side in (query, key))
    asked = sum(q * k for q, k in zip(mine, theirs, strict=True))
    scored = len(mine) * max(mine) * max(theirs)
    return max(theirs) <= LONG and scored <= asked + asked // 4 + FEW


def wide_mask(query: Rows, key: Rows, places: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores of ``query.rectangle`` over keys of ``key`` that stand at ``places [batch or 1, keys]``,
    so that each row reads its own prompt up to itself: ``[batch, 1, queries, keys]``."""
    where = query.places.clamp_min(0)[..., None]
    allowed = (places[:, None] <= where) & (places >= 0)[:, None]
    if key.packed and places.shape[0] == 1:  # places of whole sequences: those that are rows
        real = torch.zeros(len(key.prompts), key.length, dtype=torch.bool)
        for b, rows in enumerate(key.prompts):
            real[b, rows] = True
        allowed = allowed & real.to(places.device)[:, None]
    allowed = allowed | ~allowed.any(-1, keepdim=True)  # fillers, which nobody reads, must stay numbers
    return _added(allowed, dtype)[:, None]


def causal_calls(query: Rows, key: Rows, *, scattered: bool = False) -> list[Call]:
    """The calls by which each of ``query``'s rows reads ``key``'s rows of its own prompt, up to itself.

    Query rows are among the key rows. A run of consecutive queries needs no key behind it, and a run at the very
    beginning no mask; ``scattered`` rows, or more than a few runs, are asked in one masked call.
    """

    def of_prompt(queries: list[int], count: int, q_start: int, k_start: int) -> list[Call]:
        runs = runs_of(queries)
        if scattered or len(runs) > CALLS:
            rows = torch.tensor(queries, device=query.device)
            mask = torch.arange(count, device=query.device)[None, :] <= rows[:, None]
            here = slice(q_start, q_start + len(queries))
            return [Call(here, (slice(k_start, k_start + count),), mask)]
        calls, at = [], q_start
        for start, end in runs:
            mask = None
            if start > 0:
                ends = torch.arange(start, end, device=query.device)
                mask = torch.arange(end, device=query.device)[None, :] <= ends[:, None]
            calls.append(Call(slice(at, at + end - start), (slice(k_start, k_start + end),), mask))
            at += end - start
        return calls

    return _by_prompt(query, key, of_prompt)


def window_calls(
    visual: Rows, key: Rows, is_visual: Tensor, blocks: Callable[[int, int], object], size: int
) -> list[Call]:
    """The calls by which ``visual``'s rows read all text before them and the visual keys at most ``size - 1`` back.

    Blocks are of living rows, wherever they are: what is at most ``size - 1`` places back is among the last
    ``size - 1`` living ones. So scattered rows cost what the same number in one run does.

    Args:
        is_visual: bool ``[batch, sequence]`` on the CPU.
        blocks: of :class:`lookless.cells.Window`, from a run of rows to (first, end, first key).
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
            places = keys[wanted]
            slices = tuple(slice(k_start + s, k_start + e) for s, e in runs_of(wanted.nonzero().flatten().tolist()))
            mask = places[None, :] <= queries[:, None]
            mask &= ~kinds[wanted][None, :] | (places[None, :] > queries[:, None] - size)
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

    The models' own implementation may be another (eager, FlashAttention); they are equal to rounding.
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
