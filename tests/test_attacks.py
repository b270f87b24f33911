"""What else people do with a model while a plan is in force: right, or refused in one sentence.

Threads, training and gradient checkpointing are in tests/test_calls.py, decoding under a compiler in
tests/test_compiled.py.
"""

from __future__ import annotations

import copy
import pickle
import threading
import time

import pytest
import torch
from transformers import AutoModelForImageTextToText

from helpers.families import FAMILIES, SPECIAL
from helpers.models import LAYERS
from helpers.plans import FAST, FULL, SKIP
from lookless import Keep, Skip, apply
from lookless.errors import ModelError
from lookless.runtime import patching

LLAVA = FAMILIES["llava"]
BATCH = LLAVA.batch("one image")
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "suppress_tokens": SPECIAL}
FREEZE = FULL.at([3], attention=Skip(), ffn=Skip())


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**BATCH).logits


@pytest.fixture
def model():
    return LLAVA.build()


def planned(plan) -> torch.Tensor:
    fresh = LLAVA.build()
    with apply(fresh, plan):
        return logits(fresh)


def is_stock(model) -> bool:
    hooked = any(module._forward_pre_hooks for module in (model, model.model, *model.model.language_model.layers))
    return not hooked and not any({"forward", "generate"} & {*module.__dict__} for module in model.modules())


# apply and remove in any order


def test_plans_one_after_another_and_one_inside_another(model):
    stock = logits(model)
    first = apply(model, SKIP)
    with pytest.raises(ModelError, match=r"already applied to this model: call remove\(\)"), apply(model, FREEZE):
        pass
    assert torch.equal(logits(model), planned(SKIP)), "the first is in force as before"
    first.remove()
    second = apply(model, FREEZE)
    first.remove()  # once more, and it is not the second
    assert torch.equal(logits(model), planned(FREEZE))
    second.remove()
    assert is_stock(model)
    assert torch.equal(logits(model), stock)


def test_two_models_at_once(model):
    other = LLAVA.build()
    first, second = apply(model, SKIP), apply(other, FREEZE)
    first.remove()
    assert torch.equal(logits(other), planned(FREEZE))
    assert is_stock(model)
    second.remove()
    assert is_stock(other)


@pytest.mark.parametrize("last", ["plan", "wrapper"])
@pytest.mark.parametrize("path", ["", "language_model.layers.2"])
def test_a_wrapper_that_is_put_over_the_plan(model, path, last):
    """Whoever is removed last, the other is left in force, and nothing stays behind."""
    stock, wrapped, calls = logits(model), model.model.get_submodule(path), []
    handle = apply(model, SKIP)
    inner = wrapped.forward

    def wrapper(*args, **kwargs):
        calls.append("in")
        return inner(*args, **kwargs)

    wrapped.forward = wrapper
    assert torch.equal(logits(model), planned(SKIP))
    if last == "plan":
        wrapped.forward = inner
        handle.remove()
        assert is_stock(model)
    else:
        handle.remove()
        assert wrapped.forward is wrapper
        assert torch.equal(logits(model), stock)
        assert calls == ["in", "in"]
        wrapped.forward = inner  # what it found there; another plan can be applied over it
    assert torch.equal(logits(model), stock)
    with apply(model, FREEZE):
        assert torch.equal(logits(model), planned(FREEZE))
    assert torch.equal(logits(model), stock)


def test_threads_that_apply_at_once(model, monkeypatch):
    """One plan is in force on a model, and the others are refused, also where all look before any of them puts it."""
    made, check = [], patching.check_internals

    def slowly(*args):
        time.sleep(0.1)  # so that others come in between, if they may
        check(*args)

    monkeypatch.setattr(patching, "check_internals", slowly)

    def work():
        try:
            made.append(apply(model, SKIP))
        except ModelError as problem:
            made.append(str(problem))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handles = [one for one in made if not isinstance(one, str)]
    assert len(handles) == 1
    assert torch.equal(logits(model), planned(SKIP))
    handles[0].remove()
    assert is_stock(model)


# copies and files


@pytest.mark.parametrize("plan", [SKIP, FAST])
def test_a_deep_copy_has_the_plan_for_itself(model, plan):
    stock = logits(model)
    with apply(model, plan):
        copied = copy.deepcopy(model)
    assert is_stock(model)
    assert torch.equal(logits(model), stock)
    assert torch.equal(logits(copied), planned(plan))
    with torch.no_grad():
        copied.model.language_model.layers[0].mlp.up_proj.weight.zero_()
    assert not torch.equal(logits(copied), planned(plan)), "its layers are its own"
    assert torch.equal(logits(model), stock)
    with pytest.raises(ModelError, match="a copy of a model keeps the plan"):
        apply(copied, plan)


def test_a_pickle_is_refused(model):
    with apply(model, SKIP), pytest.raises(ModelError, match=r"under a plan cannot be pickled: call remove\(\)"):
        pickle.dumps(model)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(other), logits(model))


def test_what_is_saved_under_a_plan_is_the_model(model, tmp_path):
    stock = logits(model)
    model.save_pretrained(tmp_path / "without")
    with apply(model, SKIP):
        model.save_pretrained(tmp_path / "under")
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        assert (tmp_path / "under" / name).read_bytes() == (tmp_path / "without" / name).read_bytes(), name
    assert sorted(p.name for p in (tmp_path / "under").iterdir()) == sorted(
        p.name for p in (tmp_path / "without").iterdir()
    )
    read = AutoModelForImageTextToText.from_pretrained(tmp_path / "under").eval()
    assert torch.equal(logits(read), stock)


# compilers and drafts


@pytest.mark.long
@torch.no_grad()
def test_the_whole_model_compiled(model):
    """Prefills too, and in a graph from before; after the plan is removed the graph is the stock model's."""
    stock = logits(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(**BATCH).logits, stock)
    with apply(model, SKIP):
        torch.testing.assert_close(compiled(**BATCH).logits, planned(SKIP), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(**BATCH).logits, stock)
    torch._dynamo.reset()


def test_a_plan_on_what_is_to_be_compiled(model):
    with apply(torch.compile(model, backend="eager"), SKIP):
        assert torch.equal(logits(model), planned(SKIP))
    assert is_stock(model)


@torch.no_grad()
def test_a_draft_of_the_first_layers_is_refused(model):
    config = copy.deepcopy(model.generation_config)
    config.assistant_early_exit = 2
    with apply(model, SKIP):
        for options in ({"assistant_early_exit": 2}, {"generation_config": config}):
            with pytest.raises(ModelError, match=r"assistant_early_exit drafts .* prompt_lookup_num_tokens"):
                model.generate(**BATCH, **GREEDY, **options)
        expected = model.generate(**BATCH, **GREEDY)
        assert torch.equal(model.generate(**BATCH, **GREEDY, prompt_lookup_num_tokens=3), expected)


def test_training_mode_under_a_plan(model):
    """Dropout is the model's own, and evaluation is as before."""
    before = planned(SKIP)
    with apply(model, SKIP):
        model.train()
        loss = model(**BATCH, labels=BATCH["input_ids"]).loss
        loss.backward()
        model.eval()
        assert torch.equal(logits(model), before)
    grad = model.model.language_model.layers[LAYERS - 1].self_attn.k_proj.weight.grad
    assert grad is not None
    assert grad.isfinite().all()
    with apply(model, FULL.at([2], keep=Keep(0.5, rank="random"))):
        assert model(**BATCH, labels=BATCH["input_ids"]).loss.requires_grad
