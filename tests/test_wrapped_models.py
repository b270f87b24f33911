"""Models that others have changed: quantised linears, adapters, layers on several devices, PyTorch's compiler.

Projections are called as modules, so what stands in their place runs; the reference is the slow one on the same model.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.compare import text_logits
from helpers.families import FAMILIES, SPECIAL
from helpers.models import LAYERS
from helpers.slow_reference import slow_logits
from lookless import Keep, Neurons, Plan, Skip, Window, apply
from lookless.errors import ModelError

FULL = Plan.full(LAYERS)
PLANS = {
    "skip": FULL.at([0, 2], attention=Skip()).at([1, 2], ffn=Skip()),
    "keep": FULL.at([2], keep=Keep(0.5, rank="last_query_attention")).at([3], attention=Window(4)),
}


def same(model, family, plan, tolerance=1e-4):
    """Fast path = slow reference on ``model`` as it is, and another model than the one not changed."""
    for kind in ("two images", "padded left"):
        arguments = family.batch(kind)
        visual = torch.isin(arguments["input_ids"], torch.tensor(family.visual_ids))
        text = arguments["attention_mask"].bool() & ~visual
        slow = slow_logits(model, plan, arguments, family.visual_ids)[text]
        with apply(model, plan):
            fast = text_logits(model, arguments, text)
        assert (fast - slow).abs().max() < tolerance * slow.abs().max(), kind


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_int8_weights(name, plan):
    quantization = pytest.importorskip("torchao.quantization")
    family = FAMILIES[name]
    model = family.build()
    stock = model(**family.batch("one image")).logits
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    assert not torch.equal(model(**family.batch("one image")).logits, stock)
    same(model, family, PLANS[plan], tolerance=1e-3)  # the quantised product rounds by its shape


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_adapters(name, plan):
    peft = pytest.importorskip("peft")
    family = FAMILIES[name]
    model = family.build()
    stock = model(**family.batch("one image")).logits
    config = peft.LoraConfig(
        r=4, target_modules=r".*language_model.*(q_proj|v_proj|o_proj|up_proj)", init_lora_weights=False
    )
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, config)
    inner = adapted.base_model.model  # the model itself, its linears replaced
    assert not torch.equal(inner(**family.batch("one image")).logits, stock)
    same(inner, family, PLANS[plan])
    arguments = family.batch("one image")
    with apply(adapted, PLANS[plan]):  # by the wrapper, or by what it wraps
        assert torch.equal(adapted(**arguments).logits, inner(**arguments).logits)
    with (
        pytest.raises(ModelError, match=r"plain weights of an FFN.*merge adapters"),
        apply(inner, FULL.at([1], ffn=Neurons(0.2))),
    ):
        inner(**arguments)


@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_weights_fetched_when_needed(plan):
    """accelerate's hooks on the modules that hold weights, as ``device_map`` with offloading places them."""
    accelerate = pytest.importorskip("accelerate")
    family = FAMILIES["llava"]
    model = family.build()
    arguments = family.batch("padded left")
    with apply(model, PLANS[plan]):
        expected = model(**arguments).logits
    model = accelerate.cpu_offload(family.build(), execution_device="cpu")
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.device.type == "meta"
    with apply(model, PLANS[plan]):
        # Not to the bit: a hooked module is called as it is, and a plain one's work is done in place.
        torch.testing.assert_close(model(**arguments).logits, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_hooks_of_a_device_map_on_layers():
    """``device_map`` over several devices wraps each layer's forward in a hook that moves what comes in."""
    hooks = pytest.importorskip("accelerate.hooks")
    family = FAMILIES["llava"]
    model = family.build()
    arguments = family.batch("one image")
    with apply(model, PLANS["skip"]):
        expected = model(**arguments).logits
    calls = []

    class Watch(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append("in")
            return args, kwargs

        def post_forward(self, module, output):
            calls.append("out")
            return output

    layer = model.model.language_model.layers[1]
    hooks.add_hook_to_module(layer, Watch())
    hooked = layer.forward
    with apply(model, PLANS["skip"]):
        assert torch.equal(model(**arguments).logits, expected)
    assert calls == ["in", "out"]
    assert layer.forward is hooked


@torch.no_grad()
def test_hooks_on_projections_stay_in_force():
    family = FAMILIES["llava"]
    model = family.build()
    seen = []
    hook = model.model.language_model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda module, args, out: seen.append(args[0].shape[-2])
    )
    with apply(model, PLANS["skip"]):
        model(**family.batch("one image"))
    hook.remove()
    assert seen == [12]  # the text rows


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_generation_with_another_attention(attention):
    family = FAMILIES["qwen2_vl"]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "suppress_tokens": SPECIAL}
    answers = []
    for plan in PLANS.values():
        model = family.build(attention)
        with apply(model, plan):
            answers.append(model.generate(**family.batch("padded left"), **options))
    reference = FAMILIES["qwen2_vl"].build("sdpa")
    for plan, answer in zip(PLANS.values(), answers, strict=True):
        with apply(reference, plan):
            assert torch.equal(reference.generate(**family.batch("padded left"), **options), answer)


def test_linears_are_linears():
    """What `Neurons` refuses to slice is told by type; a plain model's are plain."""
    model = FAMILIES["qwen3_vl"].build()
    assert type(model.model.language_model.layers[0].mlp.gate_proj) is nn.Linear
