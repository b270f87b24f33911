"""Starting engines from a test: a job out, answers back."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from checkpoints import IMAGE, VIDEO, WORDS
from lookless import Keep, Plan, Skip
from lookless.fitted import Linear, Mean
from lookless.weights import Weights
from prompts import Prompt

TOKENS = 4
#: Seconds in which nothing at all happens, after which a test gives up: no bound on speed.
IDLE_S = 600
#: of log-probabilities in float32, over the whole vocabulary
CLOSE = 1e-4
#: what a plan that does nothing would not reach
SEEN = 0.1
_HERE = Path(__file__).parent


def mixed_plan(geometry: Any) -> Plan:
    """FFN alone, attention alone, both, and a layer in between that is whole."""
    return Plan.full(geometry).at([0, 3], ffn=Skip()).at([1, 3], attention=Skip())


def withdrawn_plan(geometry: Any) -> Plan:
    """One layer's visual keys go unread, and two layers on there are none; before and between them other cells."""
    blind = Plan.full(geometry).at([0], ffn=Skip()).at([1], visible=Skip(), attention=Skip())
    return blind.at([2], attention=Skip()).at([3], keep=Keep(0))


def linear(hidden: int, rank: int, *, seed: int = 0) -> Linear:
    """A map that moves a hidden state as far as an operator does."""
    numbers = np.random.default_rng(seed)
    down, up = numbers.normal(size=(rank, hidden)) / hidden**0.5, numbers.normal(size=(hidden, rank)) / rank**0.5
    return Linear(Weights.of(numbers.normal(size=hidden) / 2, down, up))


def mean(hidden: int, *, seed: int = 0) -> Mean:
    return Mean(Weights.of(np.random.default_rng(seed).normal(size=hidden)))


def fitted_plan(geometry: Any) -> Plan:
    """Each fitted cell in each column, beside a whole operator, a skip and one another; in the last layer, too, whose
    visual rows a prompt that ends in an image is answered from."""
    hidden = geometry.hidden
    return (
        Plan.full(geometry)
        .at([0], ffn=linear(hidden, 8))
        .at([1], attention=linear(hidden, 4, seed=1))
        .at([2], attention=mean(hidden, seed=2), ffn=Skip())
        .at([3], attention=linear(hidden, 1, seed=3), ffn=mean(hidden, seed=4))
        .at([4], attention=Skip(), ffn=linear(hidden, 3, seed=5))
    )


def job(
    model: Path,
    asked: list[list[Prompt]],
    plan: Path | None = None,
    *,
    words: list[int] = WORDS,
    version: str | None = None,
    variables: dict[str, str] | None = None,
    small: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One engine that may answer with ``words``; projections up to ``small`` are held fused, too; ``options`` are those
    of ``vllm.LLM``."""
    if plan is not None:
        options["additional_config"] = {"lookless": {"plan": str(plan)}}
    return {
        "options": {"model": str(model), **options},
        "rounds": asked,
        "tokens": TOKENS,
        "words": words,
        "version": version,
        "variables": variables or {},
        "small": small,
    }


def environment(folder: Path) -> dict[str, str]:
    """For a process with engines: nothing from the network, one thread each, and caches shared by one run of tests."""
    caches = folder.parent / "caches"
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "VLLM_LOGGING_LEVEL": "ERROR",
        **{f"VLLM_{name}": str(IDLE_S) for name in _TIMEOUTS},
    }


#: vLLM's own, in seconds, that a busy machine would trip
_TIMEOUTS = ("ENGINE_READY_TIMEOUT_S", "CHAT_TEMPLATE_RENDER_TIMEOUT", "EXECUTE_MODEL_TIMEOUT_SECONDS")


def finished(process: subprocess.Popen[bytes], idle: float = IDLE_S) -> int:
    """The exit status of ``process``, awaited for as long as it or a child of it computes.

    Raises:
        TimeoutError: none of them did for ``idle`` seconds; they are killed.
    """
    root, until, spent = psutil.Process(process.pid), time.monotonic() + idle, 0.0
    while (code := process.poll()) is None:
        if abs((now := _cpu_s(root)) - spent) >= 1:  # less where a child ended
            until, spent = time.monotonic() + idle, now
        if time.monotonic() > until:
            for each in [*root.children(recursive=True), root]:
                each.kill()
            raise TimeoutError(f"the process did nothing for {idle:.0f} s")
        time.sleep(0.2)
    return code


def _cpu_s(root: psutil.Process) -> float:
    """Of the process and of its children that live."""
    spent = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [root, *root.children(recursive=True)]:
            times = each.cpu_times()
            spent += times.user + times.system
    return spent


def run(folder: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of each job's engine; all run in one process, one after another."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, answers = folder / "jobs.json", folder / "answers.pt"
    asked.write_text(json.dumps(jobs))
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(_HERE / "engine.py"), str(asked), str(answers)],
            env={**environment(folder), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        code = finished(process)
    assert code == 0, "\n".join(log.read_text().splitlines()[-40:])
    return torch.load(answers)


def gap(answers: dict[str, Any], asked: list[list[Prompt]], reference: Any, plan: Plan | None) -> float:
    """The largest difference of any log-probability from transformers', over all prompts, steps and words."""
    assert "error" not in answers, answers["error"]
    worst = 0.0
    for prompts, told in zip(asked, answers["rounds"], strict=True):
        for prompt, answer in zip(prompts, told, strict=True):
            ids, logprobs = reference.logprobs(prompt, answer["tokens"], plan)
            assert shown(ids) == shown(answer["prompt"]), "vLLM's processor and that of transformers disagree"
            worst = max(worst, (logprobs - answer["logprobs"]).abs().max().item())
    print(f"largest difference from transformers {worst:.1e}")  # seen with pytest -rP
    return worst


def shown(ids: list[int]) -> list[int]:
    """``ids`` with one for all visual tokens: for InternVL's frames vLLM takes those of videos, and transformers those
    of images."""
    return [IMAGE if each == VIDEO else each for each in ids]


def apart(some: dict[str, Any], others: dict[str, Any]) -> list[list[float]]:
    """For each round and prompt, the largest difference of two engines' log-probabilities of the first word."""
    return [
        [(a["logprobs"][0] - b["logprobs"][0]).abs().max().item() for a, b in zip(x, y, strict=True)]
        for x, y in zip(some["rounds"], others["rounds"], strict=True)
    ]
