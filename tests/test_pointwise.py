"""What is done in place and by blocks is what the modules do, and nothing of anybody else's is written over."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from helpers.families import FAMILIES
from helpers.models import BATCHES, tiny_llava
from lookless import Plan, Skip, apply
from lookless.runtime import inplace
from lookless.runtime.inplace import BLOCK, Buffers, Turn, gated_ffn, linear, rms_norm, rotate

IDS = torch.tensor(FAMILIES["llava"].visual_ids)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 64), (1, 0, 64), (2, 7, 3, 64), (1, 3 * BLOCK // 64 + 1, 64)], ids=str)
@torch.no_grad()
def test_norm_is_the_modules_to_the_bit(shape, dtype):
    module = LlamaRMSNorm(64).to(dtype)
    module.weight.uniform_(0.5, 2)
    x = random(*shape, dtype=dtype)
    expected = module(x)
    assert torch.equal(rms_norm(module, x), expected)
    assert torch.equal(rms_norm(module, x, x), expected)
    assert torch.equal(x, expected)  # in place


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("rows", [1, 6, BLOCK // 64])
@torch.no_grad()
def test_rotation_is_transformers(rows, in_place):
    x, cos, sin = random(2, rows, 4, 16), random(1, rows, 16), random(2, rows, 16).flip(0)
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    given = x.clone()
    got = rotate(given, Turn(cos, sin), in_place=in_place)
    torch.testing.assert_close(got, expected)
    assert torch.equal(given, got if in_place else x)


def mlp(dtype: torch.dtype = torch.float32, **options) -> LlamaMLP:
    config = LlamaConfig(hidden_size=32, intermediate_size=48, **options)
    torch.manual_seed(0)
    return LlamaMLP(config).to(dtype).eval()


@pytest.mark.parametrize("options", [{}, {"mlp_bias": True}, {"hidden_act": "gelu"}], ids=str)
@torch.no_grad()
def test_ffn_is_the_modules(options):
    module, buffers = mlp(**options), Buffers()
    for rows in (3, 9, 2):  # buffers grow, and are larger than what is asked for
        x = random(2, rows, 32)
        torch.testing.assert_close(gated_ffn(module, x, buffers), module(x))


def test_ffn_has_gradients():
    module, x = mlp(), random(2, 3, 32).requires_grad_()
    gated_ffn(module, x, Buffers()).sum().backward()
    got, x.grad = x.grad, None
    module(x).sum().backward()
    torch.testing.assert_close(got, x.grad)


@torch.no_grad()
def test_what_a_hook_sees_stays():
    """Somebody who keeps a projection's output finds in it what the projection made."""
    for name in ("gate_proj", "up_proj"):
        module, x, seen = mlp(), random(1, 5, 32), []
        getattr(module, name).register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        gated_ffn(module, x, Buffers())
        torch.testing.assert_close(seen[0], nn.functional.linear(x, getattr(module, name).weight))


@torch.no_grad()
def test_only_plain_projections_write_into_buffers():
    x, buffers = random(1, 2400, 32), Buffers()  # as many numbers as are worth a buffer
    plain = nn.Linear(32, 16)
    first = linear(plain, x, buffers, "a")
    assert linear(plain, x + 1, buffers, "a").data_ptr() == first.data_ptr()
    assert linear(plain, x, buffers, "b").data_ptr() != first.data_ptr()
    hooked = nn.Linear(32, 16)
    hooked.register_forward_hook(lambda *_: None)
    kept = linear(hooked, x, buffers, "a")
    torch.testing.assert_close(kept, hooked(x))
    assert kept.data_ptr() != first.data_ptr()
    few = x[:, :5]
    assert linear(plain, few, buffers, "a").data_ptr() != first.data_ptr()
    torch.testing.assert_close(linear(plain, few, buffers, "a"), plain(few))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(plain, x, buffers, "a").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "cells", [{"attention": Skip()}, {"ffn": Skip()}, {"attention": Skip(), "ffn": Skip()}], ids=str
)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_no_layer_changes_what_another_made(name, cells):
    """Hidden states, which a caller may keep, are those of the moment they were made."""
    family = FAMILIES[name]
    model, arguments = family.build(), family.batch("one image")
    if name == "llava":  # also where no text asks, and a layer without visual attention adds nothing before its FFN
        arguments["input_ids"] = arguments["input_ids"][torch.isin(arguments["input_ids"], IDS)][None]
        arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
    entered = []
    layers = model.model.language_model.layers

    def keep(_, args, kwargs):
        entered.append((args[0], args[0].clone()))

    for layer in layers:
        layer.register_forward_pre_hook(keep, with_kwargs=True)
    with apply(model, Plan.full(len(layers)).at([0, 2], **cells)):
        model(**arguments)
    assert len(entered) == len(layers)
    for kept, then in entered:
        assert torch.equal(kept, then)


@pytest.mark.parametrize("batch", ["two images", "padded left"])
def test_few_numbers_take_another_way_to_the_same_logits(batch, monkeypatch):
    """Tiny models are small everywhere; here they run as large ones do, too."""
    model, arguments = tiny_llava(), BATCHES[batch]()
    plan = Plan.full(len(model.model.language_model.layers)).at([1], attention=Skip(), ffn=Skip())
    with torch.no_grad(), apply(model, plan):
        few = model(**arguments, logits_to_keep=1).logits
        monkeypatch.setattr(inplace, "FEW", 0)
        many = model(**arguments, logits_to_keep=1).logits
    torch.testing.assert_close(few, many, atol=1e-5, rtol=0)
