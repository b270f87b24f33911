"""Masking by ranges of layers: the pilot analysis of arXiv 2510.17205.

Text reads no image in the first layers; or in those alone, as the image is withdrawn after them; visual tokens attend
to none but themselves and text before them in the first layers. And the facts that the paper builds its stages on: the
first layer needs a sink, the next ones nothing. Departure: keys are masked before the softmax, where the authors' code
sets weights to zero after it.
"""

from __future__ import annotations

from collections.abc import Callable

from ..cells import Keep, Sink, Skip, Window
from ..plan import Plan
from .answers import HEADS, Curves, Outcomes, curve_rows, lines_of, row_of
from .charts import kept_figure
from .claims import alike, beats
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

COUNTS = (4, 8, 16, 24)
Made = Callable[[Plan, int], Plan]
NOT_BEFORE, WITHDRAWN, APART = (
    "text reads no image before layer k",
    "no visual token from layer k on",
    "visual tokens attend to none before layer k",
)
RANGES: dict[str, Made] = {
    NOT_BEFORE: lambda plan, k: plan.at(range(k), visible=Skip()),
    WITHDRAWN: lambda plan, k: plan.at([k], keep=Keep(0)),
    APART: lambda plan, k: plan.at(range(k), attention=Window(1)),
}
BLIND, SUNK, SHALLOW, BOTH = (
    "text reads no image in the first layer",
    "text reads the first visual token's value in the first layer",
    "text reads no image in the shallow layers after the first",
    "that, and the first layer with a sink",
)


def run(lab: Lab) -> Found:
    full = Plan.full(lab.geometry)
    counts = [k for k in lab.scaled(*COUNTS) if 0 < k < lab.layers]
    curves: dict[str, dict[float, Outcomes]] = {
        name: {k: lab.everywhere(name, made(full, k), setting=str(k)) for k in counts} for name, made in RANGES.items()
    }
    [end] = lab.scaled(7)
    shallow = full.at(range(1, max(end, 2)), visible=Skip())
    facts = {
        BLIND: full.at([0], visible=Skip()),
        SUNK: full.at([0], visible=Sink()),
        SHALLOW: shallow,
        BOTH: shallow.at([0], visible=Sink()),
    }
    told = {name: lab.everywhere(name, plan) for name, plan in facts.items()}
    tables = (
        Table(title="Answers kept by the range masked", heads=("what", "k", *HEADS), rows=curve_rows(curves)),
        Table(
            title=f"The shallow layers (up to layer {max(end, 2) - 1} of {lab.layers})",
            heads=("what", *HEADS),
            rows=tuple((name, *row_of(outcomes)) for name, outcomes in told.items()),
        ),
    )
    figure = kept_figure(
        {lab.loaded.name: lines_of(curves)},
        title="Right answers kept when ranges of layers are masked",
        x=f"layer k, of {lab.layers}",
        height=4.4,
    )
    return Found(tables, _findings(lab, curves, told), figure)


def _findings(lab: Lab, curves: Curves, told: dict[str, Outcomes]) -> tuple[Finding, ...]:
    stock = lab.everywhere("dense", Plan.full(lab.geometry))
    late = max(k for k in lab.scaled(*COUNTS) if k < lab.layers)
    deep = f"from layer {late} of {lab.layers} on"
    return (
        beats(
            "pilot",
            "text needs something to attend to in the first layer (72.6 to 65.2 without)",
            stock,
            told[BLIND],
            "of the stock model above it",
        ),
        alike(
            "pilot",
            "but not what is there: merged into one visual token it loses nothing",
            told[SUNK],
            stock,
            "above the stock model",
        ),
        alike(
            "pilot",
            "in layers 2 to 7 of 32 text need not read the image (72.1)",
            told[SHALLOW],
            stock,
            "above the stock model",
        ),
        alike(
            "stage 3",
            "deep layers need no visual tokens",
            curves[WITHDRAWN][late],
            stock,
            f"above the stock model, {deep}",
        ),
        alike(
            "pilot",
            "visual tokens need not attend to each other in the shallow layers (at most a point)",
            curves[APART][min(curves[APART])],
            stock,
            f"above the stock model, before layer {min(curves[APART]):g}",
        ),
    )


EXPERIMENT = Experiment(run, "2510.17205", "masking by ranges of layers", "the pilot analysis")
