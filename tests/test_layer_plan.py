"""The work that a row leaves for a layer: what is counted at the modules, cached, and computed in whole maps.

Every attention, FFN, visible and decode cell with every other.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from transformers import DynamicCache

from helpers.compare import TOLERANCE, far, text_of
from helpers.families import FAMILIES, model_of
from helpers.models import LAYERS
from helpers.plans import linear, mean
from helpers.slow_reference import slow_logits
from lookless import Full, Keep, LayerPlan, Neurons, Plan, Sink, Skip, Top, Window, apply, trace
from lookless.cells import Affine
from lookless.layer_plan import LIVE, TEXT, VISUAL, AttentionPart, RowSet

SOME, FEW = Top(0.5, rank="random"), Top(count=2, rank="random")
ROWS = [
    LayerPlan(attention=attention, ffn=ffn, visible=visible, decode=decode)
    for attention, ffn, visible, decode in product(
        (Full(), Skip(), Window(4), SOME, Top(0), linear(2)),
        (Full(), Skip(), Neurons(0.4), FEW, Top(0), mean()),
        (Full(), Skip(), Sink()),
        (Full(), Skip(), FEW),
    )
]
KEEP = Keep(0.7, rank="random")


def by_token(row: LayerPlan, visual: int, alive: int) -> dict[str, int]:
    """How many visual tokens query, are key rows, pass the FFN and are cached: the cells, read once more."""

    def part(cell) -> int:
        if isinstance(cell, Top):
            return 0 if cell.is_none else min(alive, cell.count or round(cell.ratio * visual))
        return 0 if isinstance(cell, Skip | Neurons | Affine) else alive

    query = part(row.attention)
    return {
        "query": query,
        "key": alive if query or row.visible != Skip() else 0,
        "ffn": part(row.ffn),
        "cached": 0 if row.visible == Skip() else part(row.decode),
    }


@pytest.mark.parametrize("keeps", [False, True])
@torch.no_grad()
def test_every_cell_with_every_other(keeps):
    family, model = FAMILIES["llava"], model_of("llava")
    arguments = family.batch("one image")
    text = text_of(family, arguments)
    visual, words = int((~text).sum()), int(text.sum())
    for first in range(0, len(ROWS), LAYERS - 1):
        rows = ROWS[first : first + LAYERS - 1]
        rows += [LayerPlan()] * (LAYERS - len(rows))
        rows[1] = rows[1].model_copy(update={"keep": KEEP}) if keeps else rows[1]
        plan, cache = Plan(layers=tuple(rows)), DynamicCache(config=model.config.get_text_config())
        with apply(model, plan), trace(model) as counted:
            fast = model(**arguments, past_key_values=cache).logits  # of all rows: no work is dead
        slow = slow_logits(model, plan, arguments, family.visual_ids)
        assert far(fast[text], slow[text]) < TOLERANCE, str(plan)
        for index, (row, alive) in enumerate(zip(rows, plan.alive(visual), strict=True)):
            wanted = {name: words + count for name, count in by_token(row, visual, int(alive)).items()}
            assert row.work.cached.size(text=words, visual=visual, alive=alive) == wanted["cached"], row
            assert cache.layers[index].keys.shape[-2] == wanted.pop("cached"), row
            assert counted.layers[index] == wanted == plan.rows(visual, words)[index], row


def test_text_and_visual_tokens_are_apart_where_they_attend_to_different_keys():
    def parts(**cells):
        return LayerPlan(**cells).work.attention

    assert parts() == (AttentionPart(LIVE, LIVE),)
    assert parts(attention=Skip()) == parts(attention=Top(0)) == (AttentionPart(TEXT, LIVE),)
    assert parts(attention=SOME) == (AttentionPart(RowSet("all", SOME), LIVE),)
    assert parts(attention=Window(3)) == (AttentionPart(TEXT, LIVE), AttentionPart(VISUAL, LIVE, Window(3)))
    assert parts(visible=Skip()) == (AttentionPart(TEXT, TEXT), AttentionPart(VISUAL, LIVE))
    assert parts(visible=Skip(), attention=Skip()) == (AttentionPart(TEXT, TEXT),)
    assert parts(visible=Sink(), attention=Skip()) == (AttentionPart(TEXT, LIVE, is_sink=True),)


def test_a_choice_is_made_once():
    work = LayerPlan(attention=SOME, ffn=SOME, decode=FEW).work
    assert work.choices == (SOME, FEW)
    assert LayerPlan(decode=SOME, visible=Skip()).work.choices == ()
