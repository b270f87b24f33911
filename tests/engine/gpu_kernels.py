"""The kernels of vLLM's GPU backends in plain torch, slow and with the same parameters: so the backends run on a CPU.

Everything but the kernels is vLLM's own: the choice of a backend apart, builders of metadata and implementations run as
they would on a GPU. What a kernel would take for something else without a word is an error here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def install() -> None:
    """From now on vLLM's CPU platform takes the backend that ``attention_backend`` names, with these kernels."""
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.attention.backends import flash_attn, triton_attn

    stock = CpuPlatform.get_attn_backend_cls

    def selected(cls: type, backend: Any, *args: Any, **kwargs: Any) -> str:
        return stock(backend, *args, **kwargs) if backend is None else backend.get_path()

    CpuPlatform.get_attn_backend_cls = classmethod(selected)
    flash_attn.flash_attn_varlen_func = flash_attn_varlen_func
    flash_attn.get_scheduler_metadata = get_scheduler_metadata
    flash_attn.reshape_and_cache_flash = reshape_and_cache_flash
    flash_attn.get_flash_attn_version = lambda **_: 3  # which schedules ahead
    triton_attn.unified_attention = unified_attention
    triton_attn.triton_reshape_and_cache_flash = reshape_and_cache_flash


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    starts: Tensor,
    lengths: Tensor,
    table: Tensor,
    *,
    scale: float,
    scales: Sequence[Tensor | None],
    behind: int,
    longest_q: int,
    longest_k: int,
) -> None:
    """Causal attention of each sequence over its blocks, aligned to its last key, into ``out``.

    Args:
        q, out: ``[tokens, heads, head_dim]``.
        k, v: ``[blocks, block_size, kv_heads, head_dim]``.
        starts: where the queries of each sequence start, and then their number, ``[sequences + 1]``.
        lengths: keys of each sequence, ``[sequences]``.
        table: its blocks, ``[sequences, blocks]``.
        scale: of the scores.
        scales: of queries, keys and values, ``[sequences, kv_heads]`` each.
        behind: keys before it that a query sees in its window; -1 for all.
        longest_q, longest_k: what the kernel is told of ``starts`` and ``lengths``, by which it sizes its grid.
    """
    for numbers in (starts, lengths, table):
        assert numbers.dtype == torch.int32, "kernels read 32-bit numbers"
        assert numbers.stride(-1) == 1, "kernels read rows of a table one number after another"
    assert len(starts) == len(lengths) + 1 == len(table) + 1
    assert int(starts[0]) == 0
    assert int(starts[-1]) == len(q) == len(out), "there are queries of no sequence"
    for each in scales:
        assert each is None or tuple(each.shape) == (len(lengths), k.shape[2])
    counts = starts.diff()
    assert int(counts.min()) >= 0
    assert longest_q >= int(counts.max())
    assert longest_k >= int(lengths.max())
    size, groups = k.shape[1], q.shape[1] // k.shape[2]
    sequences = zip(starts[:-1].tolist(), counts.tolist(), lengths.tolist(), strict=True)
    for index, (start, count, length) in enumerate(sequences):
        assert count <= length, "more queries than keys"
        assert length <= table.shape[1] * size, "more keys than blocks"
        if not count:
            continue
        places = torch.arange(length)
        blocks, inner = table[index, places // size].long(), places % size
        keys, values = (x[blocks, inner].repeat_interleave(groups, dim=1) for x in (k, v))  # [keys, heads, head_dim]
        scores = torch.einsum("qhd,khd->hqk", q[start : start + count], keys) * scale
        ahead = places - (length - count + torch.arange(count))[:, None]  # of each query, [queries, keys]
        unseen = ahead > 0 if behind < 0 else (ahead > 0) | (ahead < -behind)
        weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
        out[start : start + count] = torch.einsum("hqk,khd->qhd", weights, values)


def _unused(named: dict[str, Any]) -> None:
    for name, value in named.items():
        assert not value, f"{name} is not known here"


def flash_attn_varlen_func(
    q,
    k,
    v,
    max_seqlen_q,
    cu_seqlens_q,
    max_seqlen_k,
    cu_seqlens_k=None,
    seqused_k=None,
    q_v=None,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=None,
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
    return_softmax_lse=False,
    out=None,
    scheduler_metadata=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    num_splits=0,
    output_scale=None,
    fa_version=2,
    s_aux=None,
    cp_world_size=1,
    cp_rank=0,
    cp_tot_seqused_k=None,
    mask_mod=None,
    block_sparse_tensors=None,
    aux_tensors=None,
    aux_tensor_leading_dims=None,
    dynamic_causal=None,
):
    """As vLLM's own, of a paged cache."""
    known = ("q", "k", "v", "max_seqlen_q", "cu_seqlens_q", "max_seqlen_k", "seqused_k", "softmax_scale", "causal")
    known += ("window_size", "block_table", "out", "scheduler_metadata", "fa_version", "cp_world_size")
    known += ("q_descale", "k_descale", "v_descale", "deterministic")
    _unused({name: value for name, value in locals().items() if name not in (*known, "known")})
    assert causal is True
    assert cp_world_size == 1
    if scheduler_metadata is not None:
        scheduled = get_scheduler_metadata(
            len(seqused_k), max_seqlen_q, max_seqlen_k, 0, 0, 0, seqused_k, cu_seqlens_q=cu_seqlens_q
        )
        assert torch.equal(scheduler_metadata, scheduled), "scheduled ahead for other requests"
    left, right = window_size or (-1, -1)
    assert left < 0 or right == 0, "a window that reaches forward"
    attend(
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        seqused_k,
        block_table,
        scale=softmax_scale,
        scales=(q_descale, k_descale, v_descale),
        behind=left,
        longest_q=max_seqlen_q,
        longest_k=max_seqlen_k,
    )
    return out


def get_scheduler_metadata(
    batch_size,
    max_seqlen_q,
    max_seqlen_k,
    num_heads_q,
    num_heads_kv,
    headdim,
    cache_seqlens,
    qkv_dtype=torch.bfloat16,
    headdim_v=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    cache_leftpad=None,
    page_size=None,
    max_seqlen_k_new=0,
    causal=False,
    window_size=(-1, -1),
    has_softcap=False,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
):
    """Says for which requests it was made."""
    sizes = torch.tensor([batch_size, max_seqlen_q, max_seqlen_k], dtype=torch.int32)
    return torch.cat((sizes, cu_seqlens_q, cache_seqlens))


def unified_attention(
    q,
    k,
    v,
    out,
    cu_seqlens_q,
    max_seqlen_q,
    seqused_k,
    max_seqlen_k,
    softmax_scale,
    causal,
    window_size,
    block_table,
    softcap,
    q_descale,
    k_descale,
    v_descale,
    seq_threshold_3D=None,  # noqa: N803 (vLLM's name)
    num_par_softmax_segments=None,
    softmax_segm_output=None,
    softmax_segm_max=None,
    softmax_segm_expsum=None,
    alibi_slopes=None,
    output_scale=None,
    qq_bias=None,
    sinks=None,
    mm_prefix_range=None,
    rswa_prefix_lens=None,
    rswa_window=None,
    use_alibi_sqrt=False,
    kv_quant_mode=None,
    k_scale_cache=None,
    v_scale_cache=None,
    chunk_lookback=-1,
    use_td=False,
    mm_prefix_clamp_sliding_window=False,
):
    """As vLLM's own, of a cache that is not quantised."""
    unused = (softcap, alibi_slopes, output_scale, qq_bias, sinks, mm_prefix_range, rswa_prefix_lens, rswa_window)
    unused += (use_alibi_sqrt, kv_quant_mode, k_scale_cache, v_scale_cache, use_td)
    _unused(dict(enumerate(unused)))
    assert causal is True
    if max_seqlen_q <= 1 and len(seqused_k) <= seq_threshold_3D:  # each query writes a row of every segment
        for scratch in (softmax_segm_output, softmax_segm_max, softmax_segm_expsum):
            assert len(scratch) >= len(q), "more queries than there is scratch memory for"
    attend(
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        seqused_k,
        block_table,
        scale=softmax_scale,
        scales=(q_descale, k_descale, v_descale),
        behind=window_size[0],
        longest_q=max_seqlen_q,
        longest_k=max_seqlen_k,
    )


def reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale, v_scale):
    """Keys and values of as many rows as there are slots, each to its own; none of a row whose slot is negative."""
    assert len(slot_mapping) <= len(key)
    written = (slot_mapping >= 0).nonzero()[:, 0]
    size = key_cache.shape[1]
    block, inner = slot_mapping[written] // size, slot_mapping[written] % size
    key_cache[block, inner] = key[written]
    value_cache[block, inner] = value[written]
