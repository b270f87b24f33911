"""Plans for the tiny models: every cell and every rank, and random ones."""

from __future__ import annotations

import random

import numpy as np

from helpers.models import LAYERS, TEXT
from lookless import Filter, Full, Keep, LayerPlan, Neurons, Plan, Sink, Skip, Top, Window
from lookless.errors import PlanError
from lookless.fitted import Linear, Mean
from lookless.ranks import RANKS
from lookless.weights import Weights

FULL = Plan.full(LAYERS)
HIDDEN = TEXT["hidden_size"]


def mean(seed: int = 0) -> Mean:
    return Mean(Weights.of(np.random.default_rng(seed).normal(size=HIDDEN)))


def linear(rank: int, seed: int = 0) -> Linear:
    constant, down, up = (np.random.default_rng(seed).normal(size=s) for s in (HIDDEN, (rank, HIDDEN), (HIDDEN, rank)))
    return Linear(Weights.of(constant, down / 8, up))


#: operators skipped, in each combination
SKIPPED = {
    "attention": FULL.at([0, 2, 3], attention=Skip()),
    "ffn": FULL.at([1, 2, 4], ffn=Skip()),
    "freeze": FULL.at([1, 2], attention=Skip(), ffn=Skip()),
    "mixed": FULL.at([0, 1], attention=Skip()).at([1, 3], ffn=Skip()),
    "everything": FULL.at(range(LAYERS), attention=Skip(), ffn=Skip()),
}
IN_DECODER = [name for name, rank in RANKS.items() if rank.reads != "tower"]
OF_TOWER = [name for name, rank in RANKS.items() if rank.reads == "tower"]

STATIC = {
    "skip": FULL.at([0, 2], attention=Skip()).at([1, 2], ffn=Skip()),
    "window": FULL.at([0, 1, 3], attention=Window(5)),
    "neurons": FULL.at([1, 2], ffn=Neurons(0.3, probe=0.3)),
    "sink": FULL.at([1], visible=Sink()).at([2], visible=Sink(), attention=Skip()),
    "blind": FULL.at([1], visible=Skip())
    .at([2], visible=Skip(), attention=Skip())
    .at([3], visible=Skip(), attention=Window(4)),
    "before": FULL.at([0, 1, 3], before=Skip()).at([1, 2], attention=Skip(), ffn=Skip()).at([3], attention=Skip()),
    "before, and blind": FULL.at([1, 2, 4], before=Skip(), visible=Skip()).at([2], attention=mean(), ffn=mean(1)),
    "withdraw": FULL.at([3], keep=Keep(0)),
    "withdraw at once": FULL.at([0], keep=Keep(0)),
    "keep": FULL.at([2], keep=Keep(0.5, rank="random")).at([3], keep=Keep(count=3, rank="random")),
    "keep, then skip": FULL.at([1], keep=Keep(0.5, rank="random")).at([2, 3], attention=Skip()).at([3], ffn=Skip()),
    "keep, then window": FULL.at([1], keep=Keep(0.6, rank="random"), attention=Window(4), ffn=Neurons(0.5)),
    "top of none": FULL.at([1], attention=Top(0)).at([2], ffn=Top(0.0, rank="random")),
    "top": FULL.at([1], attention=Top(0.4, rank="random")).at([2], ffn=Top(0.3, rank="random")),
    "recycle": FULL.at([2], keep=Keep(0.3, rank="random", recycle=0.8)),
    "fitted": FULL.at([0, 2], attention=mean()).at([1], attention=linear(3)).at([1, 3], ffn=mean(1), visible=Sink()),
    "keep, then fitted": FULL.at([1], keep=Keep(0.5, rank="random"), ffn=linear(2))
    .at([2], attention=linear(4))
    .at([3], keep=Keep(count=5, rank="attention_norm"), visible=Skip(), attention=mean(), ffn=linear(5)),
}
RANKED = {
    **{
        f"keep by {rank}": FULL.at([2], keep=Keep(0.5, rank=rank)).at([4], keep=Keep(count=2, rank=rank))
        for rank in IN_DECODER
    },
    **{
        f"top by {rank}": FULL.at([1, 3], attention=Top(0.4, rank=rank)).at([2, 3], ffn=Top(0.25, rank=rank))
        for rank in IN_DECODER
    },
    "recycle by attention": FULL.at([2], keep=Keep(0.3, rank="last_query_attention", recycle=0.5)),
    "recycle by diversity": FULL.at([2], keep=Keep(0.3, rank="diversity", recycle=0.8)),
    "recycle by both": FULL.at([2], keep=Keep(0.3, rank="attention_then_diversity", recycle=0.8)),
}
DECODE = {
    "decode": FULL.at([1], decode=Skip()).at([2], decode=Top(0.5, rank="key_norm")),
    "filter": FULL.at([2, 3, 4], keep=Filter(cosine=2.0, norm=0.02, exit_cosine=0.9)),
    "decode, asked by few": FULL.at([1, 2], decode=Skip(), attention=Top(0.3, rank="random")),
}
PLANS = {**STATIC, **RANKED}

SKIP = FULL.at([0, 2], attention=Skip()).at([1, 2], ffn=Skip())
FAST = FULL.at([2], keep=Keep(0.3, rank="last_query_attention"))
#: ranks that need to know which row reads for the prompt
BY_RANK = {
    rank: FULL.at([2], keep=Keep(0.4, rank=rank)).at([3], attention=Top(0.3, rank=rank))
    for rank in ("last_query_attention", "instruction_attention", "mutual_attention", "text_raters", "value_aware")
}
#: cells without such a rank
OTHERS = {
    "skip": SKIP,
    "window": FULL.at([0, 1, 3], attention=Window(5)),
    "blind": FULL.at([1], visible=Skip()),
    "sink": FULL.at([1], visible=Sink()),
    "neurons": FULL.at([1, 2], ffn=Neurons(0.3, probe=0.3)),
}


def random_row(rng: random.Random, *, static: bool = False) -> LayerPlan:
    """A row in which any cell may be anything, the degenerate ones too; no rank is of the tower."""

    def rank() -> str:
        return "random" if static else rng.choice(IN_DECODER)

    def top() -> Top:
        return rng.choice([Top(0), Top(rng.random(), rank=rank()), Top(count=rng.randint(0, 9), rank=rank())])

    def keep() -> Keep:
        share = Keep(rng.random(), rank=rank(), recycle=rng.choice([0, 0, 0.5]))
        return rng.choice([Keep(0), share, share, Keep(count=rng.randint(0, 12), rank=rank())])

    def cell(*others):
        return rng.choice([Full(), Full(), *others])

    return LayerPlan(
        keep=cell(*[Full()] * 3, keep(), keep(), *([] if static else [Filter(cosine=2.0, norm=0.02)])),
        attention=cell(Skip(), Window(rng.randint(1, 9)), top(), mean(), linear(2)),
        ffn=cell(Skip(), Neurons(rng.uniform(0.1, 1), probe=0.3), top(), mean(1), linear(3)),
        visible=cell(Skip(), Sink()),
        decode=cell(Skip(), top()),
        before=cell(Skip()),
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
