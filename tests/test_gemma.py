"""Gemma's layers: windows, two norms around each operator, keys that layers share, what a row undergoes besides."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from helpers.compare import far, text_of
from helpers.family import SPECIAL
from helpers.gemma import GEMMA, WINDOW, model_of
from helpers.loaded import ONE, loaded_of
from helpers.models import LAYERS
from helpers.plans import DECODE, FULL, PLANS, SKIPPED, STATIC
from helpers.slow_gemma import pass_by
from helpers.slow_reference import slow_logits
from lookless import Geometry, Keep, Plan, Sink, Skip, Top, Window, apply, calibrate, screen, trace
from lookless.bench.dummy_model import make_dummy_model
from lookless.bench.lower_bound import lower_bound_of
from lookless.calibration.affine import Fitter
from lookless.calibration.distances import kl
from lookless.calibration.replay import record_activations
from lookless.configs import Shape, shape_named
from lookless.errors import ModelError, PlanMismatchError
from lookless.flops import layer, prefill
from lookless.ranks import RANKS
from lookless.runtime.families import geometry_of, locate
from lookless.runtime.prompts import prompts_of

NEAR = 5e-5  #: float32 sums in another order differ by a little more than 1e-5 on CPUs without AVX-512
#: plans that have each cell, with and without a rank, and what they share with all other families
CHOSEN = (
    *("mixed", "freeze", "window", "neurons", "sink", "blind", "keep, then window", "top", "recycle", "fitted"),
    *("keep by value_aware", "keep by text_raters", "top by mutual_attention", "top by update_norm"),
    *("decode", "decode, asked by few", "filter"),
)
EVERY = {**SKIPPED, **PLANS, **DECODE}
#: where the last two layers of five read keys of layers 1 and 2
SMALL = "gemma4"
REFUSED = {
    "gemma4-experts": {"neurons", "keep, then window"},
    SMALL: {
        *("window", "sink", "blind", "withdraw", "keep", "recycle", "fitted", "keep, then fitted", "filter"),
        "before, and blind",
        *(name for name in EVERY if name.startswith(("keep by", "recycle by"))),
        *(f"top by {r}" for r in RANKS if RANKS[r].reads == "this" and RANKS[r].heads),
    },
}


def refused(name) -> set[str]:
    found, geometry = set(), geometry_of(model_of(name))
    for plan, rows in EVERY.items():
        try:
            rows.check(geometry)
        except PlanMismatchError:
            found.add(plan)
    return found


@pytest.mark.parametrize("name", GEMMA)
def test_which_plans_a_family_cannot_run(name):
    assert refused(name) == REFUSED.get(name, set())


def _cases():
    """Families with all their parts in others are tested under a few plans."""
    for name in GEMMA:
        few = name in ("gemma4-experts", "gemma4_unified")
        for plan in ("mixed", "window", "keep by value_aware", "decode") if few else CHOSEN:
            if plan not in REFUSED.get(name, set()):
                yield name, plan


@pytest.mark.parametrize(("name", "plan"), _cases())
@torch.no_grad()
def test_a_plan_is_the_slow_reference(name, plan):
    """All logits, and those of the last row alone, for which stock transformers cuts what it computes itself; then a
    second turn, and an answer."""
    family, model, plan = GEMMA[name], model_of(name), EVERY[plan]
    moved = 0.0
    for kind in ("two images", "padded left"):
        arguments = family.batch(kind)
        text = text_of(family, arguments)
        slow = slow_logits(model, plan, arguments, family.visual_ids)
        with apply(model, plan):
            assert far(model(**arguments).logits[text], slow[text]) < NEAR, kind
            assert far(model(**arguments, logits_to_keep=1).logits[:, 0], slow[:, -1]) < NEAR, kind
        moved = max(moved, far(slow[text], model(**arguments).logits[text]))
    assert moved > 10 * NEAR or plan in DECODE.values()
    first, turn, whole = family.turns(model, 4, "wide", 5)
    ends = [first["input_ids"].shape[1], whole["input_ids"].shape[1]]
    slow = slow_logits(model, plan, whole, family.visual_ids, ends)
    for kept in (0, 1):
        cache = DynamicCache(config=model.config.get_text_config())
        with apply(model, plan):
            model(**first, past_key_values=cache, logits_to_keep=kept)
            fast = model(**turn, past_key_values=cache, logits_to_keep=kept).logits
        assert far(fast[:, -1 if kept else -5 :], slow[:, -1 if kept else -5 :]) < NEAR, kept
    new, arguments = 4, family.batch("padded left")
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": SPECIAL}
    with apply(model, plan):
        answer = model.generate(**arguments, **options)
    longer = {"input_ids": answer.sequences, "attention_mask": F.pad(arguments["attention_mask"], (0, new), value=1)}
    longer |= {k: F.pad(v, (0, new)) for k, v in arguments.items() if k.endswith("token_type_ids")}
    ends = [answer.sequences.shape[1] - new, answer.sequences.shape[1]]
    slow = slow_logits(model, plan, {**arguments, **longer}, family.visual_ids, ends)
    assert far(torch.stack(answer.logits, 1), slow[:, ends[0] - 1 : -1]) < NEAR


@pytest.mark.parametrize("name", GEMMA)
@torch.no_grad()
def test_every_kind_of_batch(name):
    family, plan = GEMMA[name], FULL.at([0, 1], attention=Skip()).at([0, 3], ffn=Top(0.5, rank="diversity"))
    for attention in ("sdpa", "eager"):
        model = family.build(attention)
        for kind in family.kinds:
            arguments = family.batch(kind)
            text = text_of(family, arguments)
            slow = slow_logits(model, plan, arguments, family.visual_ids)[text]
            with apply(model, plan):
                assert far(model(**arguments).logits[text], slow) < NEAR, (attention, kind)


@pytest.mark.parametrize("name", GEMMA)
@torch.no_grad()
def test_without_small_steps(name, monkeypatch):
    """As on large models, whose unplanned layers run in calls of our own, blocks of a window at a time."""
    monkeypatch.setattr("lookless.runtime.inplace.FEW", 0)
    family, model, plan = GEMMA[name], model_of(name), SKIPPED["mixed"]
    for kind in ("two images", "padded right"):
        arguments = family.batch(kind)
        text = text_of(family, arguments)
        slow = slow_logits(model, plan, arguments, family.visual_ids)[text]
        with apply(model, plan):
            assert far(model(**arguments).logits[text], slow) < NEAR, kind


@pytest.mark.parametrize("name", GEMMA)
@torch.no_grad()
def test_a_prompt_in_chunks(name):
    """Chunks cut an image, of which a row then sees no more both ways than is there; and stop behind its window."""
    family, model, plan, size = GEMMA[name], model_of(name), SKIPPED["freeze"], 11
    arguments = family.arguments((5, "image", 7))
    length = arguments["input_ids"].shape[1]
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0, "prefill_chunk_size": size}
    options |= {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": SPECIAL}
    with apply(model, plan):
        [fast] = model.generate(**arguments, **options).logits
    slow = slow_logits(model, plan, arguments, family.visual_ids, [*range(size, length, size), length])
    assert far(fast[0], slow[0, -1]) < NEAR


# layers that read keys of earlier ones


@torch.no_grad()
def test_rows_that_stock_transformers_leaves_out_are_left_out():
    """Of the layers without keys it computes the last row alone, and so does a plan; but not where that is visual."""
    family, model = GEMMA[SMALL], model_of(SMALL)
    plan, rows = SKIPPED["freeze"], []
    watched = model.model.language_model.layers[LAYERS - 1].mlp
    hook = watched.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:-1].numel()))
    try:
        for prompts in ([(5, "image", 7)], [(5, "image", 7), (2, "wide", 4)]):
            arguments, _ = family.arguments(*prompts), rows.clear()
            model(**arguments, logits_to_keep=1)
            with apply(model, plan):
                model(**arguments, logits_to_keep=1)
            assert rows == [len(prompts)] * 2
        arguments = family.arguments((4, "video"))
        with apply(model, plan), trace(model) as counted:
            fast = model(**arguments, logits_to_keep=1).logits[0, 0]
        assert counted.layers[LAYERS - 1] == {"query": 12, "key": 0, "ffn": 12}
        assert far(fast, slow_logits(model, plan, arguments, family.visual_ids)[0, -1]) < NEAR
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("layer", "cells", "reason"),
    [
        (3, {"visible": Skip()}, r"layer 3 of gemma4 cannot run visible=skip, which has none of its own .* of layer 2"),
        (4, {"decode": Skip()}, r"decode=skip, which has none of its own and reads those of layer 1"),
        (4, {"attention": Window(4)}, "attention=window 4, which has none of its own"),
        (4, {"keep": Keep(0)}, "keep=none, as layer 4 reads keys that layer 1 made of all tokens"),
        (2, {"keep": Keep(0)}, "layer 2 of gemma4 cannot run keep=none, as layer 4 reads keys that layer 1 made"),
        (1, {"visible": Sink()}, "visible=sink, whose keys and values later layers read as well"),
        (4, {"ffn": Top(0.5, rank="key_norm")}, "a rank by key_norm, which reads keys of layer 3, which has none"),
    ],
)
def test_what_shared_keys_cannot_say_is_refused(layer, cells, reason):
    model = model_of(SMALL)
    with pytest.raises(PlanMismatchError, match=reason):
        apply(model, FULL.at([layer], **cells))
    assert "forward" not in model.model.language_model.layers[0].__dict__


@torch.no_grad()
def test_shared_keys_are_not_handed_out_under_a_plan():
    model = model_of(SMALL)
    with apply(model, SKIPPED["freeze"]), pytest.raises(ModelError, match=r"return_shared_kv_states=True asks"):
        model(**GEMMA[SMALL].batch("one image"), return_shared_kv_states=True)


# calibration


@pytest.mark.parametrize("name", GEMMA)
def test_scores_are_those_of_the_slow_reference(name):
    """A run that begins behind the layers that make keys finds them; logits are capped as the model caps them."""
    family, model = GEMMA[name], model_of(name)
    arguments = family.batch("two images")
    loaded = loaded_of(model, arguments)
    scores = calibrate(loaded, ONE, measure="freeze_effect", progress=False).per_sample[0]
    full = slow_logits(model, FULL, arguments, family.visual_ids)[0, -1:]
    for index, score in enumerate(scores):
        plan = FULL.at([index], attention=Skip(), ffn=Skip())
        moved = kl(full, slow_logits(model, plan, arguments, family.visual_ids)[0, -1:])
        assert score == pytest.approx(float(moved), rel=1e-3, abs=1e-6)
    assert max(scores) > 1e-3
    measured = screen(loaded, ONE, {"freeze_effect": 2}, trust=1e9, progress=False)["freeze_effect"]
    assert [s for s, m in zip(measured.per_sample[0], measured.measured[0], strict=True) if m] == pytest.approx(
        [s for s, m in zip(scores, measured.measured[0], strict=True) if m], abs=1e-6
    )


@pytest.mark.parametrize("name", GEMMA)
def test_what_operators_add_is_recorded_behind_their_norms(name):
    model, arguments = model_of(name), GEMMA[name].batch("one image")
    located = locate(model)
    with record_activations(located) as seen:
        located.inner(**arguments, use_cache=False)
    for index, module in enumerate(located.layers):
        (x, given), a, f = seen.inputs[index], seen.attention[index], seen.ffn[index]
        out = pass_by(module, x + a + f, given.get("per_layer_input"))
        torch.testing.assert_close(out, seen.outputs[index])


@pytest.mark.parametrize("name", GEMMA)
def test_fitted_cells_see_what_operators_add(name):
    model, arguments = model_of(name), GEMMA[name].batch("one image")
    located = locate(model)
    with record_activations(located) as seen:
        located.inner(**arguments, use_cache=False)
    fitter = Fitter(loaded_of(model, arguments), ONE, position="last", progress=False)
    walk, visual = fitter._starts[0].walk(FULL), located.visual(arguments["input_ids"])[0]
    with torch.no_grad():
        for index, module in enumerate(located.layers):
            for operator, updates in (("attention", seen.attention), ("ffn", seen.ffn)):
                _, added, _ = walk.seen(module, index, FULL.layers[index], operator)
                torch.testing.assert_close(added, updates[index][0, visual])
            walk.leave(module, index, walk.running.steps)


# prices


def decoder_flops(model, plan, arguments, **more):
    counter = FlopCounterMode(display=False)
    with apply(model, plan), sdpa_kernel(SDPBackend.MATH), counter:
        model(**arguments, **more)
    counts, decoder = counter.get_flop_counts(), f"{type(model).__name__}.model.language_model"
    return sum(counts[decoder].values()) - sum(counts.get(f"{decoder}.rotary_emb", {}).values())


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("name", GEMMA)
@torch.no_grad()
def test_the_formula_is_pytorchs_own_count(name, monkeypatch):
    monkeypatch.setattr("lookless.runtime.inplace.FEW", 0)
    family, model = GEMMA[name], GEMMA[name].build()
    located, arguments = locate(model), family.batch("one image")
    if located.geometry.experts:
        model.set_experts_implementation("eager")  # whose products are counted
    g, rows = located.geometry, arguments["input_ids"].shape[1]
    visual = located.visual(arguments["input_ids"])[0]
    before = 2 * rows * g.hidden * g.embedded * g.layers  # the embeddings of all layers, made before the first
    seen = int(visual.sum())
    told = {"visual": seen, "text": rows - seen, "before": int(visual.int().argmax())}
    for name_of in {"skip", "window", "neurons", "mixed"} - refused(name):
        plan = {**STATIC, **SKIPPED}[name_of]
        assert decoder_flops(model, plan, arguments) - before == prefill(g, **told, plan=plan).total, name_of
        run = lower_bound_of(located, prompts_of(located, arguments), plan)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == prefill(g, **told, plan=plan.as_run).total, name_of


def test_a_layer_by_hand():
    """Gemma 4 E2B's, as its configuration has it: 1,000 rows."""
    g = Geometry.preset("Gemma-4-E2B")
    embedded = 4 * 1000 * 1536 * 256
    ffn, scores = 6 * 1000 * 1536 * 6144, 4 * 1000 * 8
    own = layer(g, 0, query=1000, key=1000, ffn=1000)
    assert own == 4 * 1000 * 1536 * (2048 + 256) + scores * 512 * 256 + ffn + embedded
    full = layer(g, 14, query=1000, key=1000, ffn=1000)
    assert full == 4 * 1000 * 1536 * (4096 + 512) + scores * 1000 * 512 + ffn + embedded
    borrowed = layer(g, 15, query=1, key=1000, ffn=1, live=1)
    assert borrowed == 4 * 1536 * 2048 + 4 * 8 * 512 * 256 + 6 * 1536 * 12288 + 4 * 1536 * 256
    assert [g.shares_keys_of(i) for i in (13, 14, 15, 18, 19, 34)] == [None, None, 13, 13, 14, 14]
    assert g.like == (*[0] * 4, 4) * 3 + (*[15] * 4, 19) * 4
    assert prefill(g.only(15), visual=900, text=100).total == layer(g, 15, query=1000, key=1000, ffn=1000)


def test_a_dummy_model_has_the_geometrys_shapes():
    shape = shape_named("Gemma-4-E2B")
    small = shape.geometry.model_copy(update={"hidden": 64, "intermediate": 96, "embedded": 8, "layers": 35})
    small = small.model_copy(update={"shared": small.shared.model_copy(update={"intermediate": 192})})
    dummy = make_dummy_model(Shape(small, shape.block), dtype=torch.float32)
    assert dummy.geometry == small
    arguments = dummy.inputs(visual=20, before=5, after=7, batch=2)
    with torch.no_grad():
        stock = dummy.model(**arguments, logits_to_keep=1).logits
        with apply(dummy.model, Plan.full(35).at([0], attention=Skip())):
            assert not torch.equal(dummy.model(**arguments, logits_to_keep=1).logits, stock)


def test_the_geometry_of_a_configuration():
    g = geometry_of(model_of(SMALL))
    assert g.sliding.size == WINDOW
    assert [g.reach_of(i) for i in range(LAYERS)] == [WINDOW, None, WINDOW, WINDOW, None]
    assert [g.query_width(i) for i in range(LAYERS)] == [64, 128, 64, 64, 128]
    assert [g.key_width(i) for i in range(LAYERS)] == [16, 32, 16, 0, 0]
    assert [g.ffn_width(i) for i in range(LAYERS)] == [96, 96, 96, 192, 192]
    assert Geometry.model_validate(g.model_dump(mode="json")) == g
    assert g.both_ways == ()
    assert geometry_of(model_of("gemma3")).both_ways == tuple(range(LAYERS))
    large = geometry_of(model_of("gemma4-large"))
    assert large.both_ways == large.sliding.layers
    assert [large.has_values(i) for i in range(LAYERS)] == [True, False, True, True, False]
    assert large.shares_keys_of(4) is None
