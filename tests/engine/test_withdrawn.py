"""Layers that keep no visual keys: they are withdrawn from a layer on, or nobody reads them in one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from checkpoints import CHECKPOINTS, IMAGE, LAYERS
from engines import CLOSE, SEEN, gap, job, run, shown, withdrawn_plan
from lookless.serving.counters import COMPILED
from prompts import rounds
from stock import Reference

#: a plain decoder, and one that adds visual features behind its layers
FAMILIES = ("llava", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: Any, tmp_path_factory: Any) -> Any:
    """A folder with ``model`` and ``plan``, the reference, what is asked, and the plan."""
    checkpoint = CHECKPOINTS[request.param]
    folder = tmp_path_factory.mktemp(checkpoint.name)
    reference = Reference(checkpoint.save(folder / "model"))
    plan = withdrawn_plan(reference.geometry)
    plan.save_pretrained(folder / "plan")
    return folder, reference, rounds(checkpoint)[:1], plan


def test_what_transformers_says(made, tmp_path):
    """In one step, in chunks smaller than an image of requests that are put off, and as graphs."""
    folder, reference, asked, plan = made
    model, where = folder / "model", folder / "plan"
    whole, chunked, compiled = run(
        tmp_path,
        [
            job(model, asked, where),
            {
                **job(model, asked, where, max_num_batched_tokens=8, num_gpu_blocks_override=12, max_model_len=256),
                "tokens": 40,
            },
            job(model, asked, where, enforce_eager=False, skip_mm_profiling=True),
        ],
    )
    for answers in (whole, chunked, compiled):
        assert gap(answers, asked, reference, plan) <= CLOSE
    assert compiled["steps"][COMPILED]
    visual = sum(shown(answer["prompt"]).count(IMAGE) for answer in whole["rounds"][0])
    assert whole["counts"]["attention"]["skipped"] >= 4 * visual
    for counts in chunked["counts"].values():
        assert sum(counts.values()) > visual * LAYERS, "nothing was computed twice"


def test_every_part_of_the_plan_is_seen(made):
    """Otherwise the tests above would pass without it."""
    _, reference, (asked, *_), plan = made
    for without in (plan.at([1], visible=plan.layers[0].visible), plan.at([3], keep=plan.layers[0].keep)):
        prompt = asked[0]
        _, some = reference.logprobs(prompt, [50, 51], plan)
        _, others = reference.logprobs(prompt, [50, 51], without)
        assert (some - others).abs().max() > SEEN


def test_prefixes_are_not_shared(made, tmp_path):
    folder, *_ = made
    (answers,) = run(tmp_path, [job(folder / "model", [], folder / "plan", enable_prefix_caching=True)])
    told = r"cannot be served with prefix caching, together with a plan under which some layers keep text alone"
    assert sum(re.search(told, line) is not None for line in answers["error"].splitlines()) == 1, answers["error"]
