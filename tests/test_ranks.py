"""Ranks where tokens are all alike, as an image of one colour gives them: nothing is chosen twice, nothing is lost."""

from __future__ import annotations

import pytest
import torch

from lookless import Keep
from lookless.ranks import RANKS
from lookless.runtime.prompts import Prompts
from lookless.runtime.ranks import RANKERS, recycle, select
from lookless.runtime.view import View

VISUAL = 24


def alike(wanted: int) -> View:
    prompts = Prompts(torch.tensor([[False, *[True] * VISUAL, False]]), None)
    states = torch.ones(VISUAL + 2, 6)
    tower = torch.zeros(VISUAL)
    return View(0, prompts, states, None, None, tower, wanted, 0)


def test_each_rank_of_a_plan_has_its_function():
    assert list(RANKERS) == list(RANKS)


@pytest.mark.parametrize("rank", ["diversity", "random", "tower_attention", "tower_attention_then_diversity"])
@pytest.mark.parametrize("wanted", [1, 5, VISUAL - 1])
def test_as_many_as_wanted_and_none_twice(rank, wanted):
    rows = select(Keep(count=wanted, rank=rank), alike(wanted))
    assert len(rows) == len(set(rows.tolist())) == wanted
    assert set(rows.tolist()) <= set(range(1, VISUAL + 1))


def test_all_or_none():
    assert select(Keep(count=99, rank="random"), alike(99)).tolist() == list(range(1, VISUAL + 1))
    assert select(Keep(0), alike(0)).tolist() == []


@pytest.mark.parametrize("rank", ["diversity", "random", "tower_attention", "tower_attention_then_diversity"])
def test_merging_tokens_that_are_all_alike(rank):
    cell = Keep(count=2, rank=rank, recycle=1.0)
    kept = select(cell, alike(2)).tolist()
    places, states = recycle(cell, alike(2))
    assert len(places) == len(set(places.tolist()) - set(kept)) == 22 // 10 + 1
    assert torch.equal(states, torch.ones(3, 6))  # a cluster without a member would have no mean


def test_diversity_takes_the_odd_one_out():
    view = alike(2)
    view.hidden[7] = torch.tensor([-1.0, 1, -1, 1, -1, 1])
    assert 7 in select(Keep(count=2, rank="diversity"), view).tolist()
