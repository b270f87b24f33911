"""The whole of lookless on the reference model: calibrate, plan, apply, measure, for every task."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.table import Table

from . import figures, files, flops
from .bench.timing import time_prefill
from .calibration.sweep import calibrate
from .data import Samples, load_data
from .evaluation import Estimate, evaluate
from .layer_plan import spans
from .loading import Loaded, load_model
from .methods import v_skip
from .plan import Plan
from .reference import tasks_of
from .runtime.families import locate
from .scores import Scores
from .version import __version__

MEASURES = ("visual_information_gain", "ffn_effect")  # of visual attention, by which layers are chosen, and of FFNs
LAYERS = 7  # the paper's 19 of 32, on 12 layers
CALIBRATION_SAMPLES = 20
TEST_SAMPLES = 100
TIMED_PROMPTS = 8  # one batch; a single prompt of so small a model times Python more than arithmetic
SHOWN = 8  # test images in the figure of each task


class Row(BaseModel):
    """One task: what its plan costs and saves. ``flops_kept`` is of what runs, a fraction of the dense prefill's."""

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


def run_demo(out: Path, *, test_samples: int = TEST_SAMPLES, log: Callable[[str], None] = lambda _: None) -> Demo:
    """Run the demo, write plans, scores, ``demo.json`` and figures under ``out``, and return what was measured.

    ``log`` is called with each step, in words, as it begins.
    """
    log("loading the reference model")
    loaded = load_model("reference")
    scores: dict[str, list[Scores]] = {}
    plans: dict[str, Plan] = {}
    rows = []
    visual = text = 0.0
    for task in tasks_of("reference"):
        log(f"{task}: calibrating on {CALIBRATION_SAMPLES} images")
        samples = load_data(f"reference:{task}", split="calibration", limit=CALIBRATION_SAMPLES)
        scores[task] = [calibrate(loaded, samples, measure=measure) for measure in MEASURES]
        for found in scores[task]:
            found.save(out / task / f"{found.name}.json")
        plans[task] = v_skip(scores[task][0], layers=LAYERS)
        plans[task].save_pretrained(out / task / "plan")
        log(f"{task}: answering {test_samples} test questions, dense and under the plan")
        test = load_data(f"reference:{task}", split="test", limit=test_samples)
        row, visual, text = _measure(loaded, task, plans[task], test, out)
        rows.append(row)
    log("drawing")
    figures.save_figure(figures.profile_figure(scores, plans), out / "profile.png")
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
    evaluation = evaluate(loaded, test, plan, progress=False)
    files.write_text(out / task / "evaluation.json", files.dump(evaluation))
    shown = test.items[:SHOWN]
    figure = figures.examples_figure(task, shown, evaluation.answers[:SHOWN])
    figures.save_figure(figure, out / task / "examples.png")

    inputs = loaded.inputs(test.items[:TIMED_PROMPTS])
    located = locate(loaded.model)
    real = inputs["attention_mask"].bool()
    seen = located.visual(inputs["input_ids"]) & real
    prompts = len(real)
    visual, text = float(seen.sum()) / prompts, float((real & ~seen).sum()) / prompts
    dense_ms, plan_ms = time_prefill(loaded, inputs, [None, plan])
    dense_flops = flops.prefill(located.geometry, visual=visual, text=text).total
    plan_flops = flops.prefill(located.geometry, visual=visual, text=text, plan=plan.as_run).total
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
    """One row per task, dense beside plan; fits 80 columns."""
    prompt = f"{demo.visual_tokens} visual tokens of about {demo.visual_tokens + demo.text_tokens:.0f}"
    table = Table(
        title=f"V-Skip on the reference model: visual attention skipped in {LAYERS} of 12 layers",
        caption=(
            f"right: exact match on {demo.test_samples} test questions, dense→plan; retained: plan / dense, with its "
            f"95 % interval; same: agreement with the dense model's answers; FLOPs kept and prefill: of the decoder, "
            f"{prompt}; ms per prompt in a batch of {demo.timed_prompts}, dense and plan in turn, median of 10, "
            f"{demo.dtype}, {demo.threads} threads"
        ),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
    )
    for head in ("task", "right\n%", "retained", "same", "FLOPs\nkept", "prefill\nms", "layers\nskipped"):
        table.add_column(head, justify="left" if head in ("task", "layers\nskipped") else "right", no_wrap=True)
    for row in demo.rows:
        kept = row.retention
        table.add_row(
            row.task,
            f"{_percent(row.accuracy_dense.value)}→{_percent(row.accuracy_plan.value)}",
            "-" if kept is None else f"{_percent(kept.value)}% [{_percent(kept.low)}-{_percent(kept.high)}]",
            f"{_percent(row.fidelity.value)}%",
            f"{row.flops_kept:.1%}",
            f"{row.prefill_dense_ms:.1f}→{row.prefill_plan_ms:.1f}",
            " ".join(spans(row.skipped_layers)),
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
