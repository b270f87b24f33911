"""Run by tests in a process of its own: vLLM's engines, one after another, and what they answer.

Usage: ``engine.py JOB.json ANSWERS.pt``. A job is a list of engines::

    {"options": {...of vllm.LLM...}, "rounds": [[[text, images], ...], ...], "tokens": 4, "words": [...],
     "version": null or what vLLM is to call itself, "variables": {...} of the environment,
     "small": null or up to how many weights a projection is held fused, too}

Of each engine there is either ``error``, what it said when it refused to start, or ``rounds`` of answers, ``counts`` of
rows and of ``steps`` of the plug-in, the ``rows`` that were seen at the modules themselves, the ``hash`` that finds
compiled graphs again, the attention ``backend``, and the number of ``modules`` where they are in one process.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import vllm
from vllm.config import get_layers_from_vllm_config
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.layers.attention import Attention

import gpu_kernels
from lookless.serving import projections
from lookless.serving.counters import ensure_folder, read, read_steps
from prompts import Prompt

#: alike for all engines: little memory, and log-probabilities of the whole vocabulary
OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 512,
    "block_size": 32,
    "enable_prefix_caching": False,
    "limit_mm_per_prompt": {"image": 2, "video": 1},
    "kv_cache_memory_bytes": 2**26,
    "max_logprobs": -1,
    "disable_log_stats": False,
    "seed": 0,
}


def answered(job: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(job["variables"])
    small = projections.SMALL if job["small"] is None else job["small"]
    with (
        mock.patch.object(vllm, "__version__", job["version"] or vllm.__version__),
        mock.patch.object(projections, "SMALL", small),
    ):
        try:
            llm = vllm.LLM(**{**OPTIONS, **job["options"]})
        except Exception as problem:
            return {"error": str(problem)}
        finally:
            for name in job["variables"]:
                del os.environ[name]
    sampling = vllm.SamplingParams(
        temperature=0, max_tokens=job["tokens"], ignore_eos=True, logprobs=-1, allowed_token_ids=job["words"]
    )
    rows, before, steps = _watched(llm), _counts(), read_steps(ensure_folder())
    rounds = [[_told(out) for out in llm.generate(_asked(prompts), sampling)] for prompts in job["rounds"]]
    counts = {o: {k: n - before[o][k] for k, n in kinds.items()} for o, kinds in _counts().items()}
    steps = {how: count - steps[how] for how, count in read_steps(ensure_folder()).items()}
    config = llm.llm_engine.vllm_config
    backend = {each.attn_backend.get_name() for each in get_layers_from_vllm_config(config, Attention).values()}
    seen = {"counts": counts, "steps": steps, "rows": rows, "hash": config.compute_hash(), "backend": " ".join(backend)}
    if config.parallel_config.world_size == 1:
        seen["modules"] = llm.apply_model(lambda model: len(list(model.modules())))[0]
    return {"rounds": rounds, **seen}


def _asked(prompts: list[list[Any]]) -> list[dict[str, Any]]:
    return [_seen(Prompt(*prompt)) for prompt in prompts]


def _seen(prompt: Prompt) -> dict[str, Any]:
    shown = {"image": prompt.pictures, "video": prompt.films}
    data = {kind: items for kind, items in shown.items() if items}
    return {"prompt": prompt.text, **({"multi_modal_data": data} if data else {})}


def _told(out: Any) -> dict[str, Any]:
    (answer,) = out.outputs
    size = len(answer.logprobs[0])
    logprobs = torch.tensor([[step[i].logprob for i in range(size)] for step in answer.logprobs])
    return {
        "prompt": list(out.prompt_token_ids),
        "tokens": list(answer.token_ids),
        "logprobs": logprobs,
        "cached": out.num_cached_tokens,
    }


def _watched(llm: Any) -> dict[str, list[int]]:
    """By operator, the rows that each layer runs from now on; zeros where layers are in processes of their own."""
    parts = {"attention": ("self_attn.o_proj", "linear_attn"), "ffn": ("mlp",)}
    config = llm.llm_engine.vllm_config
    rows = {operator: [0] * config.model_config.hf_text_config.num_hidden_layers for operator in parts}
    if config.parallel_config.world_size > 1:
        return rows

    def watch(model: Any) -> None:
        for index, layer in enumerate(model.get_language_model().model.layers):
            named = dict(layer.named_modules())
            for operator, names in parts.items():
                (part,) = (named[name] for name in names if name in named)
                part.register_forward_pre_hook(_adds(rows[operator], index), with_kwargs=True)

    llm.apply_model(watch)
    return rows


def _adds(rows: list[int], index: int) -> Any:
    def add(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows[index] += len(arguments[0] if arguments else named["hidden_states"])

    return add


def _counts() -> dict[str, dict[str, int]]:
    """Of all engines of this process so far."""
    return read(ensure_folder())


def main() -> None:
    jobs, results = json.loads(Path(sys.argv[1]).read_text()), []
    gpu_kernels.install()  # for jobs that ask for a GPU's backend
    for job in jobs:
        results.append(answered(job))
        gc.collect()
        cleanup_dist_env_and_memory()
    torch.save(results, sys.argv[2])


if __name__ == "__main__":
    main()
