"""Attention masks of the caller's own: padding in other words, static caches, packed sequences."""

from __future__ import annotations

import pytest
import torch

from helpers.compare import TOLERANCE, far
from helpers.families import FAMILIES, SPECIAL
from helpers.models import LAYERS
from helpers.plans import BY_RANK, FAST, FULL, OTHERS
from lookless import Full, Keep, Plan, Skip, apply
from lookless.errors import ModelError

LLAVA = FAMILIES["llava"]


@pytest.fixture(scope="module")
def model():
    return LLAVA.build()


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
    assert cache.layers[2].positions[0].tolist() == [*range(5), *range(15, n)]


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
