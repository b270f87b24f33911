"""FLOPs, milliseconds and retention in one table: Table 3 of arXiv 2606.08511, and what it says of attention alone.

Milliseconds are of the decoder's prefill of one prompt, timed in turn with the stock model. In a layer that skips, text
alone issues queries: of n^2 scores T n are left, a factor of Nv / Nt + 1. Rows are counted where they run.
"""

from __future__ import annotations

import platform

import torch

from .. import flops
from ..comparison.entry import Entry
from ..comparison.statistics import retention_by_task
from ..comparison.timing import shares
from ..plan import Plan
from ..runtime.patching import apply
from ..runtime.tracing import trace
from .answers import Outcomes
from .charts import Line, curves_figure
from .claims import counted, keeps
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

DENSE, V_SKIP = "dense", "V-Skip"
NEAR = 0.02  #: of a share of time that may be noise


def run(lab: Lab) -> Found:
    [count], [last] = lab.scaled(19), lab.scaled(16)
    task = lab.tasks[0]
    plans = {
        V_SKIP: lambda t: lab.plan("v-skip", t, layers=count),
        "ShortV": lambda t: lab.plan("shortv", t, layers=count),
        "VTW": lambda t: lab.plan("vtw", t, after=min(last, lab.layers - 2)),
    }
    outcomes: dict[str, Outcomes] = {name: lab.on_tasks(name, plan) for name, plan in plans.items()}
    first = {name: plan(task) for name, plan in plans.items()}
    times = _times(lab, first)
    scores = {name: _pairs(lab, plan) for name, plan in {DENSE: Plan.full(lab.geometry), **first}.items()}
    dense = flops.prefill(lab.geometry, visual=lab.work.visual, text=lab.work.text).total_tflops
    rows: list[tuple] = [(DENSE, dense, 1.0, 1.0, times["dense ms"], 1.0, None)]
    for name, plan in first.items():
        price = flops.prefill(lab.geometry, visual=lab.work.visual, text=lab.work.text, plan=plan).total_tflops
        share = times[name]
        kept = retention_by_task(outcomes[name])
        rows.append((name, price, price / dense, scores[name] / scores[DENSE], times["dense ms"] * share, share, kept))
    table = Table(
        title=f"{lab.work.visual} visual and {lab.work.text} text tokens, batch 1",
        heads=(
            "method",
            "TFLOPs, papers' count",
            "FLOPs, papers' count, %",
            "attention scores, %",
            "prefill ms",
            "prefill time, %",
            "mean of the tasks' retentions, %",
        ),
        rows=tuple(rows),
        note=f"Timed on {_machine(lab)}. Scores: query rows times key rows of the runtime, all layers; dead work is skipped.",
        digits=5,
    )
    kept = {name: retention_by_task(each) for name, each in outcomes.items()}
    figure = curves_figure(
        {
            f"{lab.loaded.name}, {'time' if by else 'FLOPs'}": {
                name: Line([times[name] if by else rows[i + 1][2]], [kept_.value if kept_ else 0.0])
                for i, (name, kept_) in enumerate(kept.items())
            }
            for by in (False, True)
        },
        title="Right answers kept by price",
        x="share of the stock prefill's",
        y="mean of the tasks' retentions",
        level=1.0,
        columns=2,
    )
    return Found((table,), _findings(lab, first[V_SKIP], outcomes[V_SKIP], times, rows), figure)


def _machine(lab: Lab) -> str:
    device = next(lab.loaded.model.parameters()).device
    return f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _times(lab: Lab, plans: dict[str, Plan]) -> dict[str, float]:
    def measured() -> dict[str, tuple[float, ...]]:
        found, dense = shares(lab.work, [Entry(plan) for plan in plans.values()], 1, repeats=11, warm_up=2)
        return {**{name: (share,) for name, share in zip(plans, found, strict=True)}, "dense ms": (dense,)}

    parts = ("times", tuple(plan.hash for plan in plans.values()), lab.work.test[lab.tasks[0]].hash, _machine(lab))
    return {name: value for name, (value,) in lab.numbers("latency", parts, measured).items()}


@torch.no_grad()
def _pairs(lab: Lab, plan: Plan) -> int:
    """Query rows times key rows of all layers, counted in one prompt."""
    inputs = lab.loaded.inputs(lab.work.test[lab.tasks[0]].items[:1])
    with apply(lab.loaded.model, plan), trace(lab.loaded.model) as counted:
        lab.loaded.model(**inputs, logits_to_keep=1)
    return sum(rows["query"] * rows["key"] for rows in counted.layers)


def _findings(
    lab: Lab, plan: Plan, outcomes: Outcomes, times: dict[str, float], rows: list[tuple]
) -> tuple[Finding, ...]:
    visual, text, layers = lab.work.visual, lab.work.text, lab.layers
    layer = plan.skipped("attention")[0]
    fewer = (visual + text) ** 2 / _one_layer(lab, plan, layer)
    share = times[V_SKIP]
    return (
        counted(
            "Sec. 3.3",
            "in a layer that skips, attention is Nv / Nt + 1 times cheaper",
            f"{fewer:.2f} times fewer scores in layer {layer}, and Nv / Nt + 1 is {visual / text + 1:.2f}.",
            abs(fewer - (visual / text + 1)) < 1e-9,
        ),
        counted(
            "Table 3",
            "19 of 32 layers take a tenth of the FLOPs (8.54 to 7.69 TFLOPs on LLaVA-1.5-7B)",
            f"{100 * rows[1][2]:.1f} % are left at {len(plan.skipped('attention'))} of {layers} layers.",
            rows[1][2] <= 0.91,
        ),
        counted(
            "Table 3",
            "the prefill is faster (171.71 to 158.40 ms, 92 %, on an RTX 3090)",
            f"{100 * share:.1f} % of the stock prefill's time, on {_machine(lab)}.",
            True if share < 1 - NEAR else False if share > 1 + NEAR else None,
        ),
        keeps(
            "Table 3", "nothing is lost (here: 99 % or more)", outcomes, 0.99, f"at 19 of 32 layers' depth of {layers}"
        ),
    )


@torch.no_grad()
def _one_layer(lab: Lab, plan: Plan, layer: int) -> int:
    """Scores of a layer of the plan in one prompt."""
    inputs = lab.loaded.inputs(lab.work.test[lab.tasks[0]].items[:1])
    with apply(lab.loaded.model, plan), trace(lab.loaded.model) as counted:
        lab.loaded.model(**inputs, logits_to_keep=1)
    return counted.layers[layer]["query"] * counted.layers[layer]["key"]


EXPERIMENT = Experiment(run, "2606.08511", "FLOPs, milliseconds and answers in one table", "Table 3; Sec. 3.3")
