"""apply: what stays the stock model, what is given back, and models that are refused."""

from __future__ import annotations

import pytest
import torch

from helpers.models import BATCHES, IMAGE, VARIANTS, batch, prompt, tiny_llava
from helpers.plans import FULL, SKIPPED
from lookless import Geometry, LayerPlan, Plan, Skip, apply
from lookless.errors import ModelError, PlanMismatchError
from lookless.runtime.families import geometry_of


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return tiny_llava(request.param)


@torch.no_grad()
def test_full_plan_touches_nothing(model):
    arguments = BATCHES["padded left"]()
    stock = model(**arguments).logits  # the first call of a model leaves marks of transformers' own
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with apply(model, Plan.full(geometry_of(model))):
        for name, module in model.named_modules():
            assert dict(module.__dict__) == before[name], name
            assert "forward" not in module.__dict__
        assert torch.equal(model(**arguments).logits, stock)


@torch.no_grad()
def test_layers_in_which_nothing_is_planned_are_stock(model):
    """To the bit, where nothing is padded."""
    arguments = BATCHES["one image"]()
    stock = model(**arguments, output_hidden_states=True).hidden_states
    with apply(model, FULL.at([2], attention=Skip())):
        planned = model(**arguments, output_hidden_states=True).hidden_states
    assert torch.equal(planned[1], stock[1])
    assert torch.equal(planned[2], stock[2])
    assert not torch.equal(planned[3], stock[3])


@torch.no_grad()
def test_no_image_is_the_stock_model(model):
    arguments = batch(prompt(9), prompt(5, seed=2))
    stock = model(**arguments).logits
    with apply(model, SKIPPED["everything"]):
        assert torch.equal(model(**arguments).logits, stock)


@torch.no_grad()
def test_under_the_break_even_point_is_the_stock_model(model):
    arguments = BATCHES["one image"]()
    stock, plan = model(**arguments).logits, SKIPPED["everything"]
    visual = int((arguments["input_ids"] == IMAGE).sum())
    with apply(model, plan):
        planned = model(**arguments).logits
    with apply(model, plan, break_even=visual + 1):
        assert torch.equal(model(**arguments).logits, stock)
    with apply(model, plan, break_even=visual):
        assert torch.equal(model(**arguments).logits, planned)
    assert not torch.equal(planned, stock)


@torch.no_grad()
def test_originals_are_restored_after_an_exception(model):
    arguments = BATCHES["one image"]()
    stock = model(**arguments).logits
    hooks = len(model.model._forward_pre_hooks)
    broken = model.model.language_model.layers[2].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), apply(model, SKIPPED["mixed"]):
        model(**arguments)
    broken.remove()
    for name, module in model.named_modules():
        assert "forward" not in module.__dict__, name
    assert len(model.model._forward_pre_hooks) == hooks
    assert torch.equal(model(**arguments).logits, stock)


@torch.no_grad()
def test_a_failed_pass_leaves_no_rows_behind(model):
    """An error inside the model must not make the next, text-only call run with the last call's rows."""
    handle = apply(model, SKIPPED["mixed"])
    arguments = BATCHES["one image"]()
    broken = model.model.language_model.layers[-1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**arguments)
    broken.remove()
    assert handle.running.now is None
    handle.remove()
    handle.remove()  # twice is once


def test_another_librarys_forward_is_given_back(model):
    layer = model.model.language_model.layers[0]
    wrapped = lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs)  # noqa: E731
    layer.forward = wrapped
    try:
        with apply(model, SKIPPED["attention"]):
            assert layer.forward is not wrapped
        assert layer.forward is wrapped
    finally:
        del layer.forward


def test_refusals():
    model = tiny_llava()
    with pytest.raises(PlanMismatchError, match=r"7 layers and the model has 5"):
        apply(model, Plan.full(7).at([0], attention=Skip()))
    other = geometry_of(model).model_copy(update={"intermediate": 128})
    with pytest.raises(PlanMismatchError, match="another architecture"):
        apply(model, Plan.full(other).at([0], attention=Skip()))
    handle = apply(model, SKIPPED["mixed"])
    with pytest.raises(ModelError, match="already applied"):
        apply(model, SKIPPED["mixed"])
    with pytest.raises(ModelError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 64))
    handle.remove()
    model.config.model_type = "paligemma"
    with pytest.raises(ModelError, match=r"'paligemma' are not supported: .* attend to those after them"):
        apply(model, SKIPPED["mixed"])
    model = tiny_llava()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ModelError, match="flex_attention"):
        apply(model, SKIPPED["mixed"])


def test_decoders_that_only_look_alike_are_refused():
    model = tiny_llava()
    model.config.text_config.model_type = "gemma"
    with pytest.raises(ModelError, match=r"llava over a 'gemma' decoder .* llama, mistral, qwen2"):
        apply(model, SKIPPED["mixed"])
    model = tiny_llava("clip-mistral")
    model.config.text_config.sliding_window = 4096
    with pytest.raises(ModelError, match="slides a window of 4096 tokens"):
        apply(model, SKIPPED["mixed"])


def test_geometry_is_the_models():
    geometry = geometry_of(tiny_llava())
    assert geometry == Geometry(
        model_type="llava", layers=5, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16
    )
    assert SKIPPED["mixed"].layers[1] == LayerPlan(attention=Skip(), ffn=Skip())
