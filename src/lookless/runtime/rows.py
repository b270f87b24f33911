"""Which rows of a batch of prompts an operator runs on, and how to gather and scatter them.

The residual stream keeps its shape ``[batch, sequence, hidden]``. An operator runs on a *row set*: text tokens, visual
tokens that are alive, or some of them. Where every prompt of the batch has it at the same positions, compact tensors
are ``[batch, rows, ...]``, and a few runs of consecutive rows are slices. Where prompts differ, or some tokens are
padding, which is in no row set, the rows of all prompts follow one another: compact tensors are *packed*,
``[1, rows of all prompts, ...]``. So no operator computes a row that is not in its set, and both cases are one code.

No position is assumed: prompts with several images, interleaved images or dead rows differ in their row sets only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

SLICES = 6  # more runs than this are gathered by index


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of each prompt of a batch: gather them, compute on the compact tensor, scatter the result.

    Two prompts that differ are packed: the first two rows of one, the last row of the other.

    >>> import torch
    >>> rows = Rows((torch.tensor([0, 1]), torch.tensor([2])), length=3, packed=True, device=torch.device("cpu"))
    >>> x = torch.arange(6.0).reshape(2, 3, 1)  # [batch, sequence, hidden]
    >>> rows.gather(x).flatten().tolist()
    [0.0, 1.0, 5.0]
    >>> rows.scatter(x, 10 * rows.gather(x))[..., 0].tolist()
    [[0.0, 10.0, 2.0], [3.0, 4.0, 50.0]]
    >>> rows.pad(rows.gather(x))[0].flatten().tolist(), rows.positions.tolist()
    ([0.0, 1.0], [[0, 1], [2, -1]])

    Attributes:
        prompts: of each prompt, its rows in ascending order; int64 on the CPU, ``[rows]``.
        length: of the sequence they are rows of.
        packed: compact tensors are ``[1, all rows, ...]``; otherwise all prompts have the same rows.
        device: of the tensors that rows are gathered from.
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
        """Every row of every prompt: what is gathered is the tensor itself."""
        return not self.packed and len(self.prompts[0]) == self.length

    def same_as(self, other: Rows) -> bool:
        """Whether compact tensors of both hold the same rows in the same order."""
        pairs = zip(self.prompts, other.prompts, strict=True)
        return self.packed == other.packed and all(torch.equal(mine, theirs) for mine, theirs in pairs)

    @cached_property
    def is_view(self) -> bool:
        """What is gathered shares the memory it is gathered from."""
        return not self.packed and len(self._spans) <= 1

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return runs_of(self.prompts[0].tolist())

    @cached_property
    def _index(self) -> Tensor:
        """Of compact tensors' rows, which of the sequence each is; packed, of all prompts' sequences joined."""
        if not self.packed:
            return self.prompts[0].to(self.device)
        return torch.cat([rows + b * self.length for b, rows in enumerate(self.prompts)]).to(self.device)

    @cached_property
    def _index_of_one(self) -> Tensor:
        """As :attr:`_index`, of what all prompts share."""
        return torch.cat(self.prompts).to(self.device) if self.packed else self._index

    def gather(self, x: Tensor) -> Tensor:
        """``[batch or 1, sequence, ...]`` to compact; a view where it can be."""
        if self.is_whole:
            return x
        if self.packed:
            flat, rows = (x[0], self._index_of_one) if x.shape[0] == 1 else (x.flatten(0, 1), self._index)
            return flat.index_select(0, rows)[None]
        if len(self._spans) <= SLICES:
            pieces = [x[:, start:end] for start, end in self._spans]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1) if pieces else x[:, :0]
        return x.index_select(1, self._index)

    def add(self, x: Tensor, update: Tensor, *, owns_x: bool) -> Tensor:
        """``x`` with the compact ``update`` added to its rows; in place where the caller ``owns_x`` and may."""
        return self.scatter_add_(x, update) if owns_x and not torch.is_grad_enabled() else self.scatter_add(x, update)

    def scatter_add(self, x: Tensor, update: Tensor) -> Tensor:
        """``x`` with the compact ``update`` added to its rows; ``x`` itself is left as it was."""
        if self.is_whole:
            return x + update
        return self.scatter_add_(x.clone(memory_format=torch.contiguous_format), update)

    def scatter_add_(self, x: Tensor, update: Tensor) -> Tensor:
        """``x``, contiguous, its rows changed in place by the compact ``update`` added to them."""
        if self.is_whole:
            x += update
        elif self.packed:
            x.view(-1, x.shape[-1]).index_add_(0, self._index, update[0].to(x.dtype))
        elif len(self._spans) <= SLICES:
            at = 0
            for start, end in self._spans:
                x[:, start:end].add_(update[:, at : at + end - start])  # `+=` would copy it onto itself
                at += end - start
        else:
            x.index_add_(1, self._index, update.to(x.dtype))
        return x

    def scatter(self, x: Tensor, compact: Tensor) -> Tensor:
        """``x`` with its rows replaced by ``compact``; ``x`` itself is left as it was."""
        if self.is_whole:
            return compact
        x = x.clone(memory_format=torch.contiguous_format)
        if self.packed:
            x.view(-1, x.shape[-1]).index_copy_(0, self._index, compact[0].to(x.dtype))
        else:
            x.index_copy_(1, self._index, compact.to(x.dtype))
        return x

    def within(self, outer: Rows) -> Rows:
        """The same rows, as rows of ``outer``'s compact tensors; every one must be in ``outer``."""
        if self is outer:
            return Rows((torch.arange(self.compact_length),), self.compact_length, False, self.device)
        found = [torch.searchsorted(o, mine) for o, mine in zip(outer.prompts, self.prompts, strict=True)]
        if not self.packed:
            return Rows((found[0],), len(outer.prompts[0]), False, self.device)
        joined = torch.cat([rows + start for rows, start in zip(found, outer._starts, strict=False)])
        return Rows((joined,), outer.count, False, self.device)

    @property
    def compact_length(self) -> int:
        """Length of compact tensors."""
        return self.count if self.packed else len(self.prompts[0])

    def pad(self, x: Tensor) -> Tensor:
        """Compact to ``[batch, most rows of one prompt, ...]``. After a prompt's last row come copies of another, to be
        ignored."""
        return self._fill(x, self._pad_index) if self.packed else x

    def unpad(self, padded: Tensor) -> Tensor:
        """What :meth:`pad` made, compact again."""
        return padded.flatten(0, 1).index_select(0, self._unpad_index)[None] if self.packed else padded

    def to_sequences(self, x: Tensor) -> Tensor:
        """Compact to ``[batch, length, ...]``; a position that is no row gets a copy of one, to be ignored."""
        return x if self.is_whole else self._fill(x, self._sequence_index)

    def _fill(self, x: Tensor, rows: Tensor) -> Tensor:
        """Compact ``x``'s ``rows [batch or 1, wanted]``."""
        if not x.shape[1]:  # no row to copy
            return x.new_zeros(len(self.prompts), rows.shape[1], *x.shape[2:])
        if not self.packed:
            return x.index_select(1, rows[0])
        return x[0].index_select(0, rows.flatten()).unflatten(0, (len(self.prompts), -1))

    @cached_property
    def _starts(self) -> list[int]:
        """Where each prompt's rows begin in packed tensors."""
        return [0, *accumulate(len(rows) for rows in self.prompts)]

    @cached_property
    def _pad_index(self) -> Tensor:
        slots = torch.arange(max(map(len, self.prompts)))
        rows = [torch.where(slots < len(p), slots + at, 0) for p, at in zip(self.prompts, self._starts, strict=False)]
        return torch.stack(rows).to(self.device)

    @cached_property
    def _unpad_index(self) -> Tensor:
        most = max(map(len, self.prompts))
        return torch.cat([torch.arange(len(rows)) + b * most for b, rows in enumerate(self.prompts)]).to(self.device)

    @cached_property
    def _sequence_index(self) -> Tensor:
        prompts = self.prompts if self.packed else self.prompts[:1]
        rows = torch.zeros(len(prompts), self.length, dtype=torch.int64)
        for b, mine in enumerate(prompts):
            rows[b, mine] = torch.arange(len(mine)) + (self._starts[b] if self.packed else 0)
        return rows.to(self.device)

    @cached_property
    def positions(self) -> Tensor:
        """The position in its prompt of each row of :meth:`pad`, -1 where there is none; ``[batch, most]``."""
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
