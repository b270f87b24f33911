"""What a rank sees of one prompt at the input of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .attention import attention_mask
from .inplace import Turn, project
from .prompts import Prompts
from .record import LayerRecord


@dataclass(frozen=True)
class View:
    """One prompt at the input of one layer. No rank needs to know of padding, batches or caches.

    Scores that are read from attention cost a few query rows, never an attention map, and work with any kernel.

    Attributes:
        b: the prompt's index in the batch.
        prompts: of the call.
        hidden: the layer's input, ``[sequence, hidden]``.
        record: what the attention of the layer before computed, or of this one, as the rank declares; None for a rank
            that reads neither.
        embedded: the first layer's input, ``[sequence, hidden]``.
        tower: attention that the tower paid to each visual token of the prompt, ``[visual]``; None if not captured.
        wanted: how many tokens will be kept.
        layer: its number.
        merged: how many of the dropped are merged; they follow the kept in the order.
    """

    b: int
    prompts: Prompts
    hidden: Tensor
    record: LayerRecord | None
    embedded: Tensor | None
    tower: Tensor | None
    wanted: int
    layer: int
    merged: int = 0

    @cached_property
    def alive(self) -> Tensor:
        """Living visual rows, int64 ``[alive]``, on the device of the tensors."""
        return self.prompts.alive[self.b].to(self.hidden.device)

    @cached_property
    def first(self) -> Tensor:
        """The visual rows that the prompt came with, int64 ``[visual]``."""
        return self.prompts.first[self.b].to(self.hidden.device)

    @cached_property
    def text(self) -> Tensor:
        """Text rows up to the prompt's end."""
        rows = self.prompts.text[self.b]
        return rows[rows < self.prompts.end].to(self.hidden.device)

    @cached_property
    def last(self) -> Tensor:
        """The last row of the prompt that takes part, ``[1]``."""
        return torch.tensor([self.prompts.last[self.b]], device=self.hidden.device)

    @property
    def tower_scores(self) -> Tensor:
        """Attention that the vision tower paid to each living visual token, ``[alive]``."""
        assert self.tower is not None
        return self.tower.to(self.hidden.device)[torch.searchsorted(self.first, self.alive)]

    @property
    def attention_update(self) -> Tensor:
        """What the recorded layer's attention added to the living visual tokens, ``[alive, hidden]``."""
        assert self._record.after_attention is not None
        return self._record.after_attention[self.b, self.alive] - self._record.layer_input[self.b, self.alive]

    @property
    def layer_update(self) -> Tensor:
        """What the layer before added to the living visual tokens, ``[alive, hidden]``."""
        return self.hidden[self.alive] - self._record.layer_input[self.b, self.alive]

    @property
    def scaling(self) -> float:
        """By which the recorded layer multiplies its scores."""
        return float(self._record.module.scaling)

    def query(self, rows: Tensor, *, rotated: bool = True) -> Tensor:
        """Queries ``[heads, rows, head_dim]`` of some rows of the prompt."""
        return self._project("q", rows, rotated)

    def key(self, *, rotated: bool = True) -> Tensor:
        """Keys ``[kv_heads, alive, head_dim]`` of the living visual tokens."""
        if not rotated:
            return self._project("k", self.alive, False)
        return self._compact(self._record.key)[self._index(self.alive)].transpose(0, 1)

    def attention(self, rows: Tensor) -> Tensor:
        """Attention of some rows on the living visual tokens, float32 ``[heads, rows, alive]``."""
        weights, _ = self._weights(rows)
        return weights[..., -len(self._rows) :][..., self._index(self.alive)]

    def contributions(self) -> tuple[Tensor, Tensor]:
        """What each living visual token gives the last prompt token, attention x value of all heads side by side,
        ``[alive, heads * head_dim]``, and the sum over all tokens, ``[heads * head_dim]``; before ``o_proj``."""
        weights, value = self._weights(self.last)
        value = value.repeat_interleave(weights.shape[0] // value.shape[0], dim=0).float()
        each = weights.transpose(1, 2) * value  # [heads, keys, head_dim]
        mine = each[:, -len(self._rows) :][:, self._index(self.alive)]
        return mine.transpose(0, 1).flatten(1), each.sum(1).flatten()

    @property
    def _record(self) -> LayerRecord:
        assert self.record is not None
        return self.record

    @property
    def _rows(self) -> Tensor:
        """Rows of this prompt in the record, on the CPU."""
        return self._record.rows.prompts[self.b]

    def _compact(self, x: Tensor) -> Tensor:
        """This prompt's share of a compact tensor of the record, ``[rows, ...]``."""
        if not self._record.rows.packed:
            return x[self.b]
        start = sum(map(len, self._record.rows.prompts[: self.b]))
        return x[0, start : start + len(self._rows)]

    def _index(self, rows: Tensor) -> Tensor:
        """Rows of the sequence as indices into the record's rows of this prompt."""
        return torch.searchsorted(self._rows.to(rows.device), rows)

    def _project(self, which: str, rows: Tensor, rotated: bool) -> Tensor:
        normed = self._compact(self._record.normed)[self._index(rows)][None]
        turn = None
        if rotated:
            cos, sin = self._record.rotary
            b = self.b if cos.shape[0] > 1 else 0
            turn = Turn(cos[b, rows][None], sin[b, rows][None])
        return project(self._record.module, which, normed, turn)[0].transpose(0, 1)

    def _weights(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of some rows over all their keys, ``[heads, rows, keys]``, and those keys' values
        ``[kv_heads, keys, head_dim]``; the keys of this call come last, in the order of the record."""
        record = self._record
        key, value = (self._compact(t).transpose(0, 1) for t in (record.key, record.value))
        positions, past = self._rows.to(rows.device) + self.prompts.past, record.past
        if past is not None:
            key, value = torch.cat((past.keys[self.b], key), dim=1), torch.cat((past.values[self.b], value), dim=1)
            positions = torch.cat((past.positions[self.b], positions))
        query = self.query(rows)
        together = query.unflatten(0, (key.shape[0], -1)).flatten(1, 2)  # heads that share keys: each is read once
        scores = (together.float() @ key.float().transpose(1, 2)).reshape(*query.shape[:2], -1)
        scores = scores * record.module.scaling
        mask = record.mask if record.mask is None or len(record.mask) == 1 else record.mask[self.b, None]
        allowed = attention_mask(mask, positions[None], rows[None], self.prompts.past, record.reach)[0]
        if allowed.dtype == torch.bool:
            scores = scores.masked_fill(~allowed, float("-inf"))
        else:
            scores = scores + allowed.float()
        return scores.softmax(-1), value
