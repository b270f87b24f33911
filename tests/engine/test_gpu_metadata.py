"""What vLLM's GPU backends hand to their kernels under a plan, row by row; the kernels are slow ones of our own."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vllm
from torch.nn import functional as F
from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode
from vllm.forward_context import ForwardContext
from vllm.v1.attention.backends import flash_attn, triton_attn
from vllm.v1.attention.ops import triton_unified_attention

import gpu_kernels
from helpers.steps import STEPS, flat
from lookless import Keep, Plan, Skip
from lookless.serving.hooks import use_piecewise_graphs
from lookless.serving.layers import Operators
from lookless.serving.metadata import ReorderedStep

gpu_kernels.install()
HEADS, KV_HEADS, SIZE = 4, 2, 32
BLOCK, BLOCKS, NAME, PADDING = 4, 64, "layer", 3


def flash_metadata(**shared):
    return flash_attn.FlashAttentionMetadata(
        **shared,
        scheduler_metadata=gpu_kernels.get_scheduler_metadata(
            len(shared["seq_lens"]),
            shared["max_query_len"],
            shared["max_seq_len"],
            HEADS,
            KV_HEADS,
            SIZE,
            shared["seq_lens"],
            cu_seqlens_q=shared["query_start_loc"],
        ),
    )


def triton_metadata(**shared):
    """Scratch memory for as few sequences as there are requests: a backend sizes it before it knows a step."""
    rows = len(shared["seq_lens"])
    return triton_attn.TritonAttentionMetadata(
        **shared,
        causal=True,
        seq_threshold_3D=64,
        num_par_softmax_segments=16,
        softmax_segm_output=torch.empty(rows, HEADS, 16, SIZE),
        softmax_segm_max=torch.empty(rows, HEADS, 16),
        softmax_segm_expsum=torch.empty(rows, HEADS, 16),
    )


BACKENDS = {
    "FLASH_ATTN": (flash_attn.FlashAttentionImpl, flash_metadata),
    "TRITON_ATTN": (triton_attn.TritonAttentionImpl, triton_metadata),
}


class Batch:
    """A step with its cache: every key before it is written, and what was never written is not a number."""

    def __init__(self, step, backend, window):
        self.visual, self.starts, self.lengths = flat(step)
        implementation, metadata = BACKENDS[backend]
        self.impl = implementation(HEADS, SIZE, SIZE**-0.5, KV_HEADS, None, window, "auto")
        numbers = np.random.default_rng(0)
        count = -(-int(self.lengths.max()) // BLOCK)
        table = numbers.permutation(BLOCKS)[: len(step) * count].reshape(len(step), count)
        self.table = torch.from_numpy(table.astype(np.int32))
        self.cache = torch.full((BLOCKS, KV_HEADS, BLOCK, 2 * SIZE), torch.nan)
        self.pairs = [torch.randn(n, KV_HEADS, 2 * SIZE) for n in self.lengths]
        slots = []
        for request, pairs in enumerate(self.pairs):
            scheduled = self.starts[request + 1] - self.starts[request]
            for place, pair in enumerate(pairs):
                block, inner = self.table[request, place // BLOCK], place % BLOCK
                if place < len(pairs) - scheduled:
                    self.cache[block, :, inner] = pair
                else:
                    slots.append(int(block) * BLOCK + inner)
        rows = len(slots) + PADDING  # as for a captured graph: its rows are of no token, and no slot is theirs
        self.slots = torch.tensor(slots + [-1] * PADDING)
        self.query, self.key, self.value = (torch.randn(rows, n, SIZE) for n in (HEADS, KV_HEADS, KV_HEADS))
        for request, pairs in enumerate(self.pairs):
            own = slice(self.starts[request], self.starts[request + 1])
            scheduled = own.stop - own.start
            self.key[own], self.value[own] = pairs[len(pairs) - scheduled :].split(SIZE, dim=-1)
        self.metadata = metadata(
            num_actual_tokens=len(slots),
            max_query_len=int(np.diff(self.starts).max()),
            query_start_loc=torch.from_numpy(self.starts.astype(np.int32)),
            max_seq_len=int(self.lengths.max()),
            seq_lens=torch.from_numpy(self.lengths.astype(np.int32)),
            block_table=self.table,
            slot_mapping=self.slots,
        )

    def attended(self, row, window):
        """Of one row of the batch, from the sequence itself."""
        request = max(r for r in range(len(self.lengths)) if self.starts[r] <= row < self.starts[r + 1])
        place = int(self.lengths[request] - (self.starts[request + 1] - row))
        first = 0 if window is None else max(0, place - window + 1)
        key, value = self.pairs[request][first : place + 1].split(SIZE, dim=-1)
        key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(0, 1) for x in (key, value))
        return F.scaled_dot_product_attention(self.query[row][:, None], key, value)[:, 0]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("queries", ["text", "read", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_each_row_reads_its_own_keys(step, backend, queries, window):
    torch.manual_seed(0)
    batch = Batch(step, backend, window)
    given = ForwardContext({}, {NAME: batch.metadata}, {NAME: batch.slots})
    planned = ReorderedStep.of(torch.from_numpy(batch.visual), len(batch.query), given, NAME)
    context = planned.context([(SimpleNamespace(layer_name=NAME), Operators(queries, "all"))])
    metadata, rows = context.attn_metadata[NAME], planned.split.rows
    assert sorted(rows.tolist()) == list(range(len(batch.query)))
    layer = SimpleNamespace(**{f"_{name}_scale": torch.ones(1) for name in "qkv"})

    moved = [x[rows] for x in (batch.key, batch.value)]
    batch.impl.do_kv_cache_update(layer, *moved, batch.cache, context.slot_mapping[NAME])
    asking = rows[: {"text": planned.order.text, "read": planned.order.read, "all": planned.order.tokens}[queries]]
    out = torch.full((len(asking), HEADS, SIZE), torch.nan)
    if len(asking):
        batch.impl.forward(layer, batch.query[asking], *moved, batch.cache, metadata, out)
    for row, got in zip(asking.tolist(), out, strict=True):
        torch.testing.assert_close(got, batch.attended(row, window))


@pytest.mark.parametrize(
    ("mode", "apart", "split", "given", "expected"),
    [
        (CompilationMode.VLLM_COMPILE, False, "both", "FULL_AND_PIECEWISE", "PIECEWISE"),
        (CompilationMode.VLLM_COMPILE, False, "both", "FULL_DECODE_ONLY", "PIECEWISE"),
        (CompilationMode.VLLM_COMPILE, False, "both", "NONE", "NONE"),
        (CompilationMode.VLLM_COMPILE, False, "attention", "FULL", "PIECEWISE"),
        (CompilationMode.VLLM_COMPILE, True, "both", "FULL", "PIECEWISE"),
        (CompilationMode.VLLM_COMPILE, True, "attention", "PIECEWISE", "NONE"),
        (CompilationMode.VLLM_COMPILE, False, "nothing", "FULL", "NONE"),
        (CompilationMode.NONE, False, "both", "FULL", "NONE"),
    ],
)
def test_graphs_that_would_hold_what_a_plan_changes(mode, apart, split, given, expected):
    attention = list(CompilationConfig._attention_ops)
    cache = ["vllm::unified_kv_cache_update", "vllm::unified_mla_kv_cache_update"]
    operators = {"both": attention + cache, "attention": attention, "nothing": []}[split]
    config = CompilationConfig(mode=mode, cudagraph_mode=CUDAGraphMode[given], splitting_ops=operators)
    use_piecewise_graphs(config, Plan.full(4).at([2], **({"keep": Keep(0)} if apart else {"ffn": Skip()})))
    assert config.cudagraph_mode.name == expected


def _signature(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def test_kernels_have_the_parameters_of_vllms():
    """Of which the file of FlashAttention's does without a GPU what its package does not: it can be read."""
    path = Path(vllm.__file__).parent / "vllm_flash_attn" / "flash_attn_interface.py"
    spec = importlib.util.spec_from_file_location("flash_attn_interface", path)
    interface = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(interface)
    from vllm._custom_ops import reshape_and_cache_flash

    assert _signature(gpu_kernels.flash_attn_varlen_func) == _signature(interface.flash_attn_varlen_func)
    assert _signature(gpu_kernels.get_scheduler_metadata) == _signature(interface.get_scheduler_metadata)
    assert list(_signature(gpu_kernels.unified_attention)) == list(
        _signature(triton_unified_attention.unified_attention)
    )
    assert _signature(gpu_kernels.reshape_and_cache_flash) == _signature(reshape_and_cache_flash)
