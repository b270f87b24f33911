"""Every family inside a real engine: under a plan it says what transformers says under ``lookless.apply``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from checkpoints import CHECKPOINTS, IMAGE, LAYERS
from engines import CLOSE, SEEN, apart, gap, job, mixed_plan, run, shown
from lookless import Plan, Skip
from prompts import Prompt, rounds
from stock import Reference


@dataclass
class Ran:
    """One family's engines and what they answered."""

    reference: Reference
    plan: Plan
    asked: list[list[Prompt]]
    stock: dict[str, Any]
    planned: dict[str, Any]
    chunked: dict[str, Any]


@pytest.fixture(scope="module", params=CHECKPOINTS.values(), ids=CHECKPOINTS)
def ran(request: Any, tmp_path_factory: Any) -> Ran:
    checkpoint = request.param
    folder = tmp_path_factory.mktemp(checkpoint.name)
    model = checkpoint.save(folder / "model")
    reference, asked = Reference(model), rounds(checkpoint)
    plan = mixed_plan(reference.geometry)
    plan.save_pretrained(folder / "plan")
    engines = [
        job(model, asked[:1]),
        job(model, asked[:1], folder / "plan"),
        # Chunks smaller than an image, and a second round that finds the first one's blocks.
        job(model, asked, folder / "plan", max_num_batched_tokens=8, enable_prefix_caching=True),
    ]
    return Ran(reference, plan, asked, *run(folder, engines))


def test_without_a_plan(ran):
    assert gap(ran.stock, ran.asked[:1], ran.reference, None) <= CLOSE


def test_requests_of_every_shape_in_one_step(ran):
    assert gap(ran.planned, ran.asked[:1], ran.reference, ran.plan) <= CLOSE


def test_chunks_and_cached_prefixes(ran):
    assert gap(ran.chunked, ran.asked, ran.reference, ran.plan) <= CLOSE
    cached = [answer["cached"] for answer in ran.chunked["rounds"][1]]
    assert sum(tokens > 0 for tokens in cached) >= 3, f"the second round found {cached} tokens in the cache"


def test_a_plan_that_does_nothing_would_be_seen(ran):
    (differences,) = apart(ran.planned, ran.stock)
    for prompt, difference in zip(ran.asked[0], differences, strict=True):
        if prompt.images or prompt.videos:
            assert difference > SEEN, prompt.text
        else:
            assert difference <= CLOSE, prompt.text


def test_rows_are_not_computed(ran):
    """At the modules themselves. How far the last layers are spared, besides, depends on how prompts are batched."""
    answers = ran.planned["rounds"][0]
    visual = sum(shown(answer["prompt"]).count(IMAGE) for answer in answers)
    # The last token is said and not read.
    tokens = sum(len(answer["prompt"]) + len(answer["tokens"]) - 1 for answer in answers)
    for operator, computed in ran.planned["rows"].items():
        assert ran.stock["rows"][operator] == [tokens] * LAYERS
        for layer, (rows, asked, live) in enumerate(
            zip(computed, ran.plan.layers, ran.plan.live().layers, strict=True)
        ):
            least, most = (tokens - visual * (getattr(row, operator) == Skip()) for row in (live, asked))
            assert least <= rows <= most, f"{operator} of layer {layer}"
        counts = ran.planned["counts"][operator]
        assert counts["skipped"] == tokens * LAYERS - sum(computed)
        assert counts["skipped"] + counts["computed"] == visual * LAYERS
