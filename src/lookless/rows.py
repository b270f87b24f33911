"""Which rows of a prompt an operator runs on, and how to take them out and put them back.

The residual stream keeps its shape ``[batch, sequence, hidden]``. A layer that spares visual tokens runs its
operators on the *text rows* alone. If every prompt of the batch has them in the same places, they are a few runs of
consecutive rows: slices, and short maskless or causal attention calls (:class:`Runs`). Otherwise, under padding or when
prompts differ, they are gathered (:class:`Gathered`). Rows that are padding are in neither: nobody reads them.

No position is assumed: prompts with several images, interleaved images or a warm cache differ in their runs only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: Hugging Face's interface: (module, query, key, value, mask, scaling=) to ([batch, query, head, head_dim], weights)
Attention = Callable[..., tuple[Tensor, Any]]


@dataclass
class Runs:
    """Text rows that are the same ``spans`` (start, end) in every prompt of the batch, with nothing padded.

    Compact tensors are ``[batch, rows, ...]``.
    """

    spans: tuple[tuple[int, int], ...]
    batch: int
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Rows over the whole batch."""
        return self.batch * sum(end - start for start, end in self.spans)

    def take(self, x: Tensor) -> Tensor:
        """``[batch or 1, sequence, ...]`` to compact."""
        pieces = [x[:, start:end] for start, end in self.spans]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        """``x`` with the compact ``update`` added to its rows; ``x`` itself is left as it was."""
        x, at = x.clone(), 0
        for start, end in self.spans:
            x[:, start:end] += update[:, at : at + end - start]
            at += end - start
        return x

    def attend(
        self, attention: Attention, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of compact ``query`` ``[batch, rows, head, head_dim]`` over ``key, value``
        ``[batch, head, keys, head_dim]``. Returns compact ``[batch, rows, head * head_dim]``.

        ``mask`` is the stock layer's, ``[batch, 1, sequence, keys]``. None means what it means there: row i reads keys
        0 to i, and keys behind the prompt are a static cache's empty places. Where a cache is warm there is a mask.
        """
        outputs, at = [], 0
        for start, end in self.spans:
            q = query[:, at : at + end - start].transpose(1, 2)
            at += end - start
            if mask is not None:
                k, v, m = key, value, mask[:, :, start:end]
            else:  # a row reads the keys up to itself: those behind the run are never scored
                k, v, m = key[:, :, :end], value[:, :, :end], self._causal(start, end, query.device)
            out, _ = attention(module, q, k, v, m, dropout=0.0, scaling=module.scaling)
            outputs.append(out.flatten(2))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _causal(self, start: int, end: int, device: torch.device) -> Tensor | None:
        """The bottom-right causal mask ``[1, 1, rows, keys]`` of a run; None where the kernel's own is the same.

        PyTorch's ``is_causal`` is aligned to the top left, which is right for a run at the very beginning only.
        """
        if start == 0 or end - start == 1:
            return None
        if (start, end) not in self._masks:
            rows, keys = torch.arange(start, end, device=device), torch.arange(end, device=device)
            self._masks[start, end] = (keys[None, :] <= rows[:, None])[None, None]
        return self._masks[start, end]


@dataclass
class Gathered:
    """Text rows that differ from prompt to prompt, or stand beside padding. Compact tensors are ``[rows, ...]``.

    Attributes:
        prompt, row: where each compact row stands, both int64 ``[rows]``.
        slot: its place among the rows of its own prompt, int64 ``[rows]``.
        shape: (batch, most rows of one prompt), the rectangle attention runs on.
    """

    prompt: Tensor
    row: Tensor
    slot: Tensor
    shape: tuple[int, int]
    _cut: tuple[Tensor | None, Tensor] | None = None  # the last stock mask and its rows; layers share one

    @property
    def count(self) -> int:
        return self.row.numel()

    def take(self, x: Tensor) -> Tensor:
        return x[self.prompt, self.row] if x.shape[0] > 1 else x[0, self.row]

    def add(self, x: Tensor, update: Tensor) -> Tensor:
        x = x.clone()
        x[self.prompt, self.row] += update
        return x

    def attend(
        self, attention: Attention, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """As :meth:`Runs.attend`; ``query`` is ``[rows, head, head_dim]``, the result ``[rows, head * head_dim]``."""
        batch, most = self.shape
        q = query.new_zeros(batch, most, *query.shape[1:])
        q[self.prompt, self.slot] = query
        out, _ = attention(
            module,
            q.transpose(1, 2),
            key,
            value,
            self._mask(mask, key.shape[2], key.device),
            dropout=0.0,
            scaling=module.scaling,
        )
        return out[self.prompt, self.slot].flatten(1)

    def _mask(self, mask: Tensor | None, keys: int, device: torch.device) -> Tensor:
        """``mask``'s rows for the rectangle, ``[batch, 1, most, keys]``; slots without a row repeat row 0's."""
        if self._cut is None or self._cut[0] is not mask:
            batch, most = self.shape
            where = torch.zeros(batch, most, dtype=torch.int64, device=device)
            where[self.prompt, self.slot] = self.row
            if mask is None:
                cut = (torch.arange(keys, device=device) <= where[..., None])[:, None]
            else:
                wide = mask.expand(batch, *mask.shape[1:])
                cut = wide.gather(2, where[:, None, :, None].expand(-1, wide.shape[1], -1, wide.shape[3]))
            self._cut = (mask, cut)
        return self._cut[1]


RowSet = Runs | Gathered


def text_rows(visual: Tensor, real: Tensor | None) -> RowSet | None:
    """The text rows of a batch of prompts, or None if no row is visual and there is nothing to spare.

    Args:
        visual: bool ``[batch, sequence]``, true where the token is a visual placeholder.
        real: bool ``[batch, sequence]``, false where the token is padding; None if nothing is.
    """
    if not visual.any():
        return None
    text = ~visual
    if (real is None or bool(real.all())) and bool((text == text[:1]).all()):
        edges = text[0].int().diff(prepend=text.new_zeros(1).int(), append=text.new_zeros(1).int())
        starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
        return Runs(tuple(zip(starts, ends, strict=True)), visual.shape[0])
    if real is not None:
        text = text & real
    prompt, row = text.nonzero(as_tuple=True)
    slot = text.cumsum(1)[prompt, row] - 1
    return Gathered(prompt, row, slot, (visual.shape[0], max(1, int(text.sum(1).max()))))
