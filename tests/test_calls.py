"""How a call is made does not change what it computes: threads, what the caller reads, and the model without a head."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch.nn import functional as F

from helpers.compare import TOLERANCE, far
from helpers.families import FAMILIES, SPECIAL
from helpers.models import LAYERS, batch, prompt
from helpers.models import VISUAL as V
from helpers.slow_reference import slow_logits
from lookless import Filter, Full, Keep, Neurons, Plan, Sink, Skip, Top, Window, apply, trace
from lookless.errors import ModelError

FULL = Plan.full(LAYERS)
SKIP = FULL.at([0, 2], attention=Skip()).at([1, 2], ffn=Skip())
FAST = FULL.at([2], keep=Keep(0.3, rank="last_query_attention"))
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
    arguments, last = LLAVA.batch("one image"), {"query": 12, "key": 12 + V, "ffn": 12}
    for rows, expected in (
        (1, last),
        (7, last),  # the words behind the image
        (torch.tensor([0, 27]), last),
        (0, {"query": 12 + V, "key": 12 + V, "ffn": 12 + V}),
        (8, {"query": 12 + V, "key": 12 + V, "ffn": 12 + V}),
        (torch.tensor([[20, 27]]), {"query": 12 + V, "key": 12 + V, "ffn": 12 + V}),
        (torch.ones(1, 28, dtype=torch.bool), {"query": 12 + V, "key": 12 + V, "ffn": 12 + V}),
    ):
        with apply(model, SKIP), trace(model) as counted:
            logits = model(**arguments, logits_to_keep=rows).logits
        assert counted.layers[-1] == expected, rows
        slow = slow_logits(model, SKIP, arguments, LLAVA.visual_ids)
        assert far(logits.flatten(0, -2)[-1], slow[0, -1]) < TOLERANCE
    with apply(model, SKIP), trace(model) as counted:
        model.generate(**arguments, max_new_tokens=1, pad_token_id=0)
    assert counted.layers[-1] == last


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


# masks


def causal_mask(*runs: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """``[1, 1, n, n]``: sequences of these lengths one behind the other, each causal; of padding, where negative."""
    n = sum(map(abs, runs))
    allowed, at = torch.zeros(n, n, dtype=torch.bool), 0
    for run in runs:
        if run > 0:
            allowed[at : at + run, at : at + run] = torch.ones(run, run).tril().bool()
        at += abs(run)
    allowed = allowed[None, None]
    return allowed if dtype == torch.bool else torch.zeros(1, 1, n, n).masked_fill(~allowed, torch.finfo(dtype).min)


BY_RANK = {
    rank: FULL.at([2], keep=Keep(0.4, rank=rank)).at([3], attention=Top(0.3, rank=rank))
    for rank in ("last_query_attention", "instruction_attention", "mutual_attention", "text_raters", "value_aware")
}
OTHERS = {
    "skip": SKIP,
    "window": FULL.at([0, 1, 3], attention=Window(5)),
    "blind": FULL.at([1], visible=Skip()),
    "sink": FULL.at([1], visible=Sink()),
    "neurons": FULL.at([1, 2], ffn=Neurons(0.3, probe=0.3)),
}


@pytest.mark.parametrize("plan", {**BY_RANK, **OTHERS})
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@torch.no_grad()
def test_a_mask_of_every_row_is_what_a_mask_of_padding_is(model, plan, dtype):
    """As a static cache has it made."""
    plan = {**BY_RANK, **OTHERS}[plan]
    arguments = LLAVA.batch("padded left")
    real = arguments["attention_mask"].bool()
    wide = torch.cat([causal_mask(-int((~r).sum()), int(r.sum()), dtype=dtype) for r in real])
    with apply(model, plan):
        expected = model(**arguments).logits[real]
        assert far(model(**{**arguments, "attention_mask": wide}).logits[real], expected) < TOLERANCE


@pytest.mark.parametrize("plan", BY_RANK)
@torch.no_grad()
def test_ranks_do_not_see_the_padding_of_a_static_cache(model, plan):
    arguments = LLAVA.arguments((5, "image", 9), (2, "image", 4))
    plan = Plan(layers=tuple(row.model_copy(update={"keep": Full()}) for row in BY_RANK[plan].layers))  # none dropped
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "suppress_tokens": SPECIAL}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    with apply(model, plan):
        static, dynamic = (
            model.generate(**arguments, **options, **kind).logits for kind in ({"cache_implementation": "static"}, {})
        )
    assert far(torch.stack(static), torch.stack(dynamic)) < TOLERANCE


@pytest.mark.parametrize("plan", BY_RANK)
@torch.no_grad()
def test_ranks_read_through_a_mask_of_the_callers_own(model, plan):
    """Words of another prompt before this one, that nobody of this one may read, change nothing."""
    alone, before = LLAVA.batch("one image"), torch.arange(1, 7)[None]
    n = alone["input_ids"].shape[1]
    joined = {
        "input_ids": torch.cat((before, alone["input_ids"]), 1),
        "pixel_values": alone["pixel_values"],
        "position_ids": torch.cat((torch.arange(6), torch.arange(n)))[None],
        "attention_mask": causal_mask(6, n),
    }
    with apply(model, BY_RANK[plan]):
        expected = model(**alone).logits
        assert far(model(**joined).logits[:, 6:], expected) < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_what_a_mask_adds_to_scores_is_added(attention):
    """A layer in which nothing is spared but queries that nobody reads is the stock layer; ranks feel the mask."""
    model, arguments = LLAVA.build(attention), LLAVA.batch("one image")
    n = arguments["input_ids"].shape[1]
    bias = -3 * torch.rand(1, 1, n, n, generator=torch.Generator().manual_seed(0))
    masked = {**arguments, "attention_mask": causal_mask(n, dtype=torch.float32) + bias}
    with apply(model, FULL.at([LAYERS - 1], attention=Skip(), ffn=Skip())):
        planned = model(**masked, logits_to_keep=7).logits
    assert far(planned, model(**masked, logits_to_keep=7).logits) < TOLERANCE
    steered = causal_mask(n, dtype=torch.float32)
    steered[..., -1, 5:15] = -1e4  # the last word does not look at the first ten visual tokens
    with apply(model, FULL.at([2], keep=Keep(count=6, rank="last_query_attention"))):
        cache = model(**{**arguments, "attention_mask": steered}, use_cache=True).past_key_values
    assert cache.layers[2].places[0].tolist() == [*range(5), *range(15, n)]


@pytest.mark.parametrize("plan", ["skip", "window", "blind"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_packed_sequences_do_not_read_each_other(name, plan):
    family = FAMILIES[name]
    model = family.build()
    one, other = family.arguments((5, "image", 7)), family.arguments((3, "wide", 4), seed=1)
    along = {"input_ids": 1, "mm_token_type_ids": 1}
    packed = {k: torch.cat((one[k], other[k]), along.get(k, 0)) for k in one if k != "attention_mask"}
    starts = [torch.arange(a["input_ids"].shape[1]) for a in (one, other)]
    positions = torch.cat(starts)[None]
    if family.mrope:
        grids = ("input_ids", "mm_token_type_ids", "image_grid_thw")
        rope = [model.model.get_rope_index(**{k: a[k] for k in grids})[0] for a in (one, other)]
        positions = torch.cat((positions[None], torch.cat(rope, -1)))
    with apply(model, OTHERS[plan]):
        expected = torch.cat([model(**a, use_cache=False).logits for a in (one, other)], 1)
        assert far(model(**packed, position_ids=positions, use_cache=False).logits, expected) < TOLERANCE


@torch.no_grad()
def test_packed_sequences_are_not_ranked_as_one(model):
    arguments = {k: torch.cat((v, v), int(k == "input_ids")) for k, v in LLAVA.batch("one image").items()}
    arguments["attention_mask"] = None
    arguments["position_ids"] = torch.arange(28).repeat(2)[None]
    for plan in (FAST, OTHERS["sink"], OTHERS["neurons"]):
        with apply(model, plan), pytest.raises(ModelError, match=r"position_ids that restart .* one prompt a row"):
            model(**arguments, use_cache=False)


# what generate cuts and joins


CHUNKS = {"skip": SKIP, "window": OTHERS["window"], "withdraw": FULL.at([3], keep=Keep(0))}
WHOLE = {
    "keep": FULL.at([1], keep=Keep(0.5, rank="random")),
    "top": FULL.at([1], attention=Top(0.5, rank="random")),
    "sink": OTHERS["sink"],
    "neurons": OTHERS["neurons"],
    "blind": OTHERS["blind"],
    "decode": FULL.at([2], decode=Skip()),
    "filter": FULL.at([2], keep=Filter()),
}
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "suppress_tokens": SPECIAL}
LOGITS = {"return_dict_in_generate": True, "output_logits": True}


@pytest.mark.parametrize(
    ("plan", "size"), [*((plan, size) for plan in CHUNKS for size in (4, 9, 200)), ("skip", 1), ("withdraw", 1)]
)
@torch.no_grad()
def test_a_prompt_in_chunks_is_the_prompt(model, plan, size):
    """Where a cell does to each visual token what it does to it alone; 9 leaves one token for the last chunk."""
    arguments = LLAVA.batch("one image")
    with apply(model, CHUNKS[plan]):
        expected = torch.stack(model.generate(**arguments, **GREEDY, **LOGITS).logits)
        chunked = torch.stack(model.generate(**arguments, **GREEDY, **LOGITS, prefill_chunk_size=size).logits)
    assert far(chunked, expected) < TOLERANCE


@pytest.mark.parametrize("plan", WHOLE)
@torch.no_grad()
def test_a_chunk_is_not_taken_for_a_prompt(model, plan):
    arguments, text = LLAVA.batch("one image"), batch(prompt(20))
    config = copy.deepcopy(model.generation_config)
    config.prefill_chunk_size = 9
    with apply(model, WHOLE[plan]):
        for options in ({"prefill_chunk_size": 9}, {"generation_config": config}):
            with pytest.raises(ModelError, match=r"prefill_chunk_size=9 cuts this prompt of 28 tokens .* \(.*\) needs"):
                model.generate(**arguments, **GREEDY, **options)
        expected = model.generate(**arguments, **GREEDY)
        assert torch.equal(model.generate(**arguments, **GREEDY, prefill_chunk_size=28), expected)
        assert torch.equal(model.generate(**text, **GREEDY, prefill_chunk_size=9), model.generate(**text, **GREEDY))
    with apply(model, OTHERS["window"]), pytest.raises(ModelError, match="prefill_chunk_size=1 cuts"):
        model.generate(**arguments, **GREEDY, prefill_chunk_size=1)
    assert "generate" not in model.__dict__


ASSISTED = {**BY_RANK, "skip": SKIP, "filter": FULL.at([2, 3], keep=Filter(cosine=2.0, norm=0.02))}


@pytest.mark.parametrize("plan", ASSISTED)
@torch.no_grad()
def test_a_draft_behind_the_prompt_is_not_the_question(model, assistant, plan):
    """Drafts from the prompt itself, and from another model: always the answers of the plan by itself."""
    for seed in range(6):
        arguments = LLAVA.arguments((5, "image", 9), seed=seed)
        arguments["input_ids"][0, -3:] = arguments["input_ids"][0, -7:-4]  # so that there is something to look up
        with apply(model, ASSISTED[plan]):
            expected = model.generate(**arguments, **GREEDY)
            assert torch.equal(model.generate(**arguments, **GREEDY, prompt_lookup_num_tokens=4), expected)
            assert torch.equal(model.generate(**arguments, **GREEDY, assistant_model=assistant), expected)


@pytest.mark.parametrize("plan", BY_RANK)
@torch.no_grad()
def test_an_answer_is_scored_as_it_was_written(model, plan):
    """Prompt and answer in one call, with the logits kept that the answer was read from."""
    arguments = LLAVA.batch("one image")
    with apply(model, BY_RANK[plan]):
        answer = model.generate(**arguments, **GREEDY, **LOGITS)
        whole = {"input_ids": answer.sequences, "pixel_values": arguments["pixel_values"]}
        logits = model(**whole, logits_to_keep=6).logits[0, :-1]
    assert far(logits, torch.cat(answer.logits)) < TOLERANCE


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
