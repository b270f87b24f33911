"""Attention metadata in which only text rows query: a backend's own, for virtual requests."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from .steps import TextRuns


def text_metadata(whole: Any, runs: TextRuns, attention: Any) -> Any:
    """A copy of ``whole``, the backend's metadata of a step, in which only the step's text rows query.

    Each run of text becomes a virtual request: it has its request's blocks and ends where the run ends, so a causal
    mask aligned to the last key is exact. The slots, where keys are written, stay those of all tokens.

    Args:
        whole: metadata of ``CPU_ATTN``, ``FLASH_ATTN`` or ``TRITON_ATTN``.
        runs: the runs of text, of which each becomes a request.
        attention: the layer's ``vllm.Attention``.
    """
    device = whole.query_start_loc.device
    starts, lengths = (
        torch.from_numpy(numbers).to(device, old.dtype)
        for numbers, old in ((runs.starts, whole.query_start_loc), (runs.lengths, whole.seq_lens))
    )
    changed = {
        "num_actual_tokens": len(runs.rows),
        "max_query_len": runs.longest,
        "query_start_loc": starts,
        "max_seq_len": int(runs.lengths.max(initial=0)),
        "seq_lens": lengths,
        "block_table": whole.block_table[torch.from_numpy(runs.request).to(device)].contiguous(),
        "scheduler_metadata": None,
    }
    known = {field.name for field in fields(whole)}
    # What some backends schedule ahead, for the requests as they were.
    changed |= {name: None for name in ("prefix_scheduler_metadata",) if name in known}
    changed |= {name: False for name in ("use_cascade",) if name in known}
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
