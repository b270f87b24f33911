"""What vLLM's attention is told of a step whose rows are in another order, and of which only some query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.forward_context import ForwardContext

from .layers import Split
from .steps import Numbers, Order, Runs, runs_of, text_first


@dataclass(frozen=True, eq=False)
class ReorderedStep:
    """A step with visual tokens.

    Attributes:
        order: of its rows.
        split: the same on the device.
        given: the engine's context of the step, for rows in the order of the batch.
        starts, lengths: of its requests: see :func:`~lookless.serving.steps.runs_of`.
    """

    order: Order
    split: Split
    given: ForwardContext
    starts: Numbers
    lengths: Numbers

    @classmethod
    def of(cls, visual: Tensor, given: ForwardContext, layer: str) -> ReorderedStep:
        """The step in which ``visual [rows]`` are; the requests are known from the metadata of ``layer``."""
        metadata = given.attn_metadata[layer]  # type: ignore[call-overload, index]
        starts, lengths = (
            getattr(metadata, name).cpu().numpy().astype(np.int64) for name in ("query_start_loc", "seq_lens")
        )
        starts = starts[: len(lengths) + 1]
        order = text_first(visual.cpu().numpy(), starts)
        device = metadata.query_start_loc.device
        rows, places = (torch.from_numpy(numbers).to(device) for numbers in (order.rows, order.places))
        return cls(order, Split(rows[: order.text], rows[: order.read], rows, places), given, starts, lengths)

    def context(self, attention: Iterable[tuple[Any, str]]) -> ForwardContext:
        """The context in which the rows are in this order; ``attention`` has vLLM's ``Attention`` of each layer with
        keys, and which rows query in it. What layers share is made once."""
        metadata, slots = dict(self.given.attn_metadata), dict(self.given.slot_mapping)  # type: ignore[arg-type]
        made: dict[tuple[int, str], Any] = {}
        for each, queries in attention:
            name = each.layer_name
            old, old_slots = metadata[name], slots[name]
            if (key := (id(old_slots), "")) not in made:
                made[key] = old_slots[self.split.rows[: len(old_slots)]]
            slots[name] = made[key]
            if (key := (id(old), queries)) not in made:
                made[key] = metadata_of(old, self._runs(queries), slots[name], each)
            metadata[name] = made[key]
        return replace(
            self.given,
            attn_metadata=metadata,
            slot_mapping=slots,
            is_padding=None,  # of rows in the order of the batch; without it a mixture routes padding like a token
            all_moe_layers=None,  # a list from which each mixture takes its name, in a step in which all of them run
        )

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
        # What some backends schedule ahead, for the requests as they were.
        "scheduler_metadata": None,
        "prefix_scheduler_metadata": None,
        "use_cascade": False,
    }
    known = {field.name for field in fields(whole)}
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
