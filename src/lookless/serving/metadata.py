"""What vLLM's attention is told of a step whose rows are in another order, and of which only some query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.forward_context import ForwardContext

from .layers import Operators, Split
from .steps import Numbers, Order, Runs, VisualPast, runs_of, text_alone, text_first


@dataclass(frozen=True, eq=False)
class ReorderedStep:
    """A step with visual tokens.

    Attributes:
        order: of its rows.
        split: the same on the device.
        given: the engine's context of the step, for rows in the order of the batch.
        starts, lengths: of its requests: see :func:`~lookless.serving.steps.runs_of`.
        past: how many visual tokens each of them has before the step; None where no layer asks.
    """

    order: Order
    split: Split
    given: ForwardContext
    starts: Numbers
    lengths: Numbers
    past: Numbers | None

    @classmethod
    def of(
        cls, visual: Tensor, rows: int, given: ForwardContext, layer: str, past: VisualPast | None = None
    ) -> ReorderedStep:
        """The step of so many ``rows``, of which the ``visual [tokens]`` are and those behind them are padding; the
        requests are known from the metadata of ``layer``, and ``past`` has what came before."""
        metadata = given.attn_metadata[layer]  # type: ignore[call-overload, index]
        starts, lengths = (
            getattr(metadata, name).cpu().numpy().astype(np.int64) for name in ("query_start_loc", "seq_lens")
        )
        starts = starts[: len(lengths) + 1]
        mask = np.pad(visual.cpu().numpy(), (0, rows - len(visual)))
        order = text_first(mask, starts)
        blocks = None if past is None else metadata.block_table[: len(lengths), 0].cpu().numpy()
        before = None if past is None or blocks is None else past.before(blocks, mask, starts, lengths)
        device = metadata.query_start_loc.device
        moved, places = (torch.from_numpy(numbers).to(device) for numbers in (order.rows, order.places))
        split = Split(moved[: order.text], moved[: order.read], moved, places)
        return cls(order, split, given, starts, lengths, before)

    def context(self, attention: Iterable[tuple[Any, Operators]]) -> ForwardContext:
        """The context in which the rows are in this order; ``attention`` has vLLM's ``Attention`` of each layer with
        keys, and which rows run in it. What layers share is made once."""
        metadata, slots = dict(self.given.attn_metadata), dict(self.given.slot_mapping)  # type: ignore[arg-type]
        made: dict[tuple[int, str, str], Any] = {}
        for each, operators in attention:
            name = each.layer_name
            old, old_slots = metadata[name], slots[name]
            if (key := (id(old), operators.attention, operators.keys)) not in made:
                made[key] = self._made(old, old_slots, each, operators)
            metadata[name], slots[name] = made[key]
        return self._replaced(metadata, slots)

    def _made(self, old: Any, slots: Tensor, attention: Any, operators: Operators) -> tuple[Any, Tensor]:
        """Metadata and slots of a layer."""
        if operators.keys == "text":
            runs, slots = self._text_alone(old, attention.kv_cache.shape[2])
        else:
            runs, slots = self._runs(operators.attention), slots[self.split.rows[: len(slots)]]
        return metadata_of(old, runs, slots, attention), slots

    def _text_alone(self, metadata: Any, size: int) -> tuple[Runs, Tensor]:
        """Runs, and slots of text rows, where the cache, of blocks of this ``size``, holds text alone."""
        assert self.past is not None
        rows, table = self.order.rows[: self.order.text], metadata.block_table
        runs, places = text_alone(rows, self.starts, self.lengths, self.past)
        request = np.repeat(runs.request, np.diff(runs.starts))
        numbers = (torch.from_numpy(x).to(table.device) for x in (request, places // size, places % size))
        request_, block, inner = numbers
        return runs, table[request_, block].long() * size + inner

    def _replaced(self, metadata: dict[str, Any], slots: dict[str, Tensor]) -> ForwardContext:
        return replace(
            self.given,
            attn_metadata=metadata,
            slot_mapping=slots,
            is_padding=None,  # of rows in the order of the batch; without it a mixture routes padding like a token
            all_moe_layers=None,  # a list from which each mixture takes its name, in a step in which all of them run
        )

    def text_context(self, attention: Iterable[tuple[Any, Operators]]) -> ForwardContext | None:
        """The context of a step without visual tokens, in the order of the batch, for layers whose cache holds text
        alone; None where all have what the engine takes them to have."""
        assert self.past is not None
        if not self.past.any():
            return None
        metadata, slots = dict(self.given.attn_metadata), dict(self.given.slot_mapping)  # type: ignore[arg-type]
        made: dict[int, Any] = {}
        for each, operators in attention:
            if operators.keys != "text":
                continue
            name = each.layer_name
            old, old_slots = metadata[name], slots[name]
            if id(old) not in made:
                new, own = self._made(old, old_slots, each, operators)
                made[id(old)] = new, torch.cat((own, old_slots[self.order.tokens :]))
            metadata[name], slots[name] = made[id(old)]
        return replace(self.given, attn_metadata=metadata, slot_mapping=slots)

    def _runs(self, queries: str) -> Runs:
        count = {"text": self.order.text, "read": self.order.read, "all": self.order.tokens}[queries]
        return runs_of(self.order.rows[:count], self.starts, self.lengths)


def metadata_of(whole: Any, runs: Runs, slots: Tensor | None, attention: Any) -> Any:
    """A copy of ``whole``, the backend's metadata of a step, in which only the rows of ``runs`` query.

    Each run becomes a virtual request: it has its request's blocks and ends where the run ends, so a causal mask
    aligned to the last key is exact. The slots, where keys are written, are those of all tokens.

    Args:
        whole: metadata of ``CPU_ATTN``, ``FLASH_ATTN`` or ``TRITON_ATTN``.
        runs: the query rows.
        slots: of all tokens, in the order in which they are computed.
        attention: the layer's ``vllm.Attention``.
    """
    device = whole.query_start_loc.device
    starts, lengths = (
        torch.from_numpy(numbers).to(device, old.dtype)
        for numbers, old in ((runs.starts, whole.query_start_loc), (runs.lengths, whole.seq_lens))
    )
    changed = {
        "num_actual_tokens": int(runs.starts[-1]),
        "max_query_len": runs.longest,
        "query_start_loc": starts,
        "max_seq_len": int(runs.lengths.max(initial=0)),
        "seq_lens": lengths,
        "block_table": whole.block_table[torch.from_numpy(runs.request).to(device)].contiguous(),
        "slot_mapping": slots,
        "scheduler_metadata": None,  # what a backend schedules ahead, for the requests as they were
    }
    known = {field.name for field in fields(whole)}
    if "seq_threshold_3D" in known:  # of TRITON_ATTN: sequences of one query for which there is scratch memory
        changed["seq_threshold_3D"] = min(whole.seq_threshold_3D, len(whole.softmax_segm_max))
    made = replace(whole, **{name: value for name, value in changed.items() if name in known})
    if type(whole).__name__ == "CPUAttentionMetadata":
        made.scheduler_metadata = _cpu_schedule(made, attention)
    return made


def _cpu_schedule(metadata: Any, attention: Any) -> Any:
    """How the CPU backend distributes the work of ``metadata`` over threads."""
    from vllm import _custom_ops as ops
    from vllm import envs

    window = attention.impl.sliding_window
    return ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(metadata.seq_lens),
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_size,
        seq_lens=metadata.seq_lens,
        dtype=attention.dtype,
        query_start_loc=metadata.query_start_loc,
        causal=True,
        sliding_window_size=window,
        isa=attention.isa,
        enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
        dynamic_causal=None,
        kv_cache_dtype=attention.kv_cache_dtype,
    )
