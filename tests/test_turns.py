"""What later turns know of earlier ones lies in the cache, and whatever happens to the cache happens to it."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, QuantizedLayer

from helpers.compare import TOLERANCE, far
from helpers.families import FAMILIES, model_of
from helpers.models import LAYERS
from helpers.slow_reference import slow_logits
from lookless import Keep, Plan, Skip, Window, apply
from lookless.errors import ModelError

FULL = Plan.full(LAYERS)
WINDOW = FULL.at([0, 1, 3], attention=Window(5))
PRUNED = FULL.at([2], keep=Keep(0.5, rank="key_norm"))


def a_cache(model):
    return DynamicCache(config=model.config.get_text_config())


def text_turn(length, tokens=4, batch=1):
    return {
        "input_ids": torch.arange(3, 3 + tokens).expand(batch, -1),
        "attention_mask": torch.ones(batch, length + tokens, dtype=torch.long),
    }


@pytest.mark.parametrize("plan", [WINDOW, WINDOW | PRUNED], ids=["window", "and dropped"])
@pytest.mark.parametrize("name", ["llava", "internvl-qwen3"])
@torch.no_grad()
def test_windows_after_a_turn_is_taken_back(name, plan):
    """A question, another one in its place by ``crop``, then an image: what is left is known."""
    family, model = FAMILIES[name], model_of(name)
    first, turn, whole = family.turns(model, 4, "wide", 5)
    length, total = first["input_ids"].shape[1], whole["input_ids"].shape[1]
    cache = a_cache(model)
    with apply(model, plan):
        model(**first, past_key_values=cache)
        model(**text_turn(length), past_key_values=cache)
        cache.crop(-4)
        fast = model(**turn, past_key_values=cache).logits
    slow = slow_logits(model, plan, whole, family.visual_ids, [length, total])[:, length:]
    assert far(fast[:, -5:], slow[:, -5:]) < TOLERANCE
    stock = model(**whole).logits[:, length:]
    assert far(stock[:, -5:], slow[:, -5:]) > 10 * TOLERANCE


@torch.no_grad()
def test_windows_of_one_conversation_of_two():
    """Images in other places; the second conversation goes on alone."""
    family, model = FAMILIES["llava"], model_of("llava")
    both = family.arguments((5, "image", 7), (9, "image", 3))
    mine = {k: v[1:] for k, v in both.items()}
    _, turn, _ = family.turns(model, 4, "wide", 5)
    cache = a_cache(model)
    with apply(model, WINDOW):
        model(**both, past_key_values=cache)
        cache.batch_select_indices(torch.tensor([1]))
        fast = model(**turn, past_key_values=cache).logits
        alone = a_cache(model)
        model(**mine, past_key_values=alone)
        expected = model(**turn, past_key_values=alone).logits
    assert far(fast, expected) < TOLERANCE


@torch.no_grad()
def test_windows_behind_text():
    """The first turn has no image, so it runs the stock forward, and is known to be text."""
    family, model = FAMILIES["llava"], model_of("llava")
    first = text_turn(0, 9)
    turn = family.arguments((4, "image", 5))
    ids = torch.cat((first["input_ids"], turn["input_ids"]), 1)
    whole = {**turn, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    turn = {**turn, "attention_mask": whole["attention_mask"]}
    cache = a_cache(model)
    with apply(model, WINDOW):
        model(**first, past_key_values=cache)
        fast = model(**turn, past_key_values=cache).logits
    slow = slow_logits(model, WINDOW, whole, family.visual_ids, [9, ids.shape[1]])[:, 9:]
    assert far(fast[:, -5:], slow[:, -5:]) < TOLERANCE


@pytest.mark.parametrize("turns", [(False,), (True, False)], ids=["at first", "between"])
@torch.no_grad()
def test_windows_behind_a_turn_without_the_plan_are_refused(turns):
    family, model = FAMILIES["llava"], model_of("llava")
    first, turn, _ = family.turns(model, 4, "wide", 5)
    cache, length = a_cache(model), first["input_ids"].shape[1]
    for planned, arguments in zip(turns, (first, text_turn(length)), strict=False):
        with apply(model, WINDOW if planned else FULL):
            model(**arguments, past_key_values=cache)
    if len(turns) > 1:
        turn = {**turn, "attention_mask": torch.ones(1, length + 4 + turn["input_ids"].shape[1], dtype=torch.long)}
    with apply(model, WINDOW), pytest.raises(ModelError, match="not known which tokens of earlier turns are visual"):
        model(**turn, past_key_values=cache)


@pytest.mark.parametrize("tokens", [1, 4])
@torch.no_grad()
def test_a_pruned_cache_without_its_plan_is_refused(tokens):
    family, model = FAMILIES["llava"], model_of("llava")
    first = family.batch("one image")
    cache, length = a_cache(model), first["input_ids"].shape[1]
    with apply(model, PRUNED):
        model(**first, past_key_values=cache)
        model(**text_turn(length, 1), past_key_values=cache)
    with pytest.raises(ModelError, match=r"holds 21 keys of 29 tokens .* no plan is applied"):
        model(**text_turn(length + 1, tokens), past_key_values=cache)


class Halved(QuantizedLayer):
    """A quantised layer in the form of transformers' own: it keeps its keys in another type."""

    def _quantize(self, tensor, axis):
        return tensor.bfloat16()

    def _dequantize(self, q_tensor):
        return q_tensor.float()


@torch.no_grad()
def test_a_quantised_cache_decodes_and_is_refused_in_a_later_turn():
    family, model = FAMILIES["llava"], model_of("llava")
    first, turn, _ = family.turns(model, 4, "wide", 5)
    plan = FULL.at([0, 2], attention=Skip())
    cache, length = Cache(layers=[Halved() for _ in range(LAYERS)]), first["input_ids"].shape[1]
    with apply(model, plan):
        model(**first, past_key_values=cache)
        step = model(**text_turn(length, 1), past_key_values=cache).logits
        plain = a_cache(model)
        model(**first, past_key_values=plain)
        assert far(step, model(**text_turn(length, 1), past_key_values=plain).logits) < 0.05
        cache.layers[0].cumulative_length = length
        turn = {**turn, "attention_mask": torch.ones(1, length + turn["input_ids"].shape[1], dtype=torch.long)}
        with pytest.raises(ModelError, match="Halved holds them in another form"):
            model(**turn, past_key_values=cache)
