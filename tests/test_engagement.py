"""A plan that is not in force, wholly or in a layer, is an error and not a result."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import lookless.plan as plan_module
from helpers.cli import run
from helpers.families import FAMILIES
from helpers.models import LAYERS
from helpers.plans import SKIP, STATIC
from lookless import Filter, ModelError, Plan, Skip, Top, apply, trace
from lookless.liveness import liveness
from lookless.runtime import layer as one_layer
from lookless.runtime import patching
from lookless.runtime.families import locate
from lookless.runtime.ffn import run_ffn


@pytest.fixture
def llava():
    family = FAMILIES["llava"]
    return family.build(), family.batch("one image"), family


@torch.no_grad()
def test_a_layer_that_another_library_took(llava):
    """A wrapper put over one layer's forward after the plan was, as offloading and offline quantisers do."""
    model, arguments, _ = llava
    layer = locate(model).layers[2]
    with apply(model, SKIP):
        taken = layer.forward
        layer.forward = lambda *args, **kwargs: taken.stock(*args, **kwargs)
        for _ in range(2):  # in every call, not only in the first
            with pytest.raises(ModelError, match=r"not in force: layer 2 of the model ran without it; another library"):
                model(**arguments)
        layer.forward = taken
        model(**arguments)


@torch.no_grad()
def test_rows_that_the_plan_does_not_leave(llava, monkeypatch):
    model, arguments, family = llava
    wasteful = Plan.full(LAYERS).layers[0].work

    def whole(layer, work, *args, **kwargs):
        return run_ffn(layer, wasteful if layer is locate(model).layers[1] else work, *args, **kwargs)

    monkeypatch.setattr(one_layer, "run_ffn", whole)
    ids = arguments["input_ids"]
    text = ids.numel() - int(sum((ids == one).sum() for one in family.visual_ids))
    said = f"ffn of layer 1 ran on {ids.numel()} rows, and the plan leaves {text}"
    with apply(model, SKIP):
        with pytest.raises(ModelError, match=said):
            model(**arguments)
        model(**arguments)  # rows are counted once


@pytest.mark.parametrize("plan", ["skip", "keep, then window", "recycle"])
@torch.no_grad()
def test_the_first_call_is_as_the_others_and_leaves_nothing_behind(llava, plan):
    """Counting changes no bit, and neither does a trace."""
    model, arguments, _ = llava
    with apply(model, STATIC[plan]):
        first, second = model(**arguments).logits, model(**arguments).logits
        assert not any(module._forward_pre_hooks for layer in locate(model).layers for module in layer.modules())
        with trace(model):
            traced = model(**arguments).logits
    assert torch.equal(first, second)
    assert torch.equal(traced, second)


@torch.no_grad()
def test_what_cannot_be_counted_is_not(llava):
    """A filter decides prompt by prompt; a second turn has a past; and a prompt without an image runs as it is."""
    model, arguments, _ = llava
    with apply(model, Plan.full(LAYERS).at([2, 3, 4], keep=Filter(cosine=2.0, norm=0.02))):
        model(**arguments)
    with apply(model, SKIP) as handle:
        model(input_ids=torch.tensor([[5, 6, 7]]))
        assert not handle._is_counted
        model(**arguments)
        assert handle._is_counted


@torch.no_grad()
def test_a_plan_that_is_put_on_again(llava, monkeypatch):
    """It gives what it gave, is looked at once, and its rows are counted once; a plan applied anew is counted anew."""
    model, arguments, _ = llava
    counted, read = [], []
    monkeypatch.setattr(patching, "checked_rows", lambda *_: counted.append(1) or nullcontext())
    monkeypatch.setattr(plan_module, "liveness", lambda *args, **kwargs: read.append(1) or liveness(*args, **kwargs))
    stock, put = model(**arguments).logits, patching.reapplied(model, SKIP)
    for _ in range(3):
        assert torch.equal(model(**arguments).logits, stock)
        with put():
            planned = model(**arguments).logits
            with pytest.raises(ModelError, match="already applied"):
                put()
        assert not torch.equal(planned, stock)
    assert (len(counted), len(read)) == (1, 1)
    with apply(model, SKIP):
        assert torch.equal(model(**arguments).logits, planned)
    assert (len(counted), len(read)) == (2, 2)
    with patching.reapplied(model, None)():
        assert torch.equal(model(**arguments).logits, stock)


def test_a_model_that_is_not_what_its_configuration_says(llava):
    model, _, _ = llava
    decoder = locate(model).decoder
    decoder.layers = decoder.layers[:-1]
    with pytest.raises(ModelError, match=f"says layers {LAYERS} and its decoder has {LAYERS - 1}"):
        apply(model, Plan.full(LAYERS).at([1], attention=Skip()))


def test_a_plan_on_prompts_without_an_image_is_told(tmp_path, plan):
    """They are answered; the plan loses nothing in them, and saves nothing."""
    (tmp_path / "d.jsonl").write_text('{"question": "why?", "answer": "so"}')
    done = run("eval", "reference", "--data", tmp_path / "d.jsonl", "--plan", plan)
    assert "IdleWarning: d.jsonl has no image, so the plan skips nothing" in done.stderr
    done = run("generate", "reference", "--prompt", "why?", "--plan", plan, "--max-new-tokens", 1)
    assert "IdleWarning: the prompt has no image" in done.stderr
    assert "IdleWarning" not in run("generate", "reference", "--prompt", "why?", "--max-new-tokens", 1).stderr


@pytest.mark.parametrize("case", ["one image", "two images"])
@torch.no_grad()
def test_keys_that_a_rank_reads_are_made_once(case):
    family = FAMILIES["llava"]
    model, arguments = family.build(), family.batch(case)
    best = Top(0.5, rank="mutual_attention")
    plan = Plan.full(LAYERS).at([2], attention=best, ffn=best)
    with apply(model, plan), trace(model) as counted:
        model(**arguments)
    assert counted.layers[2]["key"] == counted.layers[1]["key"] == arguments["input_ids"].numel()
    assert counted.layers[2]["ffn"] < counted.layers[1]["ffn"]
