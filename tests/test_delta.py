"""Layers with a gated delta rule (Qwen3.5): states, chunks, prices, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from helpers.chunks import in_calls
from helpers.compare import TOLERANCE, far, text_of
from helpers.families import FAMILIES, SPECIAL, model_of
from helpers.models import LAYERS
from helpers.plans import FULL, STATIC
from helpers.slow_reference import slow_logits
from lookless import Filter, Geometry, Keep, Plan, Sink, Skip, Top, Window, apply
from lookless.bench.lower_bound import lower_bound_of
from lookless.errors import ModelError, PlanMismatchError
from lookless.flops import layer, prefill
from lookless.runtime import delta
from lookless.runtime.families import geometry_of, locate
from lookless.runtime.prompts import prompts_of
from lookless.search import Menu

NAME = "qwen3_5"
SKIP = FULL.at([0, 1, 2, 4], attention=Skip())


def a_cache(model):
    return DynamicCache(config=model.config.get_text_config())


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("attention", Window(4), r"attention=window 4, whose gated delta rule keeps one state .*: use Skip, Top"),
        ("visible", Sink(), r"visible=sink, .*: use Skip"),
        ("decode", Skip(), r"decode=skip, .* written by all tokens, or, by visible=Skip, by text alone"),
        ("decode", Top(0.5, rank="random"), r"decode=top 0\.5 by random"),
        ("ffn", Top(0.5, rank="instruction_attention"), r"a rank by instruction_attention, .* keys of layer 2"),
    ],
)
def test_cells_that_a_state_cannot_say_are_refused(column, cell, reason):
    model = FAMILIES[NAME].build()
    with pytest.raises(PlanMismatchError, match=rf"layer 2 of qwen3_5 cannot run {reason}"):
        apply(model, FULL.at([2], **{column: cell}))
    assert "forward" not in model.model.language_model.layers[0].__dict__
    with apply(model, FULL.at([3], **{column: cell})):  # it has attention
        pass


def test_ranks_of_the_layer_before_are_refused_where_that_has_a_state():
    geometry = geometry_of(model_of(NAME))
    for cell in (Keep(0.5, rank="key_norm"), Filter()):
        with pytest.raises(PlanMismatchError, match=r"layer 3 .* reads keys of layer 2, whose gated delta rule"):
            FULL.at([3], keep=cell).check(geometry)
    FULL.at([2, 4], keep=Keep(0.5, rank="key_norm")).at([3], ffn=Top(0.5, rank="update_norm")).check(geometry)


@pytest.mark.parametrize("kind", ["one image", "padded left"])
@torch.no_grad()
def test_states_are_the_stock_models(kind):
    """Rows that do not read write all the same: the first layer's state is the stock model's, also after padding."""
    family, model = FAMILIES[NAME], model_of(NAME)
    caches = [a_cache(model), a_cache(model)]
    arguments = family.batch(kind)
    model(**arguments, past_key_values=caches[0])
    with apply(model, FULL.at([0, 2], attention=Skip()).at([4], ffn=Skip())):
        model(**arguments, past_key_values=caches[1])
    stock, planned = (cache.layers[0] for cache in caches)
    torch.testing.assert_close(planned.conv_states[0], stock.conv_states[0])
    torch.testing.assert_close(planned.recurrent_states[0], stock.recurrent_states[0])
    stock, planned = (cache.layers[4] for cache in caches)
    assert not torch.allclose(planned.recurrent_states[0], stock.recurrent_states[0], atol=1e-3)


@torch.no_grad()
def test_one_prompt_in_calls_of_any_length():
    """A chunk may be all image, end in one, or be shorter than the convolution."""
    family, model = FAMILIES[NAME], model_of(NAME)
    arguments = family.arguments((3, "image", 2, "wide", 4))
    slow, text = slow_logits(model, SKIP, arguments, family.visual_ids), text_of(family, arguments)
    n = arguments["input_ids"].shape[1]
    image = int((~text).nonzero()[0, 1]) + 12  # to the end of the first one
    for sizes in ((2, 6, 10, 1, n - 19), (7, n - 7), (n - 1, 1), (image, n - image)):
        assert far(in_calls(model, SKIP, arguments, sizes)[text], slow[text]) < TOLERANCE, sizes


@torch.no_grad()
def test_answers_in_a_batch_are_those_of_each_prompt_alone():
    """What is left in the states of prompts of different length, with and without a visible image."""
    family, model = FAMILIES[NAME], model_of(NAME)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "suppress_tokens": SPECIAL}
    for plan in (SKIP, FULL.at([0, 2], visible=Skip()), FULL.at([2], keep=Keep(0.4, rank="diversity"))):
        with apply(model, plan):
            both = model.generate(**family.arguments((5, "image", 9), (2, "wide", 4)), **options)[:, -6:]
            alone = model.generate(**family.arguments((5, "image", 9)), **options)[0, -6:]
        assert torch.equal(both[0], alone), plan


@torch.no_grad()
def test_a_cache_without_place_for_a_state_is_refused():
    model = model_of(NAME)
    with apply(model, SKIP), pytest.raises(ModelError, match=r"no place for one: .*config=model\.config\)"):
        model(**FAMILIES[NAME].batch("one image"), past_key_values=DynamicCache())


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
@torch.no_grad()
def test_queries_are_made_of_rows_that_read_and_of_three_before_them(name, monkeypatch):
    """In prompts of different length, one of which begins with fewer words than the convolution has rows."""
    family, model, made = FAMILIES[name], model_of(name), []
    arguments, stock = family.arguments((5, "image", 9), (2, "wide", 4)), delta._mixed
    text, real = text_of(family, arguments), arguments["attention_mask"].bool()
    wanted = text.clone()
    for ahead in (1, 2, 3):
        wanted[:, :-ahead] |= text[:, ahead:]

    def watched(module, normed, asked):
        mixed = stock(module, normed, asked)
        made.append(int((mixed[..., : module.key_dim] != 0).any(-1).sum()))
        return mixed

    monkeypatch.setattr(delta, "_mixed", watched)
    with apply(model, SKIP):
        whole = model(**arguments).logits
        model(**arguments, logits_to_keep=1)
    assert made[:3] == [int((wanted & real).sum())] * 3
    assert made[-1] == 4 * len(real), "of the last layer one row reads"
    assert far(whole[text], slow_logits(model, SKIP, arguments, family.visual_ids)[text]) < TOLERANCE


# prices


def decoder_flops(model, plan, arguments):
    counter = FlopCounterMode(display=False)
    with apply(model, plan), sdpa_kernel(SDPBackend.MATH), counter:
        model(**arguments, logits_to_keep=1)
    counts, decoder = counter.get_flop_counts(), f"{type(model).__name__}.model.language_model"
    return sum(counts[decoder].values()) - sum(counts.get(f"{decoder}.rotary_emb", {}).values())


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
@torch.no_grad()
def test_what_plans_save_is_pytorchs_own_count(name):
    """The scan goes over the same rows in all of them, and so does not count."""
    model = FAMILIES[name].build()
    if name.endswith("moe"):
        model.set_experts_implementation("eager")
    arguments = FAMILIES[name].batch("one image")
    least = FULL.at(range(LAYERS), attention=Skip(), ffn=Skip())
    for plan in (SKIP, STATIC["skip"], STATIC["top"]):
        saved = decoder_flops(model, plan, arguments) - decoder_flops(model, least, arguments)
        mine, its = (
            prefill(geometry_of(model), visual=12, text=14, before=6, plan=one, kept=1).total for one in (plan, least)
        )
        assert saved == mine - its


@pytest.mark.usefixtures("apart")
@torch.no_grad()
def test_the_lower_bound_has_every_projection():
    model = FAMILIES[NAME].build()
    located = locate(model)
    scans = 6 * located.geometry.delta.state * 26 * 3
    for plan in (None, SKIP):
        prompts = prompts_of(located, FAMILIES[NAME].batch("one image"))
        run = lower_bound_of(located, prompts, plan)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        told = prefill(located.geometry, visual=12, text=14, before=6, plan=(plan or FULL).as_run)
        assert counter.get_total_flops() == told.total - scans


def test_a_layer_by_hand():
    """Qwen3.5-9B's, as its configuration has it: 1,000 rows of which 100 read."""
    geometry = Geometry.preset("Qwen3.5-9B")
    state, wide = 32 * 128 * 128, 4096 * (2 * 2048 + 4096 + 64)
    full = 2000 * wide + 4 * 1000 * 4096 * 4096 + 6000 * state + 6 * 1000 * 4096 * 12288
    assert layer(geometry, 0, query=1000, key=1000, ffn=1000) == full
    spared = 4 * 900 * 4096 * 4096 + 2 * 897 * 4096 * 2048  # the convolution needs queries of three more
    assert full - layer(geometry, 0, query=100, key=1000, ffn=1000) == spared
    gated = layer(geometry, 3, query=1000, key=1000, ffn=0)
    assert gated == 6 * 1000 * 4096 * 4096 + 4 * 1000 * 4096 * 1024 + 4 * 1000 * 1000 * 4096
    assert geometry.like[:5] == (0, 0, 0, 3, 0)


def test_a_search_proposes_what_layers_can_run():
    geometry = geometry_of(model_of(NAME))
    menu = Menu.standard(LAYERS, 12).within(geometry)
    assert set(menu.ranks) == {"diversity", "attention_norm", "random"}
    assert set(menu.special) == {1, 3}  # windows, where there is attention
    for index in range(LAYERS):
        for row in menu.at(index):
            Plan.full(LAYERS).at([index], **dict(row)).check(geometry)
