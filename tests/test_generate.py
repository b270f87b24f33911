"""What generate cuts and joins: prompts in chunks, drafts behind a prompt, and the answer scored in one call."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from helpers.compare import TOLERANCE, far
from helpers.families import FAMILIES, SPECIAL
from helpers.models import batch, prompt
from helpers.plans import BY_RANK, FULL, OTHERS, SKIP
from lookless import Filter, Keep, Skip, Top, apply
from lookless.errors import ModelError

LLAVA = FAMILIES["llava"]


@pytest.fixture(scope="module")
def model():
    return LLAVA.build()


@pytest.fixture(scope="module")
def assistant():
    return LLAVA.build()


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
SIZES = ({}, {"prefill_chunk_size": 9})


@cache
def sees_in_chunks() -> bool:
    """Whether the stock model sees an image in a prompt taken in chunks; with earlier transformers it ignores it."""
    model, arguments = LLAVA.build(), LLAVA.batch("one image")
    whole, chunked = (model.generate(**arguments, **GREEDY, **LOGITS, **size).logits[0] for size in SIZES)
    return far(chunked, whole) < TOLERANCE


@pytest.mark.parametrize(
    ("plan", "size"), [*((plan, size) for plan in CHUNKS for size in (4, 9, 200)), ("skip", 1), ("withdraw", 1)]
)
@torch.no_grad()
def test_a_prompt_in_chunks_is_the_prompt(model, plan, size):
    """Where a cell does to each visual token what it does to it alone; 9 leaves one token for the last chunk."""
    if not sees_in_chunks():
        pytest.skip("the stock model of this transformers ignores images in chunks")
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
        if sees_in_chunks():
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
