"""FLOPs, milliseconds and retention in one table: Table 3 of arXiv 2606.08511, and what it says of attention alone.

Milliseconds are of the decoder's prefill of one prompt, timed in turn with the stock model. In a layer that skips, text
alone issues queries: of n^2 scores T n are left, a factor of Nv / Nt + 1. Rows are counted where they run.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .. import flops
from ..comparison.entry import Entry
from ..comparison.statistics import retention_by_task
from ..comparison.timing import shares
from ..plan import Plan
from ..runtime.patching import apply
from ..runtime.tracing import trace
from .answers import Outcomes, each_draw
from .charts import Line, kept_figure
from .claims import counted, keeps
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table, Value

NEAR = 0.02  #: of a share of time that may be noise
DENSE_MS = "dense ms"


@dataclass(frozen=True)
class Priced:
    """One method: its plan for the first task, the answers to all, and its prices as shares of the stock model's.

    Attributes:
        tflops: as papers count.
        scores: query rows times key rows, of each layer.
        time: of the prefill.
    """

    plan: Plan
    outcomes: Outcomes
    tflops: float
    scores: list[int]
    time: float


def run(lab: Lab) -> Found:
    [count], [last] = lab.scaled(19), lab.scaled(16)
    full = Plan.full(lab.geometry)
    plans = {
        "dense": full,
        "V-Skip": lab.plan("v-skip", lab.tasks[0], layers=count),
        "ShortV": lab.plan("shortv", lab.tasks[0], layers=count),
        "VTW": lab.plan("vtw", lab.tasks[0], after=min(last, lab.layers - 2)),
    }
    outcomes = {
        "dense": lab.everywhere("dense", full),
        "V-Skip": lab.method("V-Skip", "v-skip", layers=count),
        "ShortV": lab.method("ShortV", "shortv", layers=count),
        "VTW": lab.everywhere("VTW", plans["VTW"]),
    }
    times = _times(lab, plans)
    rows = {
        name: Priced(plan, outcomes[name], _tflops(lab, plan), _scores(lab, plan), times[name])
        for name, plan in plans.items()
    }
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
        rows=tuple((name, *_row(row, rows["dense"], times[DENSE_MS])) for name, row in rows.items()),
        note=f"Timed on {_machine(lab)}. Scores: query rows times key rows, all layers; dead work is skipped.",
        digits=5,
    )
    return Found((table,), _findings(lab, rows["V-Skip"], rows["dense"]), _figure(lab, rows))


def _row(row: Priced, dense: Priced, dense_ms: float) -> tuple[Value, ...]:
    share, scores = row.tflops / dense.tflops, sum(row.scores) / sum(dense.scores)
    return (row.tflops, share, scores, dense_ms * row.time, row.time, retention_by_task(row.outcomes))


def _figure(lab: Lab, rows: Mapping[str, Priced]):  # type: ignore[no-untyped-def]
    def points(price: Mapping[str, float]) -> dict[str, Line]:
        return {name: Line([price[name]], each_draw(row.outcomes) or [0.0]) for name, row in rows.items()}

    return kept_figure(
        {
            "by FLOPs, papers' count": points({n: r.tflops / rows["dense"].tflops for n, r in rows.items()}),
            "by the prefill's time": points({n: r.time for n, r in rows.items()}),
        },
        title=f"Right answers kept by price ({lab.loaded.name})",
        x="share of the stock prefill's",
        columns=2,
    )


def _machine(lab: Lab) -> str:
    device = next(lab.loaded.model.parameters()).device
    return f"{device} ({platform.machine()}, threads: {torch.get_num_threads()})"


def _tflops(lab: Lab, plan: Plan) -> float:
    return flops.prefill(lab.geometry, visual=lab.work.visual, text=lab.work.text, plan=plan).total_tflops


def _times(lab: Lab, plans: Mapping[str, Plan]) -> dict[str, float]:
    """Shares of the stock model's time by name, and its milliseconds."""
    timed = {name: plan for name, plan in plans.items() if not plan.is_full}

    def measured() -> dict[str, tuple[float, ...]]:
        found, dense = shares(lab.work, [Entry(plan) for plan in timed.values()], 1, repeats=11, warm_up=2)
        return {**{name: (share,) for name, share in zip(timed, found, strict=True)}, DENSE_MS: (dense,)}

    parts = ("times", tuple(plan.hash for plan in timed.values()), lab.work.test[lab.tasks[0]].hash, _machine(lab))
    found = lab.numbers("latency", parts, measured)
    return {"dense": 1.0, **{name: values[0] for name, values in found.items()}}


def _scores(lab: Lab, plan: Plan) -> list[int]:
    """Of each layer in the first prompt, query rows times key rows."""
    inputs = lab.loaded.inputs(lab.work.test[lab.tasks[0]].items[:1])
    with torch.no_grad(), apply(lab.loaded.model, plan), trace(lab.loaded.model) as counted:
        lab.loaded.model(**inputs, logits_to_keep=1)
    return [rows["query"] * rows["key"] for rows in counted.layers]


def _findings(lab: Lab, mine: Priced, dense: Priced) -> tuple[Finding, ...]:
    skipped, wanted = mine.plan.skipped("attention"), lab.work.visual / lab.work.text + 1
    fewer = {i: dense.scores[i] / mine.scores[i] for i in skipped if i < lab.layers - 1}  # the last has one query row
    shown = " and ".join(sorted({f"{times:.2f}" for times in fewer.values()}))
    left, here = mine.tflops / dense.tflops, f"at {len(skipped)} of {lab.layers} layers"
    return (
        counted(
            "Sec. 3.3",
            "in a layer that skips, attention is Nv / Nt + 1 times cheaper",
            f"{shown or 'no'} times fewer scores, and Nv / Nt + 1 is {wanted:.2f}.",
            all(abs(times - wanted) < 1e-9 for times in fewer.values()) if fewer else None,
        ),
        counted(
            "Table 3",
            "19 of 32 layers take a tenth of the FLOPs (8.54 to 7.69 TFLOPs on LLaVA-1.5-7B; here: 9 % or more)",
            f"{100 * left:.1f} % are left {here}.",
            left <= 0.91,
        ),
        counted(
            "Table 3",
            "the prefill is faster (171.71 to 158.40 ms, 92 %, on an RTX 3090)",
            f"{100 * mine.time:.1f} % of the stock prefill's time, on {_machine(lab)}.",
            None if abs(1 - mine.time) <= NEAR else mine.time < 1,
        ),
        keeps("Table 3", "nothing is lost (here: 99 % or more)", mine.outcomes, 0.99, here),
    )


EXPERIMENT = Experiment(run, "2606.08511", "FLOPs, milliseconds and answers in one table", "Table 3; Sec. 3.3")
