"""Qwen3.5 inside a real engine, whose gated delta rule a CPU runs in bfloat16 alone: a plan adds no error of its own.

The state of the rule is of the sequence: a row that came to it in another order would move everything behind it.
"""

from __future__ import annotations

import re

import pytest

from checkpoints import IMAGE, LAYERS, QWEN3_5
from engines import CLOSE, apart, gap, job, mixed_plan, run, shown
from lookless import Plan, Skip
from lookless.serving.counters import COMPILED
from prompts import rounds
from stock import Reference

#: of the rounding of bfloat16 as the stock model has it
ROUNDING = 4.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with ``model`` and ``plan``, what is asked, and the plan."""
    folder = tmp_path_factory.mktemp("qwen3_5")
    reference = Reference(QWEN3_5.save(folder / "model"))
    plan = mixed_plan(reference.geometry)  # attention in layers 1 and 3, which have keys
    plan.save_pretrained(folder / "plan")
    return folder, reference, rounds(QWEN3_5), plan


def test_what_transformers_says(made, tmp_path):
    folder, reference, asked, plan = made
    model, where = folder / "model", folder / "plan"
    stock, planned, chunked, compiled = run(
        tmp_path,
        [
            job(model, asked[:1], None, dtype="bfloat16"),
            job(model, asked[:1], where, dtype="bfloat16"),
            job(model, asked[:1], where, dtype="bfloat16", max_num_batched_tokens=8),
            # Its warm-up has no image, whose words in a prompt are those of the published tokenizer.
            job(model, asked[:1], where, dtype="bfloat16", enforce_eager=False, skip_mm_profiling=True),
        ],
    )
    rounding = gap(stock, asked[:1], reference, None)
    assert rounding > CLOSE
    for answers in (planned, chunked, compiled):
        assert gap(answers, asked[:1], reference, plan) <= ROUNDING * rounding
    assert compiled["steps"][COMPILED]
    moved = max(apart(planned, stock)[0])
    print(f"rounding moves log-probabilities by {rounding:.2f}, the plan by {moved:.2f}")
    assert moved > ROUNDING * rounding
    visual = sum(shown(answer["prompt"]).count(IMAGE) for answer in planned["rounds"][0])
    skipped = {operator: counts["skipped"] for operator, counts in planned["counts"].items()}
    assert skipped["attention"] == 2 * visual
    assert skipped["ffn"] >= 2 * visual
    for counts in planned["counts"].values():
        assert sum(counts.values()) == visual * LAYERS


def test_a_delta_rule_that_would_not_read_is_refused(made, tmp_path):
    folder, reference, *_ = made
    Plan.full(reference.geometry).at([2], attention=Skip()).save_pretrained(tmp_path / "plan")
    (answers,) = run(tmp_path, [job(folder / "model", [], tmp_path / "plan", dtype="bfloat16")])
    told = r"layer 2 of the plan has attention: .* is a gated delta rule, whose kernel in vLLM writes and reads"
    assert sum(re.search(told, line) is not None for line in answers["error"].splitlines()) == 1, answers["error"]
