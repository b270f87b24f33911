"""Other engines: compiled, in bfloat16, over two processes, short of memory, named by a checkpoint, or refused.

LLaVA-1.5 runs in all of them with every run of the tests; the other families in the first four with the slow ones.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import CHECKPOINTS, IMAGE, LAYERS
from engines import CLOSE, SEEN, apart, gap, job, mixed_plan, run, shown
from lookless import Keep, Plan, Skip
from lookless.reference import NAMES, question
from lookless.serving.counters import COMPILED, FEW
from lookless.serving.shipped import servable
from prompts import Prompt, rounds
from stock import Reference

#: of bfloat16's own rounding, seen without a plan; the plan moves three times as much, and rounds a third as much
ROUNDING = 4.0
FIRST_WORD = 7  # of the shipped models' vocabularies, behind all special tokens
LLAVA = "llava"


def saved(name: str, folder: Path) -> Any:
    """A folder with ``model`` and ``plan``, the reference, what is asked, and the plan."""
    model = CHECKPOINTS[name].save(folder / "model")
    reference = Reference(model)
    plan = mixed_plan(reference.geometry)
    plan.save_pretrained(folder / "plan")
    return folder, reference, rounds(CHECKPOINTS[name]), plan


@pytest.fixture(
    scope="module", params=[LLAVA, *(pytest.param(n, marks=pytest.mark.slow) for n in CHECKPOINTS if n != LLAVA)]
)
def family(request: Any, tmp_path_factory: Any) -> Any:
    return saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: Any) -> Any:
    return saved(LLAVA, tmp_path_factory.mktemp(LLAVA))


def test_compiled(family, tmp_path):
    """Steps with an image are a graph of their own, but for a chunk without text; a second start finds it again."""
    folder, reference, asked, plan = family
    # vLLM's dummy prompt of Qwen3-VL has its published tokens, which the tiny tokenizers have not
    compiled = {"enforce_eager": False, "max_num_batched_tokens": 64, "skip_mm_profiling": True}
    first, second = run(tmp_path, [job(folder / "model", asked, folder / "plan", **compiled)] * 2)
    for answers in (first, second):
        assert gap(answers, asked, reference, plan) <= CLOSE
        ran = {how: count for how, count in answers["steps"].items() if count}
        assert ran.pop(COMPILED) >= 5
        assert set(ran) <= {FEW}
    assert first["hash"] == second["hash"]


def test_requests_that_are_put_off(family, tmp_path):
    """Where the cache is too small for all, a request loses its blocks and is computed again, its answer so far too."""
    folder, reference, asked, plan = family
    small = job(folder / "model", asked[:1], folder / "plan", num_gpu_blocks_override=12, max_model_len=256)
    (answers,) = run(tmp_path, [{**small, "tokens": 40}])
    assert gap(answers, asked[:1], reference, plan) <= CLOSE
    visual = sum(shown(answer["prompt"]).count(IMAGE) for answer in answers["rounds"][0])
    for counts in answers["counts"].values():
        assert sum(counts.values()) > visual * LAYERS, "nothing was computed twice"


def test_half_precision(family, tmp_path):
    """A plan adds no error of its own: both engines are as far from float32 as rounding takes them."""
    folder, reference, asked, plan = family
    stock, planned = run(
        tmp_path, [job(folder / "model", asked[:1], p, dtype="bfloat16") for p in (None, folder / "plan")]
    )
    rounding = gap(stock, asked[:1], reference, None)
    assert rounding > CLOSE
    assert gap(planned, asked[:1], reference, plan) <= ROUNDING * rounding
    moved = max(apart(planned, stock)[0])
    print(f"rounding moves log-probabilities by {rounding:.2f}, the plan by {moved:.2f}")
    assert moved > ROUNDING * rounding


def test_full_plan_and_a_plan_the_checkpoint_names(llava, tmp_path):
    folder, reference, asked, plan = llava
    Plan.full(reference.geometry).save_pretrained(tmp_path / "full")
    named = tmp_path / "named"
    shutil.copytree(folder / "model", named)
    shutil.copytree(folder / "plan", named / "plan")
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps({**config, "lookless": {"plan": "plan"}}))
    stock, full, by_checkpoint = run(
        tmp_path,
        [
            job(folder / "model", asked[:1]),
            job(folder / "model", asked[:1], tmp_path / "full"),
            job(named, asked[:1]),
        ],
    )
    for a, b in zip(stock["rounds"][0], full["rounds"][0], strict=True):
        assert torch.equal(a["logprobs"], b["logprobs"])
    assert gap(by_checkpoint, asked[:1], reference, plan) <= CLOSE
    assert max(apart(by_checkpoint, stock)[0]) > SEEN
    assert len({answers["hash"] for answers in (stock, full, by_checkpoint)}) == 3


def test_projections_too_large_to_be_held_twice(llava, tmp_path):
    """Decode steps run the two parts, as steps with an image do."""
    folder, reference, asked, plan = llava
    large, held = run(tmp_path, [job(folder / "model", asked[:1], folder / "plan", small=n) for n in (0, None)])
    assert gap(large, asked[:1], reference, plan) <= CLOSE
    assert large["modules"] < held["modules"]


def test_tensor_parallel(family, tmp_path):
    folder, reference, asked, plan = family
    (answers,) = run(
        tmp_path,
        [
            job(
                folder / "model",
                asked,
                folder / "plan",
                tensor_parallel_size=2,
                distributed_executor_backend="mp",
                max_num_batched_tokens=48,
            )
        ],
    )
    assert gap(answers, asked, reference, plan) <= CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_shipped_models(name, tmp_path):
    """The reference models, asked questions of their own tasks."""
    model = Path(servable(name, tmp_path / "model"))
    reference = Reference(model)
    plan = Plan.full(reference.geometry).at([2, 5, 6, 9], attention=Skip()).at([3, 6, 8], ffn=Skip())
    plan.save_pretrained(tmp_path / "plan")
    asked = [[_own(reference, task) for task in ("attribute", "counting", "text")]]
    words = list(range(reference.model.config.get_text_config().vocab_size))[FIRST_WORD:]
    engines = [job(model, asked, p, words=words, max_model_len=1024) for p in (None, tmp_path / "plan")]
    stock, planned = run(tmp_path, engines)
    assert gap(stock, asked, reference, None) <= CLOSE
    assert gap(planned, asked, reference, plan) <= CLOSE


def _own(reference: Reference, task: str) -> Prompt:
    _, text, _ = question(task, "test", 0)
    content = [{"type": "image"}, {"type": "text", "text": text}]
    chat = [{"role": "user", "content": content}]
    return Prompt(reference.processor.apply_chat_template(chat, add_generation_prompt=True), [(task, 0)])


REFUSED = {
    "pipeline parallel": ({"pipeline_parallel_size": 2}, r"cannot be served with pipeline parallelism"),
    "speculative": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
        r"cannot be served with speculative decoding",
    ),
    "offloaded": ({"cpu_offload_gb": 1}, r"cannot be served with weights offloaded to the CPU"),
    "fetched layer by layer": ({"offload_group_size": 2}, r"cannot be served with weights offloaded to the CPU"),
    "another backend": ({"attention_backend": "FLEX_ATTENTION"}, r"does not know the attention backend FLEX_ATTENTION"),
    "graphs that replay the model": (
        {"variables": {"VLLM_USE_BREAKABLE_CUDAGRAPH": "1"}},
        r"cannot be served with breakable CUDA graphs",
    ),
    "another vLLM": ({"version": "0.33.1"}, r"vLLM 0\.33\.1; the plug-in is written for 0\.32\."),
    "tokens are dropped": ({"plan": "keep"}, r"layer 2 of the plan has keep: .*"),
    "another architecture": ({"plan": "other"}, r"the plan has 7 layers and the model has 5"),
    "no such plan": ({"plan": "nowhere"}, r"nowhere"),
    "a key it does not know": ({"additional_config": {"lookless": {"plans": "x"}}}, r"it wants .*PLAN_DIR"),
}


def test_refused(llava, tmp_path):
    """Before any weight is loaded, and in one sentence."""
    folder, reference, *_ = llava
    Plan.full(reference.geometry).at([2], keep=Keep(0.5, rank="random")).save_pretrained(tmp_path / "keep")
    Plan.full(7).at([2], ffn=Skip()).save_pretrained(tmp_path / "other")
    jobs = []
    for options, _ in REFUSED.values():
        where = None if "additional_config" in options else folder / "plan"
        where = tmp_path / options["plan"] if "plan" in options else where
        jobs.append(job(folder / "model", [], where, **{k: v for k, v in options.items() if k != "plan"}))
    for (name, (_, told)), answer in zip(REFUSED.items(), run(tmp_path, jobs), strict=True):
        assert "error" in answer, f"{name} was not refused"
        # vLLM's configuration is pydantic's, which puts a title above the sentence and an address below it.
        assert sum(re.search(told, line) is not None for line in answer["error"].splitlines()) == 1, answer["error"]
