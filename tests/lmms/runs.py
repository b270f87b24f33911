"""Runs of lmms-eval in this process: as its command line does them, without indexing its own thousand tasks."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager


def run(
    model: str,
    tasks: Sequence[str],
    include: Path,
    out: Path,
    *,
    batch_size: int = 1,
    use_cache: Path | None = None,
    **args: Any,
) -> Any:
    """lmms-eval's results, with samples.

    Args:
        model: the name after ``--model``.
        tasks: names of tasks.
        include: the folder they are in.
        out: for files that tasks write.
        batch_size: prompts answered together.
        use_cache: lmms-eval's folder of cached answers.
        args: what ``--model_args`` says.
    """
    return evaluator.simple_evaluate(
        model,
        model_args=",".join(f"{key}={value}" for key, value in ({"device_map": "cpu"} | args).items()),
        device="cpu",
        batch_size=batch_size,
        tasks=list(tasks),
        task_manager=TaskManager("WARNING", include_path=str(include), include_defaults=False, model_name=model),
        gen_kwargs="max_new_tokens=8",  # a model that has not seen such a prompt may not come to an end
        bootstrap_iters=0,
        use_cache=None if use_cache is None else str(use_cache),
        cli_args=Namespace(output_path=str(out), process_with_media=False),
    )


def answers(results: Any, task: str) -> list[str]:
    """What the model said, in the order of the rows, before filters."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] if isinstance(sample["resps"][0], list) else sample["resps"][0] for sample in samples]


def prompts(results: Any, task: str) -> list[str]:
    """What it was asked, in that order."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["arguments"][0] for sample in samples]


def shares(results: Any) -> dict[str, float]:
    """Of the stock model's rows, those that ran, by operator; empty for a run without a plan."""
    found = results.get("throughput", {})  # not there when no answer was generated
    return {name: found[key] for name in ("query", "key", "ffn") if (key := f"avg_lookless_{name}_rows") in found}
