"""Liveness over many random plans: a valid plan stays valid, and text comes out as in whole attention maps."""

from __future__ import annotations

import random

import pytest
import torch

from families import FAMILIES
from lookless import Filter, Full, Keep, LayerPlan, Neurons, Plan, Sink, Skip, Top, Window, apply
from lookless.cells import RANKS
from lookless.errors import PlanError
from maps import slow_logits
from test_cells import TOLERANCE, far, model_of, text_of
from tiny import LAYERS

DECODER_RANKS = [name for name, rank in RANKS.items() if rank.reads != "tower"]


def random_row(rng: random.Random, *, static: bool = False) -> LayerPlan:
    """A row in which any cell may be anything, the degenerate ones too; no rank is of the tower."""

    def rank() -> str:
        return "random" if static else rng.choice(DECODER_RANKS)

    def top() -> Top:
        return rng.choice([Top(0), Top(rng.random(), rank=rank()), Top(count=rng.randint(0, 9), rank=rank())])

    def keep() -> Keep:
        share = Keep(rng.random(), rank=rank(), recycle=rng.choice([0, 0, 0.5]))
        return rng.choice([Keep(0), share, share, Keep(count=rng.randint(0, 12), rank=rank())])

    def cell(*others):
        return rng.choice([Full(), Full(), *others])

    return LayerPlan(
        keep=cell(*[Full()] * 3, keep(), keep(), *([] if static else [Filter(cosine=2.0, norm=0.02)])),
        attention=cell(Skip(), Window(rng.randint(1, 9)), top()),
        ffn=cell(Skip(), Neurons(rng.uniform(0.1, 1), probe=0.3), top()),
        visible=cell(Skip(), Sink()),
        decode=cell(Skip(), top()),
    )


def random_plans(count: int, *, seed: int = 0, static: bool = False) -> list[Plan]:
    """Plans that are valid; those that are not are refused with one sentence."""
    rng, plans = random.Random(seed), []
    while len(plans) < count:
        try:
            plans.append(Plan(layers=tuple(random_row(rng, static=static) for _ in range(LAYERS))))
        except PlanError:
            continue
    return plans


def test_a_valid_plan_stays_valid():
    for plan in random_plans(1500):
        live = plan.live()
        assert live.live() == live


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_text_is_that_of_the_plan_as_it_stands(name):
    family, model = FAMILIES[name], model_of(name)
    kinds = ("one image", "padded left")
    for number, plan in enumerate(random_plans(60, seed=1)):
        arguments = family.batch(kinds[number % 2])
        text = text_of(family, arguments)
        slow = slow_logits(model, plan, arguments, family.visual_ids)[text]
        with apply(model, plan):
            assert far(model(**arguments, logits_to_keep=text).logits, slow) < TOLERANCE, f"plan {number}\n{plan}"
