"""Every method on every family, on one runtime: the fast path is the slow reference."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from helpers.compare import TOLERANCE, far, needs, text_logits, text_of
from helpers.families import FAMILIES, model_of
from helpers.slow_reference import slow_logits
from helpers.slow_tower import tower_maps
from lookless import apply
from lookless.methods import METHODS
from lookless.ranks import RANKS
from lookless.runtime.families import FAMILIES as SUPPORTED
from lookless.runtime.families import geometry_of

KINDS = ("one image", "two images", "padded left")


def reads_tower(plan) -> bool:
    return any(RANKS[rank].reads == "tower" for row in plan.layers for rank in row.ranks)


def made(method, model, family):
    """The method's plan at its paper's relative depth, and whether the family's tower can be asked what it needs."""
    plan = METHODS[method].sample(geometry_of(model))
    needs(model, plan)
    if reads_tower(plan) and SUPPORTED[model.config.model_type].capture is None:
        pytest.skip(f"{family.name}: refused by name, as tests/test_cells.py checks")
    return plan


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_prefill(name, method):
    family, model = FAMILIES[name], model_of(name)
    plan = made(method, model, family)
    if reads_tower(plan):
        model = family.build("eager")
    for kind in KINDS:
        arguments = family.batch(kind)
        text = text_of(family, arguments)
        tower = tower_maps(name, model, arguments) if reads_tower(plan) else None
        slow = slow_logits(model, plan, arguments, family.visual_ids, tower=tower)[text]
        with apply(model, plan):
            assert far(text_logits(model, arguments, text), slow) < TOLERANCE, kind


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_second_turn(name, method):
    family, model = FAMILIES[name], model_of(name)
    plan = made(method, model, family)
    if reads_tower(plan):
        pytest.skip("the slow reference knows the tower of one call only")
    first, turn, whole = family.turns(model, 4, "wide", 5)
    cache = DynamicCache(config=model.config.get_text_config())
    with apply(model, plan):
        model(**first, past_key_values=cache)
        fast = model(**turn, past_key_values=cache).logits
    length, total = first["input_ids"].shape[1], whole["input_ids"].shape[1]
    slow = slow_logits(model, plan, whole, family.visual_ids, [length, total])[:, length:]
    text = text_of(family, {**turn, "attention_mask": torch.ones_like(turn["input_ids"])})
    assert far(fast[text], slow[text]) < TOLERANCE
