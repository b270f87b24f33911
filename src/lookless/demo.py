"""The whole of lookless on the reference model: calibrate, plan, apply, measure, for every task."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from . import files, flops, report
from .calibration import calibrate
from .data import Samples, load_data
from .evaluation import Estimate, evaluate
from .loading import Loaded, load_model
from .measure import time_prefill
from .methods import v_skip
from .models import locate
from .plan import Plan
from .reference import TASKS
from .scores import Scores
from .version import __version__

LAYERS = 7  # the paper's 19 of 32, on 12 layers
CALIBRATION_SAMPLES = 20
TEST_SAMPLES = 100
TIMED_PROMPTS = 8  # one batch; a single prompt of so small a model times Python more than arithmetic
SHOWN = 8  # test images in the figure of each task


class Row(BaseModel):
    """One task: what its plan costs and saves. ``flops_kept`` is a fraction of the dense prefill's."""

    model_config = ConfigDict(frozen=True)

    task: str
    skipped_layers: tuple[int, ...]
    accuracy_dense: Estimate
    accuracy_plan: Estimate
    retention: Estimate | None
    fidelity: Estimate
    flops_kept: float
    prefill_dense_ms: float
    prefill_plan_ms: float


class Demo(BaseModel):
    """Everything the demo measured, and on what."""

    model_config = ConfigDict(frozen=True)

    lookless_version: str = __version__
    torch_version: str
    transformers_version: str
    machine: str
    threads: int
    dtype: str
    visual_tokens: int
    text_tokens: float
    timed_prompts: int = TIMED_PROMPTS
    calibration_samples: int = CALIBRATION_SAMPLES
    test_samples: int
    rows: tuple[Row, ...]


def run_demo(out: Path, *, test_samples: int = TEST_SAMPLES, say: Callable[[str], None] = lambda _: None) -> Demo:
    """Run the demo, write plans, scores, ``demo.json`` and figures under ``out``, and return what was measured.

    ``say`` is told what is being done, a sentence at a time.
    """
    out.mkdir(parents=True, exist_ok=True)
    say("loading the reference model")
    loaded = load_model("reference")
    scores: dict[str, Scores] = {}
    plans: dict[str, Plan] = {}
    rows = []
    visual = text = 0.0
    for task in TASKS:
        say(f"{task}: calibrating on {CALIBRATION_SAMPLES} images")
        scores[task] = calibrate(loaded, load_data(f"reference:{task}", split="calibration", limit=CALIBRATION_SAMPLES))
        scores[task].save(out / task / "scores.json")
        plans[task] = v_skip(scores[task], layers=LAYERS)
        plans[task].save_pretrained(out / task / "plan")
        say(f"{task}: answering {test_samples} test questions, dense and under the plan")
        test = load_data(f"reference:{task}", split="test", limit=test_samples)
        row, visual, text = _measure(loaded, task, plans[task], test, out)
        rows.append(row)
    say("drawing")
    report.save_figure(report.profile_figure(scores, plans), out / "visual_information_gain.png")
    demo = Demo(
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        machine=f"{platform.machine()}, {platform.system()}",
        threads=torch.get_num_threads(),
        dtype=str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
        visual_tokens=int(visual),
        text_tokens=round(text, 1),
        test_samples=test_samples,
        rows=tuple(rows),
    )
    files.write_text(out / "demo.json", files.dump(demo))
    return demo


def _measure(loaded: Loaded, task: str, plan: Plan, test: Samples, out: Path) -> tuple[Row, float, float]:
    evaluation = evaluate(loaded, test, plan)
    files.write_text(out / task / "evaluation.json", files.dump(evaluation))
    shown = test.items[:SHOWN]
    figure = report.examples_figure(task, shown, evaluation.answers[:SHOWN])
    report.save_figure(figure, out / task / "examples.png")

    inputs = loaded.inputs(test.items[:TIMED_PROMPTS])
    located = locate(loaded.model)
    real = inputs["attention_mask"].bool()
    seen = torch.isin(inputs["input_ids"], torch.tensor(located.visual_ids)) & real
    prompts = len(real)
    visual, text = float(seen.sum()) / prompts, float((real & ~seen).sum()) / prompts
    dense_ms, plan_ms = time_prefill(loaded, inputs, [None, plan])
    dense_flops = flops.prefill(located.geometry, visual=visual, text=text).total
    plan_flops = flops.prefill(located.geometry, visual=visual, text=text, plan=plan).total
    assert evaluation.accuracy_plan is not None
    assert evaluation.fidelity is not None
    row = Row(
        task=task,
        skipped_layers=plan.skipped("attention"),
        accuracy_dense=evaluation.accuracy_dense,
        accuracy_plan=evaluation.accuracy_plan,
        retention=evaluation.retention,
        fidelity=evaluation.fidelity,
        flops_kept=plan_flops / dense_flops,
        prefill_dense_ms=dense_ms.median_ms / prompts,
        prefill_plan_ms=plan_ms.median_ms / prompts,
    )
    return row, visual, text


def demo_table(demo: Demo) -> Table:
    """One row per task, dense beside plan."""
    table = Table(
        title=f"V-Skip on the reference model: visual attention skipped in {LAYERS} of 12 layers, chosen per task",
        caption=(
            f"{demo.test_samples} test questions a task, exact match; retention = plan / dense, 95 % interval; "
            f"same answer = agreement with the dense model; FLOPs kept and prefill are of the decoder, "
            f"{demo.visual_tokens} visual tokens of about {demo.visual_tokens + demo.text_tokens:.0f}; ms per prompt, "
            f"batch of {demo.timed_prompts}, dense and plan in turn, median of 10, {demo.dtype}, {demo.threads} threads"
        ),
    )
    heads = ("task", "skipped layers", "dense", "plan", "retention", "same answer", "FLOPs kept", "dense ms", "plan ms")
    for head in heads:
        table.add_column(head, justify="left" if head in ("task", "skipped layers") else "right")
    for row in demo.rows:
        table.add_row(
            row.task,
            " ".join(map(str, row.skipped_layers)),
            f"{row.accuracy_dense.value:.0%}",
            f"{row.accuracy_plan.value:.0%}",
            "-" if row.retention is None else str(row.retention),
            f"{row.fidelity.value:.0%}",
            f"{row.flops_kept:.1%}",
            f"{row.prefill_dense_ms:.2f}",
            f"{row.prefill_plan_ms:.2f}",
        )
    return table


def demo_json(demo: Demo) -> str:
    return json.dumps(demo.model_dump(mode="json"), indent=2)
