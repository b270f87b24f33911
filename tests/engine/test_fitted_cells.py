"""Fitted cells inside an engine: it says what transformers says under the same plan, or is refused with its numbers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from checkpoints import CHECKPOINTS
from engines import CLOSE, SEEN, fitted_plan, gap, job, linear, run
from lookless import Plan, Skip
from lookless.plan import FILE_NAME, WEIGHTS_NAME
from prompts import rounds
from stock import Reference

#: a plain decoder, and one that norms queries and keys and adds visual features behind its layers
FAMILIES = ("llava", "qwen3_vl")
#: of the rounding of bfloat16 as the stock model has it
ROUNDING = 4.0


@pytest.fixture(scope="module")
def llava(tmp_path_factory: Any) -> Any:
    """A folder with ``model`` and ``plan``, the reference, what is asked, and the plan."""
    return _made("llava", tmp_path_factory)


def _made(name: str, tmp_path_factory: Any) -> tuple[Path, Reference, Any, Plan]:
    checkpoint = CHECKPOINTS[name]
    folder = tmp_path_factory.mktemp(name)
    reference = Reference(checkpoint.save(folder / "model"))
    plan = fitted_plan(reference.geometry)
    plan.save_pretrained(folder / "plan")
    return folder, reference, rounds(checkpoint), plan


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_says(name, tmp_path_factory):
    """Every shape of request in one step; then chunks smaller than an image, and prefixes that are cached."""
    folder, reference, asked, plan = _made(name, tmp_path_factory)
    model, where = folder / "model", folder / "plan"
    whole, chunked = run(
        folder,
        [
            job(model, asked[:1], where),
            job(model, asked, where, max_num_batched_tokens=8, enable_prefix_caching=True),
        ],
    )
    assert gap(whole, asked[:1], reference, plan) <= CLOSE
    assert gap(chunked, asked, reference, plan) <= CLOSE
    assert sum(answer["cached"] > 0 for answer in chunked["rounds"][1]) >= 3
    for prompt, answer in zip(asked[0], whole["rounds"][0], strict=True):
        if prompt.images:
            for column in ("attention", "ffn"):
                _, without = reference.logprobs(prompt, answer["tokens"], _skipping(plan, column))
                moved = (without - answer["logprobs"]).abs().max()
                assert moved > SEEN, f"without the maps of {column} {prompt.text!r} would be answered alike"


def _skipping(plan: Plan, column: str) -> Plan:
    """``plan`` with nothing in place of the operator in ``column``."""
    fitted = [index for index, row in enumerate(plan.layers) if getattr(row, column).affine]
    return plan.at(fitted, **{column: Skip()})


def test_tensor_parallel(llava, tmp_path):
    """Each rank holds the maps whole and adds them once."""
    folder, reference, asked, plan = llava
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "max_num_batched_tokens": 48}
    (answers,) = run(tmp_path, [job(folder / "model", asked, folder / "plan", **options)])
    assert gap(answers, asked, reference, plan) <= CLOSE


def test_half_precision_and_compiled(llava, tmp_path):
    """In bfloat16 the maps add no error of their own; and steps with an image are a graph of their own."""
    folder, reference, asked, plan = llava
    model, where = folder / "model", folder / "plan"
    stock, half, compiled = run(
        tmp_path,
        [
            job(model, asked[:1], None, dtype="bfloat16"),
            job(model, asked[:1], where, dtype="bfloat16"),
            job(model, asked[:1], where, enforce_eager=False),
        ],
    )
    assert gap(half, asked[:1], reference, plan) <= ROUNDING * gap(stock, asked[:1], reference, None)
    assert gap(compiled, asked[:1], reference, plan) <= CLOSE


def _lost(plan: Path) -> None:
    (plan / WEIGHTS_NAME).unlink()


def _changed(plan: Path) -> None:
    content = bytearray((plan / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (plan / WEIGHTS_NAME).write_bytes(content)


def _of_another(plan: Path) -> None:
    hidden = Plan.from_pretrained(plan).weights[0].width
    Plan.full(5).at([1], ffn=linear(hidden, 2, seed=99)).save_pretrained(plan / "other")
    shutil.copy(plan / "other" / WEIGHTS_NAME, plan / WEIGHTS_NAME)


def _too_wide(plan: Path) -> None:
    hidden = Plan.from_pretrained(plan).weights[0].width
    Plan.full(5).at([1], ffn=linear(2 * hidden, 2)).save_pretrained(plan)


REFUSED = {
    "lost": (_lost, rf"{WEIGHTS_NAME}, with the numbers .* cannot be read: No such file"),
    "changed": (_changed, r"are not those that were saved: their sha256 is"),
    "of another plan": (_of_another, r"of a fitted cell of the plan are not beside it"),
    "too wide": (_too_wide, r"is for hidden states of width 256, and the model's are of width 128"),
}


def test_refused_with_its_numbers(llava, tmp_path):
    """Before any weight is loaded, and in one sentence."""
    folder, *_ = llava
    jobs = []
    for name, (damage, _) in REFUSED.items():
        shutil.copytree(folder / "plan", tmp_path / name)
        damage(tmp_path / name)
        assert (tmp_path / name / FILE_NAME).exists()
        jobs.append(job(folder / "model", [], tmp_path / name))
    for (name, (_, told)), answer in zip(REFUSED.items(), run(tmp_path, jobs), strict=True):
        assert "error" in answer, f"{name}: not refused"
        assert sum(re.search(told, line) is not None for line in answer["error"].splitlines()) == 1, answer["error"]
