"""Whole engines over vLLM's GPU backends, whose kernels are slow ones of our own: all that runs there but for them."""

from __future__ import annotations

import pytest

from checkpoints import CHECKPOINTS
from engines import CLOSE, gap, job, mixed_plan, run, withdrawn_plan
from prompts import rounds
from stock import Reference

#: each backend under another family
BACKENDS = {"FLASH_ATTN": "llava", "TRITON_ATTN": "qwen3_vl"}


@pytest.mark.parametrize(("backend", "family"), BACKENDS.items(), ids=BACKENDS)
def test_what_transformers_says(backend, family, tmp_path):
    """In chunks smaller than an image, with prefixes that are cached; and where layers keep text alone."""
    checkpoint = CHECKPOINTS[family]
    model = checkpoint.save(tmp_path / "model")
    reference, asked = Reference(model), rounds(checkpoint)
    plans = {"mixed": mixed_plan(reference.geometry), "withdrawn": withdrawn_plan(reference.geometry)}
    for name, plan in plans.items():
        plan.save_pretrained(tmp_path / name)
    options = {"max_num_batched_tokens": 24, "attention_backend": backend}
    mixed, withdrawn = run(
        tmp_path,
        [
            job(model, asked, tmp_path / "mixed", enable_prefix_caching=True, **options),
            job(model, asked[:1], tmp_path / "withdrawn", **options),
        ],
    )
    assert gap(mixed, asked, reference, plans["mixed"]) <= CLOSE
    assert sum(answer["cached"] > 0 for answer in mixed["rounds"][1]) >= 3
    assert gap(withdrawn, asked[:1], reference, plans["withdrawn"]) <= CLOSE
    assert {answers["backend"] for answers in (mixed, withdrawn)} == {backend}
