"""A call that keeps some rows' logits: they are the stock model's, and the last layer computes no other text row."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from helpers.compare import MASKS, TOLERANCE, far
from helpers.families import FAMILIES, SPECIAL, model_of
from helpers.models import LAYERS
from helpers.plans import FULL, random_plans
from helpers.slow_reference import slow_logits
from lookless import apply, trace
from lookless.layer_plan import KEPT, LIVE, TEXT
from lookless.runtime.families import locate
from lookless.runtime.prompts import kept_rows
from lookless.runtime.readers import blind

LIVENESS = FULL.live()
CLOSE = 1e-5


def real_rows(arguments, kept) -> torch.Tensor:
    """Which rows are kept and no padding, bool ``[batch, sequence]``."""
    real = arguments["attention_mask"].bool()
    return real & kept_rows(kept, real.shape)


def counts(family, arguments) -> tuple[int, int]:
    """Rows of a batch, and those of text."""
    real = arguments["attention_mask"].bool()
    visual = torch.isin(arguments["input_ids"], torch.tensor(family.visual_ids))
    return int(real.sum()), int((real & ~visual).sum())


def held(cache) -> torch.Tensor:
    """What the last layer has cached: keys, or a state."""
    last = cache.layers[-1]
    return last.recurrent_states[0] if hasattr(last, "recurrent_states") else last.keys


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_are_stocks_and_no_other_row_ran(name):
    """One row, several and chosen ones; prompts alike, and of different lengths; the cache holds every row's keys."""
    family, model = FAMILIES[name], model_of(name)
    for kind in ("one image", "batch alike", "padded left"):
        arguments = family.batch(kind)
        length, (rows, _) = arguments["input_ids"].shape[1], counts(family, arguments)
        stock = DynamicCache(config=model.config.get_text_config())
        whole = model(**arguments, past_key_values=stock).logits
        for kept in (1, 3, torch.tensor([length - 3, length - 1])):
            wanted = real_rows(arguments, kept)
            cache = DynamicCache(config=model.config.get_text_config())
            with apply(model, LIVENESS) as handle, trace(model) as counted:
                told = model(**arguments, past_key_values=cache, logits_to_keep=kept).logits
            shown = kept_rows(kept, wanted.shape)
            assert far(told.flatten(0, 1)[wanted[shown]], whole[wanted]) < CLOSE, (kind, kept)
            ran = int(wanted.sum())
            assert counted.layers == [dict.fromkeys(("query", "key", "ffn"), rows)] * (LAYERS - 1) + [
                {"query": ran, "key": rows, "ffn": ran}
            ], (kind, kept)
            assert handle.read == "the rows whose logits are kept"
            if kind == "one image":
                assert far(held(cache), held(stock)) < CLOSE, kept


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_later_turns_and_chunks(name):
    family, model = FAMILIES[name], model_of(name)
    for second in ((4, "wide", 5), ("wide", 6)):
        first, turn, _ = family.turns(model, *second)
        logits, counted = [], None
        for plan in (FULL, LIVENESS):
            cache = DynamicCache(config=model.config.get_text_config())
            with apply(model, plan):
                model(**first, past_key_values=cache, logits_to_keep=1)
                with trace(model) as counted:
                    logits.append(model(**turn, past_key_values=cache, logits_to_keep=2).logits)
        assert far(logits[1], logits[0]) < CLOSE, second
        new = turn["input_ids"].shape[1]
        assert [row["query"] for row in counted.layers] == [new] * (LAYERS - 1) + [2]
        assert counted.layers[-1]["key"] == new


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_generate_says_the_same(name):
    family, model = FAMILIES[name], model_of(name)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "suppress_tokens": SPECIAL}
    for kind in ("two images", "padded left"):
        arguments = family.batch(kind)
        rows, _ = counts(family, arguments)
        stock = model.generate(**arguments, **options)
        with apply(model, LIVENESS), trace(model) as counted:
            assert torch.equal(model.generate(**arguments, **options), stock), kind
        prompts, steps = len(stock), stock.shape[1] - arguments["input_ids"].shape[1] - 1
        assert counted.layers[-1]["ffn"] == prompts * (1 + steps)
        assert counted.layers[-1]["key"] == rows + prompts * steps


@pytest.mark.skipif(not MASKS, reason="these forms of logits_to_keep are of later releases")
@torch.no_grad()
def test_rows_of_each_prompt():
    """As numbers and as a mask; rows that one prompt keeps are computed in all, so prompts alike stay one batch."""
    family, model = FAMILIES["llava"], model_of("llava")
    arguments = family.batch("batch alike")
    length = arguments["input_ids"].shape[1]
    numbers = torch.tensor([[length - 1, length - 2], [0, length - 1]])
    mask = kept_rows(numbers, arguments["input_ids"].shape)
    assert mask.sum(1).tolist() == [2, 2]
    for kept in (numbers, mask, numbers - length):
        stock = model(**arguments, logits_to_keep=kept).logits
        with apply(model, LIVENESS), trace(model) as counted:
            assert far(model(**arguments, logits_to_keep=kept).logits, stock) < CLOSE
        assert counted.layers[-1]["ffn"] == 2 * 3


@torch.no_grad()
def test_all_that_is_asked_for_is_there():
    """Labels, all logits, logits of an image, hidden states: every row of text ran, or every row."""
    family, model = FAMILIES["llava"], model_of("llava")
    arguments = family.batch("one image")
    rows, text = counts(family, arguments)
    for call, reason in (
        ({"labels": arguments["input_ids"]}, "every row: logits of visual rows are kept"),
        ({"logits_to_keep": 0}, "every row: logits of visual rows are kept"),
        ({"logits_to_keep": torch.tensor([7, rows - 1])}, "every row: logits of visual rows are kept"),
        ({"logits_to_keep": 1, "output_hidden_states": True}, "every row: the call hands out hidden states"),
    ):
        stock = model(**arguments, **call)
        with apply(model, LIVENESS) as handle, trace(model) as counted:
            told = model(**arguments, **call)
        assert counted.layers[-1]["ffn"] == text
        assert handle.read == reason
        words = ~torch.isin(arguments["input_ids"], torch.tensor(family.visual_ids))[0]
        same = words[-told.logits.shape[1] :] if told.logits.shape[1] != 2 else torch.tensor([False, True])
        assert far(told.logits[:, same], stock.logits[:, same]) < CLOSE
        for mine, its in zip(told.hidden_states or (), stock.hidden_states or (), strict=True):
            assert far(mine[:, words], its[:, words]) < CLOSE


@pytest.mark.parametrize("where", ["last layer", "norm", "norm's input", "decoder", "inner", "training"])
@torch.no_grad()
def test_who_reads_more_is_seen(where):
    """A hook on what the last layer makes finds all text there; one that looks at no row changes nothing."""
    family, model = FAMILIES["llava"], FAMILIES["llava"].build()
    arguments, located = family.batch("one image"), locate(model)
    _, text = counts(family, arguments)
    seen = []

    def look(module, inputs, output=None):
        value = inputs[0] if output is None else output
        seen.append(value if isinstance(value, torch.Tensor) else value.last_hidden_state)

    places = {"last layer": located.layers[-1], "norm": located.decoder.norm, "decoder": located.decoder}
    place = places.get(where, located.inner)
    hook = place.register_forward_hook(look)
    if where == "norm's input":
        hook.remove()
        hook = located.decoder.norm.register_forward_pre_hook(look)
    stock = model(**arguments, logits_to_keep=1).logits
    if where == "training":
        hook.remove()
        model.train()
    with apply(model, LIVENESS) as handle, trace(model) as counted:
        assert far(model(**arguments, logits_to_keep=1).logits, stock) < CLOSE
        assert counted.layers[-1]["ffn"] == text
        assert handle.read.startswith("every text row: the ")
        assert ("training mode" if where == "training" else "has a hook") in handle.read
        hook.remove()
        model.eval()
        words = ~torch.isin(arguments["input_ids"], torch.tensor(family.visual_ids))
        if where != "training":
            assert far(seen[1][words], seen[0][words]) < CLOSE
        place.register_forward_hook(blind(lambda *_: None))
        counted.clear()
        model(**arguments, logits_to_keep=1)
    assert counted.layers[-1]["ffn"] == 1


def test_gradients_are_stocks():
    family, model = FAMILIES["llava"], FAMILIES["llava"].build()
    arguments, found = family.batch("padded left"), []
    for plan in (FULL, LIVENESS):
        model.zero_grad()
        with apply(model, plan), trace(model) as counted:
            model(**arguments, logits_to_keep=1).logits.square().sum().backward()
        layers = locate(model).layers
        found.append([p.grad for layer in (layers[0], layers[-1]) for p in layer.parameters()])
    assert counted.layers[-1]["ffn"] == 4
    assert all(far(mine, its) < TOLERANCE for mine, its in zip(found[1], found[0], strict=True))


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_the_last_row_under_random_plans(name):
    family, model = FAMILIES[name], model_of(name)
    for number, plan in enumerate(random_plans(16, seed=2)):
        arguments = family.batch(("one image", "padded left")[number % 2])
        slow = slow_logits(model, plan, arguments, family.visual_ids)[:, -1]
        with apply(model, plan), trace(model) as counted:
            told = model(**arguments, logits_to_keep=1).logits[:, -1]
        assert far(told, slow) < TOLERANCE, f"plan {number}\n{plan}"
        assert plan.is_full or counted.layers[-1]["ffn"] == len(told)


def test_row_sets_of_a_call():
    """What a layer's sets of rows are in prompts that differ, one of which keeps a row that is padding in another."""
    from lookless.runtime.prompts import Prompts

    visual = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]).bool()
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    prompts = Prompts(visual, real)
    prompts.read_only(torch.tensor([1, 4]))
    assert [rows.tolist() for rows in prompts.rows(KEPT).prompts] == [[4], [1]]
    assert [rows.tolist() for rows in prompts.rows(TEXT).prompts] == [[0, 3, 4], [0, 1, 3]]
    assert prompts.rows(LIVE).count == 9
