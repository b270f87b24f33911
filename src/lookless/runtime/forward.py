"""One pass of prompts through the decoder under a plan: before each layer, drop and choose visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..cells import Choice, Filter, Keep
from ..errors import ModelError
from ..layer_plan import LayerPlan, LayerWork
from ..ranks import RANKS
from .inplace import is_small
from .last_rows import run_last_rows
from .layer import run_layer
from .prompts import Prompts
from .ranks import Filtering, recycle, select
from .record import LayerRecord, project_keys
from .view import View


@dataclass(frozen=True)
class Step:
    """One layer of a plan, with what every call needs to know of it.

    Attributes:
        row: of the plan.
        work: what the layer computes under it.
        prunes: some visual tokens are dropped or chosen at its input.
        wants_record: a rank of the next layer reads what it computes.
        is_full: nothing is planned in it, and all of it is read.
    """

    row: LayerPlan
    work: LayerWork
    prunes: bool
    wants_record: bool
    is_full: bool


def steps_of(rows: Sequence[LayerPlan], works: Sequence[LayerWork] | None = None) -> tuple[Step, ...]:
    """The steps of a plan's ``rows``; made once for a plan, as reading a row takes longer than a small layer has.

    ``works`` is what runs of them, where some of it is dead work; None for all.
    """
    steps, written = [], [row.work for row in rows]
    for row, mine, work, later in zip(rows, written, works or written, [*rows[1:], None], strict=True):
        read = later is not None and any(RANKS[rank].reads == "previous" for rank in later.ranks)
        is_full = row.is_full and work == mine
        steps.append(Step(row, work, bool(work.choices) or not row.keep.is_full, read, is_full))
    return tuple(steps)


class ForwardPass:
    """State between layers: the prompts, the record of the layer before, and what ranks need from further back."""

    def __init__(
        self,
        steps: Sequence[Step],
        prompts: Prompts,
        tower: list[Tensor] | None = None,
        embedded: Tensor | None = None,
    ) -> None:
        """``embedded`` is the first layer's input, for a pass that begins at a later one."""
        self.steps, self.prompts = steps, prompts
        self.tower = tower or []  # of each call of the tower in this pass, images before videos, [visual tokens]
        self.calls = [0] * len(steps)  # of each layer
        self._filtering = Filtering(len(prompts.text))
        self._record: LayerRecord | None = None
        self._embedded = embedded

    def run(
        self, layer: nn.Module, index: int, x: Tensor, *, stock: Callable[..., Tensor] | None = None, **arguments: Any
    ) -> Tensor:
        """``layer``, which is number ``index``, on ``x [batch, sequence, hidden]``; ``arguments`` are its own.

        ``stock`` is its own forward, for a layer of which nothing is spared, and in which ours would gain nothing.
        """
        self.calls[index] += 1
        if self.prompts.block.shares_keys and x.shape[1] != self.prompts.length:
            return run_last_rows(layer, self.prompts, x, arguments, stock)
        x = self.enter(layer, index, x, arguments)
        return self.compute(layer, index, x, stock=stock, **arguments)

    def compute(
        self, layer: nn.Module, index: int, x: Tensor, *, stock: Callable[..., Tensor] | None = None, **arguments: Any
    ) -> Tensor:
        """As :meth:`run`, after :meth:`enter`."""
        step = self.steps[index]
        # Where keys are shared, later layers would not find those that they read.
        may_be_stock = step.is_full and not step.wants_record and not self.prompts.block.shares_keys
        if stock is not None and may_be_stock and self.prompts.is_untouched and is_small(x):
            return stock(x, **arguments)
        x, self._record = run_layer(layer, step.work, self.prompts, x, wants_record=step.wants_record, **arguments)
        if self.prompts.chosen:
            self.prompts.clear_choices()
        if index == len(self.steps) - 1:
            self.prompts.stream.release()
            self.prompts.buffers.release()  # before the final norm makes intermediates of its own
        return x

    def enter(self, layer: nn.Module, index: int, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """``x``, after the visual tokens that the plan drops and chooses at the layer's input are marked."""
        if index == 0:
            self._embedded = x
        self.prompts.move(x.device)
        if self.steps[index].prunes:
            x = self._prune(layer, index, self.steps[index], x, arguments)
        self._record = None  # ranks have read it, and it is not held while the layer runs
        return x

    def _prune(self, layer: nn.Module, index: int, step: Step, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Drop the tokens that ``keep`` drops, and mark those that the work's choices choose."""
        keep = step.row.keep
        if isinstance(keep, Filter):
            kept = tuple(self._filtering.select(keep, v) for v in self._views(keep, index, x, layer, arguments))
            self.prompts.keep(kept)
        elif isinstance(keep, Keep):
            x = self._keep(keep, index, x, layer, arguments)
        for choice in step.work.choices:
            views = self._views(choice, index, x, layer, arguments)
            self.prompts.choose(choice, tuple(select(choice, view) for view in views))
        return x

    def _keep(self, cell: Keep, index: int, x: Tensor, layer: nn.Module, arguments: dict[str, Any]) -> Tensor:
        kept = []
        views = self._views(cell, index, x, layer, arguments)
        for view in views:
            rows = select(cell, view)
            merged = recycle(cell, view) if cell.recycle and len(rows) < len(self.prompts.alive[view.b]) else None
            if merged is not None:
                positions, states = merged
                x = x.clone()
                x[view.b, positions.to(x.device)] = states.to(x.device)
                rows = torch.cat((rows, positions)).sort().values
            kept.append(rows)
        self.prompts.keep(tuple(kept))
        return x

    def _views(
        self, cell: Choice | Filter, index: int, x: Tensor, layer: nn.Module, arguments: dict[str, Any]
    ) -> list[View]:
        """Each prompt as the rank of ``cell`` sees it at the layer's input ``x``."""
        prompts = self.prompts
        reads = "nothing" if cell.ranks_by is None else RANKS[cell.ranks_by].reads
        record = self._record if reads == "previous" else None
        if reads == "this" and RANKS[cell.ranks_by or ""].heads:
            mask, rotary = arguments.get("attention_mask"), arguments["position_embeddings"]
            cache = arguments.get("past_key_values")
            prompts.made = record = prompts.made or project_keys(layer, prompts, x, mask, rotary, cache)
        towers: list[Tensor | None] = [None] * len(prompts.text)
        if reads == "tower":
            scores = torch.cat(self.tower) if self.tower else x.new_zeros(0)
            if len(scores) != sum(prompts.counts):
                raise ModelError(
                    f"ranking by {cell.ranks_by} needs one attention score of the vision tower for each of "
                    f"the {sum(prompts.counts)} visual tokens, and the tower of this call gave {len(scores)}."
                )
            towers = list(prompts.split_scores(scores))
        device = x.device if record is None else record.key.device  # under a device map, of the layer before
        hidden, embedded = x.to(device), None if self._embedded is None else self._embedded.to(device)
        return [
            View(
                b=b,
                prompts=prompts,
                hidden=hidden[b],
                record=record,
                embedded=None if embedded is None else embedded[b],
                tower=towers[b],
                wanted=int(cell.of(prompts.counts[b])) if isinstance(cell, Choice) else 0,
                layer=index,
            )
            for b in range(len(prompts.text))
        ]
