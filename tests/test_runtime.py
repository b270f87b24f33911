"""The fast path is the slow reference, the full plan is the stock model, and everything is given back."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from helpers.compare import TOLERANCE
from helpers.models import (
    BATCHES,
    IMAGE,
    LAYERS,
    VARIANTS,
    VISUAL,
    batch,
    next_batch,
    prompt,
    tiny_llava,
    tiny_llava_next,
)
from helpers.plans import SKIPPED
from helpers.slow_hooks import slow
from lookless import apply, trace


def read(arguments: dict) -> torch.Tensor:
    """The rows somebody reads: text, and the last row of a prompt; what nobody reads is not computed."""
    real, ids = arguments["attention_mask"].bool(), arguments["input_ids"]
    ends_in_text = bool((ids[:, -1] != IMAGE).all())
    return real & (ids != IMAGE) if ends_in_text else real


def close(fast: torch.Tensor, reference: torch.Tensor, scale: torch.Tensor) -> None:
    difference = (fast - reference).abs().max().item()
    assert difference < TOLERANCE * scale.abs().max().item(), difference


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return tiny_llava(request.param)


@pytest.mark.parametrize("plan", SKIPPED.values(), ids=SKIPPED)
@pytest.mark.parametrize("inputs", BATCHES.values(), ids=BATCHES)
@torch.no_grad()
def test_prefill_is_the_slow_reference(model, plan, inputs):
    arguments = inputs()
    real = read(arguments)
    with slow(model, plan):
        reference = model(**arguments).logits[real]
    with apply(model, plan):
        fast = model(**arguments).logits[real]
    close(fast, reference, reference)
    stock = model(**arguments).logits[real]
    assert (stock - reference).abs().max() > 100 * TOLERANCE  # the plan does something that the test would see


@pytest.mark.parametrize("plan", SKIPPED.values(), ids=SKIPPED)
@torch.no_grad()
def test_llava_next_is_the_slow_reference(plan):
    """Images of different resolution have different numbers of visual tokens."""
    model, arguments = tiny_llava_next(), next_batch()
    real = read(arguments)
    with slow(model, plan):
        reference = model(**arguments).logits[real]
    with apply(model, plan):
        close(model(**arguments).logits[real], reference, reference)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [IMAGE]}
    with slow(model, plan):
        expected = model.generate(**arguments, **options)
    with apply(model, plan):
        assert torch.equal(model.generate(**arguments, **options), expected)


@pytest.mark.parametrize("inputs", ["one image", "two images", "padded left"])
@torch.no_grad()
def test_eager_attention_is_the_slow_reference(inputs):
    model = tiny_llava(attention="eager")
    arguments = BATCHES[inputs]()
    real = read(arguments)
    with slow(model, SKIPPED["mixed"]):
        reference = model(**arguments).logits[real]
    with apply(model, SKIPPED["mixed"]):
        close(model(**arguments).logits[real], reference, reference)


@pytest.mark.parametrize("plan", SKIPPED.values(), ids=SKIPPED)
@pytest.mark.parametrize("inputs", ["one image", "two images", "padded left"])
@torch.no_grad()
def test_32_decoded_tokens_are_the_slow_reference(model, plan, inputs):
    """Prefill and 32 steps over the cache: the logits of every step."""
    arguments = BATCHES[inputs]()
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": [IMAGE]}
    with slow(model, plan):
        reference = model.generate(**arguments, **options)
    with apply(model, plan):
        fast = model.generate(**arguments, **options)
    assert torch.equal(fast.sequences, reference.sequences)
    close(torch.stack(fast.logits), torch.stack(reference.logits), torch.stack(reference.logits))


@torch.no_grad()
def test_cached_generation_is_uncached(model):
    arguments = BATCHES["padded left"]()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [IMAGE]}
    with apply(model, SKIPPED["mixed"]):
        cached = model.generate(**arguments, **options)
        uncached = model.generate(**arguments, **options, use_cache=False)
    assert torch.equal(cached, uncached)


@torch.no_grad()
def test_beams_and_static_cache(model):
    arguments = BATCHES["one image"]()
    for options in ({"num_beams": 3}, {"cache_implementation": "static"}):
        options = {**options, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "suppress_tokens": [IMAGE]}
        with slow(model, SKIPPED["mixed"]):
            reference = model.generate(**arguments, **options)
        with apply(model, SKIPPED["mixed"]):
            fast = model.generate(**arguments, **options)
        assert torch.equal(fast, reference), options


@pytest.mark.parametrize("second", [prompt("image", 6, seed=7), prompt(4, "image", 5, seed=7), prompt(5, seed=7)])
@torch.no_grad()
def test_second_turn_over_a_warm_cache(model, second):
    """A chunk with (or without) a new image behind a cached first turn."""
    plan = SKIPPED["mixed"]
    first = BATCHES["one image"]()
    turn = batch(second, seed=5)
    turn["attention_mask"] = torch.ones(1, first["input_ids"].shape[1] + len(second), dtype=torch.int64)
    logits = {}
    for name, way in (("slow", slow), ("fast", apply)):
        cache = DynamicCache(config=model.config.get_text_config())
        with way(model, plan):
            model(**first, past_key_values=cache)
            logits[name] = model(**turn, past_key_values=cache).logits[turn["input_ids"] != IMAGE]
    close(logits["fast"], logits["slow"], logits["slow"])


@torch.no_grad()
def test_prefill_into_a_static_cache(model):
    arguments = BATCHES["one image"]()
    logits = []
    for way in (slow, apply):
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
        with way(model, SKIPPED["mixed"]):
            logits.append(model(**arguments, past_key_values=cache).logits[read(arguments)])
    close(logits[1], logits[0], logits[0])


@torch.no_grad()
def test_a_chunk_that_is_all_image(model):
    """Chunked prefill can cut a prompt so that a chunk holds no text at all."""
    plan = SKIPPED["everything"]
    whole = BATCHES["one image"]()
    with apply(model, plan):
        expected = model(**whole).logits[:, -7:]
        cache = DynamicCache(config=model.config.get_text_config())
        for start, end in ((0, 5), (5, 5 + VISUAL), (5 + VISUAL, 12 + VISUAL)):
            chunk = {"input_ids": whole["input_ids"][:, start:end], "attention_mask": whole["attention_mask"][:, :end]}
            if start == 5:
                chunk["pixel_values"] = whole["pixel_values"]
            logits = model(**chunk, past_key_values=cache).logits
    close(logits, expected, expected)


@pytest.mark.parametrize("plan", SKIPPED.values(), ids=SKIPPED)
@torch.no_grad()
def test_trace_is_what_the_plan_predicts(model, plan):
    with apply(model, plan), trace(model) as counted:
        model(**BATCHES["two images"](), logits_to_keep=1)
        assert counted.layers == list(plan.rows(visual=2 * VISUAL, text=13, kept=1))
        counted.clear()
        model(**BATCHES["batch alike"](), logits_to_keep=1)
    assert counted.layers == [{k: 2 * v for k, v in row.items()} for row in plan.rows(visual=VISUAL, text=12, kept=1)]


@torch.no_grad()
def test_padding_is_no_row(model):
    """Rows spared are visual ones; of the rest, only real tokens are computed in a skipped layer."""
    arguments = BATCHES["padded left"]()
    plan = SKIPPED["everything"]
    with apply(model, plan), trace(model) as counted:
        model(**arguments)
    text = int((arguments["attention_mask"].bool() & (arguments["input_ids"] != IMAGE)).sum())
    assert {row["query"] for row in counted.layers} == {text}
    assert {row["ffn"] for row in counted.layers} == {text}


@torch.no_grad()
def test_decode_steps_run_in_full(model):
    with apply(model, SKIPPED["everything"]), trace(model) as counted:
        cache = DynamicCache(config=model.config.get_text_config())
        model(**BATCHES["one image"](), past_key_values=cache)
        counted.clear()
        model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    assert all(row == {"query": 1, "key": 1, "ffn": 1} for row in counted.layers)


@torch.no_grad()
def test_hidden_states_are_not_changed_in_place(model):
    """What output_hidden_states hands out must not be overwritten by a later layer's in-place add."""
    arguments = BATCHES["one image"]()
    for way in (slow, apply):
        with way(model, SKIPPED["freeze"]):
            states = model(**arguments, output_hidden_states=True).hidden_states
        if way is slow:
            reference = states
    for layer, (fast, expected) in enumerate(zip(states, reference, strict=True)):
        rows = read(arguments) if layer == LAYERS else torch.ones_like(arguments["input_ids"], dtype=torch.bool)
        close(fast[rows], expected[rows], expected)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("what", ["hook", "method"])
@torch.no_grad()
def test_what_is_written_between_layers_is_read(what, in_place):
    """The compact rows that one layer leaves for the next are not taken where anybody changed the stream since."""
    model, arguments = tiny_llava(), BATCHES["padded left"]()
    layer = model.model.language_model.layers[1]
    own = type(layer).forward

    def steered(out):
        return out.mul_(1.5) if in_place else out * 1.5

    logits = []
    for way in (slow, apply):
        with way(model, SKIPPED["mixed"]):
            if what == "hook":
                hook = layer.register_forward_hook(lambda *args: steered(args[-1]))
                logits.append(model(**arguments).logits[read(arguments)])
                hook.remove()
                continue
            planned = layer.__dict__.get("forward")
            inner = planned or own.__get__(layer)
            layer.forward = lambda *args, inner=inner, **kwargs: steered(inner(*args, **kwargs))
            logits.append(model(**arguments).logits[read(arguments)])
            del layer.forward
            if planned is not None:
                layer.forward = planned
    close(logits[1], logits[0], logits[0])


def test_gradients_flow():
    model = tiny_llava()
    arguments = BATCHES["one image"]()
    gradients = []
    for way in (slow, apply):
        model.zero_grad()
        with way(model, SKIPPED["mixed"]):
            model(**arguments).logits[:, -1].logsumexp(-1).sum().backward()
        gradients.append(model.model.language_model.layers[0].mlp.up_proj.weight.grad.clone())
    close(gradients[1], gradients[0], gradients[0])


@torch.no_grad()
def test_bfloat16_within_its_own_error():
    model = tiny_llava().to(torch.bfloat16)
    arguments = BATCHES["padded left"]()
    arguments["pixel_values"] = arguments["pixel_values"].to(torch.bfloat16)
    real = read(arguments)
    with slow(model, SKIPPED["attention"]):
        reference = model(**arguments).logits[real].float()
    with apply(model, SKIPPED["attention"]):
        fast = model(**arguments).logits[real].float()
    assert (fast - reference).abs().max() < 0.05 * reference.abs().max()
