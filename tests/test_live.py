"""Liveness over many random plans: a valid plan stays valid, and text comes out as in whole attention maps."""

from __future__ import annotations

import pytest
import torch

from helpers.compare import TOLERANCE, far, text_logits, text_of
from helpers.families import FAMILIES, model_of
from helpers.plans import random_plans
from helpers.slow_reference import slow_logits
from lookless import apply


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
            assert far(text_logits(model, arguments, text), slow) < TOLERANCE, f"plan {number}\n{plan}"
