"""Every family in the engines that ``test_settings`` runs one in: compiled, put off, in two processes, in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoints import CHECKPOINTS, IMAGE, LAYERS
from engines import CLOSE, gap, job, mixed_plan, run, shown
from lookless.serving.counters import COMPILED
from prompts import rounds
from stock import Reference

FAMILIES = [name for name in CHECKPOINTS if name != "llava"]  # which has each setting alone
#: of the rounding of bfloat16 as the stock model has it
ROUNDING = 4.0


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: Any, tmp_path_factory: Any) -> Any:
    """A folder with ``model`` and ``plan``, the reference, what is asked, and the plan."""
    checkpoint = CHECKPOINTS[request.param]
    folder = tmp_path_factory.mktemp(checkpoint.name)
    reference = Reference(checkpoint.save(folder / "model"))
    plan = mixed_plan(reference.geometry)
    plan.save_pretrained(folder / "plan")
    return folder, reference, rounds(checkpoint)[:1], plan


def test_what_transformers_says(made, tmp_path):
    """Compiled, of requests that are put off, in chunks; over two processes; and in bfloat16 as near as stock is."""
    folder, reference, asked, plan = made
    model, where = folder / "model", folder / "plan"
    small = {"num_gpu_blocks_override": 12, "max_model_len": 256, "max_num_batched_tokens": 64}
    compiled, stock, half, parallel = run(
        tmp_path,
        [
            {**job(model, asked, where, enforce_eager=False, skip_mm_profiling=True, **small), "tokens": 40},
            job(model, asked, None, dtype="bfloat16"),
            job(model, asked, where, dtype="bfloat16"),
            job(
                model,
                asked,
                where,
                tensor_parallel_size=2,
                distributed_executor_backend="mp",
                max_num_batched_tokens=48,
            ),
        ],
    )
    assert gap(compiled, asked, reference, plan) <= CLOSE
    assert compiled["steps"][COMPILED]
    visual = sum(shown(answer["prompt"]).count(IMAGE) for answer in compiled["rounds"][0])
    for counts in compiled["counts"].values():
        assert sum(counts.values()) > visual * LAYERS, "nothing was computed twice"
    assert gap(parallel, asked, reference, plan) <= CLOSE
    rounding = gap(stock, asked, reference, None)
    assert rounding > CLOSE
    assert gap(half, asked, reference, plan) <= ROUNDING * rounding
