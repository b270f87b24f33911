"""Every cell, on every family, in every shape of batch: the fast path is the slow reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from helpers.compare import TOLERANCE, far, needs, text_logits, text_of
from helpers.families import FAMILIES, SECOND, SPECIAL, model_of
from helpers.models import LAYERS
from helpers.plans import DECODE, FULL, OF_TOWER, PLANS, STATIC
from helpers.slow_reference import slow_logits
from helpers.slow_tower import tower_maps
from lookless import Filter, Keep, Skip, apply, trace
from lookless.errors import ModelError, PlanError


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_prefill_is_the_slow_reference(name, plan):
    family, model = FAMILIES[name], model_of(name)
    needs(model, PLANS[plan])
    moved = 0.0
    for kind in family.kinds:
        arguments = family.batch(kind)
        text = text_of(family, arguments)
        slow = slow_logits(model, PLANS[plan], arguments, family.visual_ids)[text]
        with apply(model, PLANS[plan]):
            fast = text_logits(model, arguments, text)  # what is not text is not read
        assert far(fast, slow) < TOLERANCE, kind
        moved = max(moved, far(slow, model(**arguments).logits[text]))
    assert moved > 10 * TOLERANCE  # the plan does something that the test would see


@pytest.mark.parametrize("plan", {**PLANS, **DECODE})
@pytest.mark.parametrize("name", ["llava", "llava_onevision"])
@torch.no_grad()
def test_prompts_that_end_in_an_image(name, plan):
    """Their last row is a visual one, which may have been dropped: the rows left are ranked by the last of themselves,
    and the answer is read from the last row as the plan leaves it. Alone, and as one row of a batch."""
    family, model, plan = FAMILIES[name], model_of(name), {**PLANS, **DECODE}[plan]
    for prompts in ([(6, "image")], [("wide",)], [(4, "image", 9), (5, "wide", 2, "image"), ("image", 3, "image")]):
        arguments = family.arguments(*prompts)
        read = text_of(family, arguments)
        read[:, -1] = True
        slow = slow_logits(model, plan, arguments, family.visual_ids)[read]
        with apply(model, plan):
            assert far(model(**arguments).logits[read], slow) < TOLERANCE, prompts


@pytest.mark.parametrize("plan", {**PLANS, **DECODE})
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_cached_generation_is_uncached(name, plan):
    """Greedy answers over caches of different lengths per layer, against whole sequences without any cache."""
    family, model, new = FAMILIES[name], model_of(name), 4
    plan = {**PLANS, **DECODE}[plan]
    needs(model, plan)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": SPECIAL}
    for kind in ("two images", "padded left"):
        arguments = family.batch(kind)
        length = arguments["input_ids"].shape[1]
        with apply(model, plan):
            answer = model.generate(**arguments, **options)
        whole = {**arguments, "input_ids": answer.sequences}
        whole["attention_mask"] = F.pad(arguments["attention_mask"], (0, new), value=1)
        if family.mrope:
            whole["mm_token_type_ids"] = F.pad(arguments["mm_token_type_ids"], (0, new))
        slow = slow_logits(model, plan, whole, family.visual_ids, [length, length + new])[:, length - 1 : -1]
        assert far(torch.stack(answer.logits, 1), slow) < TOLERANCE, kind


@pytest.mark.parametrize("plan", {**PLANS, **DECODE})
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_second_turn_is_the_slow_reference(name, plan):
    family, model = FAMILIES[name], model_of(name)
    plan = {**PLANS, **DECODE}[plan]
    needs(model, plan)
    for second in SECOND.values():
        first, turn, whole = family.turns(model, *second)
        cache = DynamicCache(config=model.config.get_text_config())
        with apply(model, plan):
            model(**first, past_key_values=cache)
            fast = model(**turn, past_key_values=cache).logits
        length = first["input_ids"].shape[1]
        total = whole["input_ids"].shape[1]
        slow = slow_logits(model, plan, whole, family.visual_ids, [length, total])[:, length:]
        text = text_of(family, {**turn, "attention_mask": torch.ones_like(turn["input_ids"])})
        assert far(fast[text], slow[text]) < TOLERANCE, second


@pytest.mark.parametrize("plan", STATIC)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_trace_is_what_the_plan_predicts(name, plan):
    family, model = FAMILIES[name], model_of(name)
    needs(model, STATIC[plan])
    for kind in ("one image", "padded left"):
        arguments = family.batch(kind)
        text = text_of(family, arguments)
        visual = arguments["attention_mask"].bool() & ~text
        expected = [dict.fromkeys(("query", "key", "ffn"), 0) for _ in range(LAYERS)]
        before = text & (visual.cumsum(1) == 0) & visual.any(1, keepdim=True)
        for v, t, b in zip(*(kind.sum(1).tolist() for kind in (visual, text, before)), strict=True):
            for row, more in zip(expected, STATIC[plan].rows(visual=v, text=t, kept=1, before=b), strict=True):
                row.update({k: row[k] + more[k] for k in row})
        with apply(model, STATIC[plan]), trace(model) as counted:
            model(**arguments, logits_to_keep=1)
        assert counted.layers == expected, kind


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_liveness_changes_no_text_logit(name):
    """Work that nobody reads, spared in a plan that does nothing else."""
    family, model = FAMILIES[name], model_of(name)
    plan, limit = FULL.live(), 1e-5 if "3_5" in name else 1e-6  # scans by chunks round by where padding is
    assert plan.skipped("attention") == plan.skipped("ffn") == (LAYERS - 1,)
    for kind in family.kinds:
        arguments = family.batch(kind)
        text = text_of(family, arguments)
        stock = model(**arguments).logits[text]
        with apply(model, plan):
            assert far(model(**arguments).logits[text], stock) < limit, kind


def beams(model, arguments, steps, count):
    """Log-probability and ids of beam search's best, by whole passes: nothing is cached, so nothing is reordered."""
    kept = [(0.0, arguments["input_ids"])]
    for _ in range(steps):
        longer = []
        for score, ids in kept:
            new = ids.shape[1] - arguments["input_ids"].shape[1]
            more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if "mm_token_type_ids" in arguments:
                more["mm_token_type_ids"] = torch.nn.functional.pad(arguments["mm_token_type_ids"], (0, new))
            words = model(**{**arguments, **more}).logits[0, -1].log_softmax(-1)
            words[SPECIAL] = -torch.inf
            best = words.topk(count)
            longer += [
                (score + value, torch.cat((ids, torch.tensor([[word]])), 1))
                for value, word in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        kept = sorted(longer, key=lambda beam: -beam[0])[:count]
    return kept[0]


@pytest.mark.parametrize("plan", ["keep", "withdraw", "keep, then skip", "blind"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_beams_are_with_a_cache_what_they_are_without(name, plan):
    """Beams are reordered at every step, and with them what a pruned cache holds."""
    family, model = FAMILIES[name], model_of(name)
    arguments = family.batch("one image")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "suppress_tokens": SPECIAL}
    with apply(model, PLANS[plan]):
        cached = model.generate(**arguments, **options, num_beams=3, output_scores=True, return_dict_in_generate=True)
        score, ids = beams(model, arguments, 8, 3)
        assert torch.equal(cached.sequences, ids)
        assert 8 * cached.sequences_scores[0] == pytest.approx(score, abs=1e-4)


@torch.no_grad()
def test_sampling_over_a_pruned_cache():
    family, model = FAMILIES["llava"], model_of("llava")
    options = {"max_new_tokens": 6, "do_sample": True, "pad_token_id": 0, "suppress_tokens": SPECIAL}
    with apply(model, PLANS["keep"]):
        answers = []
        for use_cache in (True, False):
            torch.manual_seed(3)
            answers.append(model.generate(**family.batch("padded left"), **options, use_cache=use_cache))
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_filters_are_the_slow_reference(name):
    """Contributions are of another size in every model: of these lengths one cuts, somewhere."""
    family, model = FAMILIES[name], model_of(name)
    needs(model, FULL.at([1, 2, 3, 4], keep=Filter()))
    moved = 0.0
    for norm in (0.003, 0.02, 0.1, 0.4):
        for exit_cosine in (0.9, 2.0):
            cell = Filter(cosine=2.0, norm=norm, exit_cosine=exit_cosine)
            plan = FULL.at([1, 2, 3, 4], keep=cell)
            for kind in family.kinds:
                arguments = family.batch(kind)
                text = text_of(family, arguments)
                slow = slow_logits(model, plan, arguments, family.visual_ids)[text]
                with apply(model, plan):
                    assert far(text_logits(model, arguments, text), slow) < TOLERANCE, (kind, cell)
                moved = max(moved, far(slow, model(**arguments).logits[text]))
    assert moved > 10 * TOLERANCE


@torch.no_grad()
def test_a_pruned_cache_is_smaller():
    """By what the plan says: dropped tokens, and those left out for decoding, are in no layer's cache behind."""
    family, model = FAMILIES["qwen3_vl"], model_of("qwen3_vl")
    arguments = family.batch("one image")
    cache = DynamicCache(config=model.config.get_text_config())
    plan = FULL.at([1], decode=Skip()).at([2], visible=Skip()).at([3], keep=Keep(0.25, rank="key_norm"))
    with apply(model, plan):
        model(**arguments, past_key_values=cache)
        text, visual = 5 + 7 + 2, 12
        assert [layer.keys.shape[-2] for layer in cache.layers] == [text + v for v in (visual, 0, 0, 3, 3)]
        assert cache.get_seq_length() == text + visual
        assert {layer.get_seq_length() for layer in cache.layers} == {text + visual}


@pytest.mark.parametrize("rank", OF_TOWER)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl"])
@torch.no_grad()
def test_ranks_of_the_tower(name, rank):
    """Against the attention maps that the tower itself returns, in forward and in generate."""
    family, model = FAMILIES[name], FAMILIES[name].build("eager")
    plan = FULL.at([0], keep=Keep(0.4, rank=rank))
    moved = 0.0
    for kind in ("one image", "two images", "padded left"):
        arguments = family.batch(kind)
        text = text_of(family, arguments)
        tower = tower_maps(name, model, arguments)
        slow = slow_logits(model, plan, arguments, family.visual_ids, tower=tower)[text]
        with apply(model, plan):
            fast = model(**arguments).logits[text]
            answer = model.generate(**arguments, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        assert far(fast, slow) < TOLERANCE, kind
        if kind == "two images":
            assert far(answer.logits[0][0], slow[-1]) < TOLERANCE
        moved = max(moved, far(slow, model(**arguments).logits[text]))
    assert moved > 10 * TOLERANCE


@pytest.mark.parametrize("rank", OF_TOWER)
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
@torch.no_grad()
def test_ranks_of_the_tower_with_a_video_before_an_image(name, rank):
    """The tower sees images first, and the prompt has them in its own order."""
    family, model = FAMILIES[name], FAMILIES[name].build("eager")
    plan = FULL.at([0], keep=Keep(0.4, rank=rank))
    for prompts in ([(3, "video", 2, "image", 5)], [(4, "video", 3), (2, "wide", 1, "video", 6), (5, "image", 2)]):
        arguments = family.arguments(*prompts)
        text = text_of(family, arguments)
        videos = {"pixel_values": arguments["pixel_values_videos"], "image_grid_thw": arguments["video_grid_thw"]}
        images, videos = (iter(tower_maps(name, model, a).tolist()) for a in (arguments, videos))
        kinds = [i for i in arguments["input_ids"].flatten().tolist() if i in family.visual_ids]
        tower = torch.tensor([next(images if i == family.visual_ids[0] else videos) for i in kinds])
        slow = slow_logits(model, plan, arguments, family.visual_ids, tower=tower)[text]
        with apply(model, plan):
            fast = model(**arguments).logits[text]
            answer = model.generate(**arguments, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        assert far(fast, slow) < TOLERANCE, prompts
        if len(prompts) == 1:
            assert far(answer.logits[0][0], slow[-1]) < TOLERANCE


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "qwen2_5_vl", "internvl-qwen2"])
def test_towers_that_are_not_followed_are_refused(name):
    with pytest.raises(ModelError, match=r"tower_attention needs one score .* rank by diversity"):
        apply(model_of(name), FULL.at([0], keep=Keep(0.4, rank="tower_attention")))


def test_ranks_that_cannot_be_read_are_refused():
    with pytest.raises(PlanError, match="layer 0 ranks by key_norm, which reads the layer before: there is none"):
        FULL.at([0], keep=Keep(0.4, rank="key_norm"))
    with pytest.raises(PlanError, match="no visual key is read in the layer before"):
        FULL.at([1], visible=Skip(), attention=Skip()).at([2], keep=Keep(0.4, rank="value_aware"))
    with pytest.raises(PlanError, match="which is of the vision tower: use it in layer 0"):
        FULL.at([1], keep=Keep(0.4, rank="tower_attention"))


@torch.no_grad()
def test_a_static_cache_that_would_hold_too_much_is_refused():
    model = model_of("llava")
    with apply(model, PLANS["keep"]), pytest.raises(ModelError, match="default dynamic cache"):
        model.generate(**FAMILIES["llava"].batch("one image"), cache_implementation="static", max_new_tokens=2)


@pytest.mark.parametrize("plan", ["recycle", "keep", "top", "skip"])
@torch.no_grad()
def test_a_layers_input_is_left_as_it_was(plan):
    """It may be held by others: hidden states handed out, a calibration's saved inputs."""
    model = FAMILIES["llava"].build()
    seen = []
    for layer in model.model.language_model.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[0].clone())))
    with apply(model, PLANS[plan]):
        model(**FAMILIES["llava"].batch("two images"))
    assert len(seen) == LAYERS
    for held, copy in seen:
        assert torch.equal(held, copy)
