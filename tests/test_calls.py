"""How a call is made does not change what it computes: threads, what the caller reads, and the model without a head."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn import functional as F

from helpers.compare import MASKS, TOLERANCE, far
from helpers.families import FAMILIES
from helpers.models import LAYERS, batch, prompt
from helpers.models import VISUAL as V
from helpers.plans import FAST, FULL, SKIP
from helpers.slow_reference import slow_logits
from lookless import Keep, Skip, apply, trace
from lookless.errors import ModelError
from lookless.runtime import refusals
from lookless.runtime.refusals import RECOMPUTES_CALLS

TOWER = FULL.at([0], keep=Keep(0.4, rank="tower_attention"))
LLAVA = FAMILIES["llava"]


@pytest.fixture(scope="module")
def model():
    return LLAVA.build()


@pytest.fixture(scope="module")
def assistant():
    return LLAVA.build()


# threads


@pytest.mark.parametrize("plan", [SKIP, FAST, TOWER], ids=["skip", "keep", "tower"])
@torch.no_grad()
def test_threads_share_a_model(model, plan):
    """Layer by layer in turn, so every call is in the middle of every other: to see a mixture needs no luck."""
    layers = model.model.language_model.layers
    calls = [LLAVA.batch("one image"), batch(prompt(60)), LLAVA.arguments((3, "image", 4), seed=3), batch(prompt(9))]
    meeting = threading.Barrier(len(calls))
    results: list[torch.Tensor | Exception | None] = [None] * len(calls)

    @torch.no_grad()
    def work(i: int) -> None:
        try:
            results[i] = model(**calls[i]).logits
        except Exception as problem:
            results[i] = problem
            meeting.abort()

    def meet(*_):
        meeting.wait(60)

    with apply(model, plan):
        alone = [model(**arguments).logits for arguments in calls]
        hooks = [layer.register_forward_pre_hook(meet) for layer in layers]
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for hook in hooks:
            hook.remove()
    for mine, expected in zip(results, alone, strict=True):
        assert isinstance(mine, torch.Tensor), mine
        assert torch.equal(mine, expected)


@torch.no_grad()
def test_a_call_inside_a_call(model):
    """A hook that asks the same model something else, as contrastive decoding may."""
    arguments, other = LLAVA.batch("one image"), batch(prompt(9))
    with apply(model, FAST):
        expected, expected_inside = model(**arguments).logits, model(**other).logits
        inside = []

        def ask(*_):
            hook.remove()
            inside.append(model(**other).logits)

        hook = model.model.language_model.layers[1].register_forward_pre_hook(ask)
        assert torch.equal(model(**arguments).logits, expected)
    assert torch.equal(inside[0], expected_inside)


@torch.no_grad()
def test_an_interrupted_call_leaves_nothing_behind(model):
    def interrupt(*_):
        raise KeyboardInterrupt

    arguments, text = LLAVA.batch("one image"), batch(prompt(9))
    with apply(model, FAST) as handle:
        expected = model(**text).logits
        hook = model.model.language_model.layers[-1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**arguments)
        hook.remove()
        assert handle.running.now is None
        assert torch.equal(model(**text).logits, expected)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl"])
@torch.no_grad()
def test_scores_of_the_tower_go_with_its_features(name):
    """Features computed by themselves leave nothing behind; used later, they are ranked by their own scores."""
    family = FAMILIES[name]
    model = family.build()
    arguments, other = family.batch("one image"), family.arguments((5, "image", 7), seed=9)
    per_token = ("input_ids", "attention_mask", "mm_token_type_ids")
    pixels, others = ({k: v for k, v in a.items() if k not in per_token} for a in (arguments, other))
    with apply(model, TOWER):
        expected = model(**arguments).logits
        features = model.get_image_features(**pixels, return_dict=True)
        model.get_image_features(**others, return_dict=True)
        assert torch.equal(model(**arguments).logits, expected)
        ready = {k: v for k, v in arguments.items() if not k.startswith("pixel")}
        assert torch.equal(model(**ready, mm_encoder_outputs={"image": features}).logits, expected)
        assert not torch.equal(model(**other).logits, expected)


# what the caller reads


@pytest.mark.parametrize("plan", [SKIP, FAST, FULL.at([3], keep=Keep(0))], ids=["skip", "keep", "withdraw"])
@pytest.mark.parametrize("kind", ["two images", "padded left", "padded right"])
@torch.no_grad()
def test_every_row_that_leaves_the_model_is_the_plans(model, plan, kind):
    """The first word behind an image is predicted from the image's last row."""
    arguments = LLAVA.batch(kind)
    real = arguments["attention_mask"].bool()
    slow = slow_logits(model, plan, arguments, LLAVA.visual_ids)
    with apply(model, plan):
        result = model(**arguments, labels=arguments["input_ids"].where(real, -100))
        states = model(**arguments, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
        some = model(**arguments, logits_to_keep=torch.arange(4, 9)).logits
    assert far(result.logits[real], slow[real]) < TOLERANCE
    assert far(model.lm_head(states)[real], slow[real]) < TOLERANCE
    assert far(some[real[:, 4:9]], slow[:, 4:9][real[:, 4:9]]) < TOLERANCE
    shifted = arguments["input_ids"].where(real, -100)[:, 1:]
    loss = F.cross_entropy(slow[:, :-1].flatten(0, 1), shifted.flatten(), ignore_index=-100)
    assert abs(result.loss.item() - loss.item()) < 1e-4


@torch.no_grad()
def test_work_that_nobody_reads_is_spared_where_the_call_says_so(model):
    """In the last layer: the same answers, and only as many rows as are read."""
    arguments, every = LLAVA.batch("one image"), 12 + V
    for rows, ran in (
        (1, 1),
        (7, 7),  # the words behind the image
        (torch.tensor([0, 27]), 2),
        (0, every),
        (8, every),
        (torch.tensor([[20, 27]]), every),
        (torch.ones(1, 28, dtype=torch.bool), every),
    ):
        if torch.is_tensor(rows) and rows.ndim == 2 and not MASKS:
            continue  # this transformers takes numbers of rows only
        with apply(model, SKIP), trace(model) as counted:
            logits = model(**arguments, logits_to_keep=rows).logits
        assert counted.layers[-1] == {"query": ran, "key": every, "ffn": ran}, rows
        slow = slow_logits(model, SKIP, arguments, LLAVA.visual_ids)
        assert far(logits.flatten(0, -2)[-1], slow[0, -1]) < TOLERANCE
    with apply(model, SKIP), trace(model) as counted:
        model.generate(**arguments, max_new_tokens=1, pad_token_id=0)
    assert counted.layers[-1] == {"query": 1, "key": every, "ffn": 1}


@torch.no_grad()
def test_attention_maps_are_refused():
    """They would be of some layers only, one behind the other."""
    model = LLAVA.build("eager")
    text = batch(prompt(9))
    with apply(model, SKIP):
        for options in ({"output_attentions": True}, {"output_attentions": True, "output_hidden_states": True}):
            with pytest.raises(ModelError, match=r"output_attentions=True asks .* on the stock model"):
                model(**LLAVA.batch("one image"), **options)
        assert len(model(**text, output_attentions=True).attentions) == LAYERS
    assert len(model(**LLAVA.batch("one image"), output_attentions=True).attentions) == LAYERS


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_model_without_its_head(name):
    family = FAMILIES[name]
    model, arguments = family.build(), family.batch("padded left")
    real = arguments["attention_mask"].bool()
    with apply(model, FAST):
        expected = model(**arguments).logits[real]
    with apply(model.model, FAST):
        states = model.model(**arguments).last_hidden_state
        with pytest.raises(ModelError, match="already applied"):
            apply(model, FAST)
    torch.testing.assert_close(model.lm_head(states)[real], expected)
    assert "forward" not in model.model.__dict__
    with pytest.raises(ModelError, match=r"models of type '.*' are not supported; supported are llava"):
        apply(model.model.language_model, FAST)


# training


@torch.no_grad()
def test_attention_weights_are_dropped_in_training():
    """All of them: nothing is left of attention but what its projections add to nothing."""
    model, arguments = LLAVA.build(), LLAVA.batch("two images")
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 1.0
    nothing = FULL.at([1], ffn=Skip())
    model.train()
    with apply(model, nothing):
        dropped = model(**arguments).logits
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.register_forward_hook(lambda _, __, out: out * 0)
    with apply(model.eval(), nothing):
        assert far(dropped, model(**arguments).logits) < TOLERANCE


def test_gradients_are_the_same_under_checkpointing():
    """Which runs a stock layer a second time, and must not run a planned one so."""
    if RECOMPUTES_CALLS:
        pytest.skip("refused with this transformers, as the next test checks")
    gradients = []
    for is_checkpointed in (False, True):
        model = LLAVA.build()
        model.train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        with apply(model, FAST):
            model(**LLAVA.batch("one image")).logits[:, -1].logsumexp(-1).sum().backward()
        gradients.append(model.model.language_model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_checkpointing_that_would_run_stock_layers_is_refused(monkeypatch):
    """As transformers before 5.23 do it."""
    monkeypatch.setattr(refusals, "RECOMPUTES_CALLS", True)
    model, arguments = LLAVA.build(), LLAVA.batch("one image")
    model.gradient_checkpointing_enable()
    with apply(model, SKIP):
        model.train()
        with pytest.raises(ModelError, match=r"gradient checkpointing .* model.gradient_checkpointing_disable\(\)"):
            model(**arguments)
        with torch.no_grad():
            model(**arguments)
        model.eval()
        model(**arguments)
