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
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

SLICES = 6  # more runs than this are gathered by index
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
    def _spans(self) -> list[tuple[int, int]]:
        return runs_of(self.prompts[0].tolist())

    @cached_property
    def _row(self) -> Tensor:
        rows = torch.cat(self.prompts) if self.packed else self.prompts[0]
        return rows.to(self.device)

    @cached_property
    def _prompt(self) -> Tensor:
        lengths = torch.tensor([len(rows) for rows in self.prompts])
        return torch.arange(len(self.prompts)).repeat_interleave(lengths).to(self.device)

    def take(self, x: Tensor) -> Tensor:
        """``[batch or 1, sequence, ...]`` to compact; a view where it can be."""
        if self.is_whole:
            return x
        if self.packed:
            return x[:, self._row] if x.shape[0] == 1 else x[self._prompt, self._row][None]
        if len(self._spans) <= SLICES:
            pieces = [x[:, start:end] for start, end in self._spans]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1) if pieces else x[:, :0]
        return x[:, self._row]

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """``x`` with the compact ``update`` added to its rows; ``x`` itself is left as it was."""
        return x + update if self.is_whole else self.add_(x.clone(), update)

    def add_(self, x: Tensor, update: Tensor) -> Tensor:
        """``x``, its rows changed in place by the compact ``update`` added to them."""
        if self.is_whole:
            x += update
        elif self.packed:
            x[self._prompt, self._row] += update[0]
        elif len(self._spans) <= SLICES:
            at = 0
            for start, end in self._spans:
                x[:, start:end] += update[:, at : at + end - start]
                at += end - start
        else:
            x[:, self._row] += update
        return x

    def within(self, outer: Rows) -> Rows:
        """The same rows, as rows of ``outer``'s compact tensors; every one must be in ``outer``."""
        if self is outer:
            return Rows((torch.arange(self.groups_length),), self.groups_length, False, self.device)
        found = [torch.searchsorted(o, mine) for o, mine in zip(outer.prompts, self.prompts, strict=True)]
        if not self.packed:
            return Rows((found[0],), len(outer.prompts[0]), False, self.device)
        starts = torch.tensor([0, *(len(rows) for rows in outer.prompts)]).cumsum(0)
        joined = torch.cat([rows + start for rows, start in zip(found, starts[:-1], strict=True)])
        return Rows((joined,), int(starts[-1]), False, self.device)

    @property
    def groups_length(self) -> int:
        """Length of compact tensors."""
        return self.count if self.packed else len(self.prompts[0])

    def rectangle(self, x: Tensor) -> Tensor:
        """Compact to ``[batch, most rows of one prompt, ...]``, zeros behind a prompt's last row."""
        if not self.packed:
            return x
        most = max(map(len, self.prompts))
        wide = x.new_zeros(len(self.prompts), most, *x.shape[2:])
        wide[self._prompt, self._slot] = x[0]
        return wide

    def compact(self, wide: Tensor) -> Tensor:
        """What :meth:`rectangle` made, compact again."""
        return wide[self._prompt, self._slot][None] if self.packed else wide

    @cached_property
    def _slot(self) -> Tensor:
        slots = [torch.arange(len(rows)) for rows in self.prompts]
        return torch.cat(slots).to(self.device)

    def spread(self, x: Tensor) -> Tensor:
        """Compact to ``[batch, length, ...]``, zeros where no row is."""
        if self.is_whole:
            return x
        wide = x.new_zeros(len(self.prompts), self.length, *x.shape[2:])
        if self.packed:
            wide[self._prompt, self._row] = x[0]
        else:
            wide[:, self._row] = x
        return wide

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

    ``mask`` is bool ``[queries, keys]``; None reads as top-left causal, which for one query is everything.
    """

    query: slice
    keys: tuple[slice, ...]
    mask: Tensor | None


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

    Args:
        is_visual: bool ``[batch, sequence]`` on the CPU.
        blocks: of :class:`lookless.cells.Window`, from a run of places to (first, end, first key).
    """
    calls: list[Call] = []
    q_start = k_start = 0
    groups = range(len(visual.prompts)) if visual.packed else range(1)
    for b in groups:
        mine, keys = visual.prompts[b], key.prompts[b]
        kinds = is_visual[b, keys]
        for start, end in runs_of(mine.tolist()):
            for first, last, low in blocks(start, end):  # type: ignore[attr-defined]
                queries = torch.arange(first, last)
                wanted = (keys < last) & (~kinds | (keys >= low))
                places = keys[wanted]
                slices = tuple(slice(k_start + s, k_start + e) for s, e in runs_of(wanted.nonzero().flatten().tolist()))
                mask = places[None, :] <= queries[:, None]
                mask &= ~kinds[wanted][None, :] | (places[None, :] > queries[:, None] - size)
                at = q_start + int(torch.searchsorted(mine, first))
                calls.append(Call(slice(at, at + last - first), slices, mask.to(visual.device)))
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
