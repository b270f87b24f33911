"""The image in the cache of the answer: which layers' keys and values later tokens need, as arXiv 2510.17205 asks.

The prompt runs whole, so that the first token of the answer is the stock model's. In a range of layers the keys and
values of visual tokens are then forgotten, and the tokens after it read the image in the other layers alone.
"""

from __future__ import annotations

from ..cells import Skip
from ..plan import Plan
from .answers import HEADS, Curves, Outcomes, curve_rows, lines_of
from .charts import kept_figure
from .claims import alike, beats
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

COUNTS = (8, 16, 32)
FIRST, LAST = "forgotten in the first k layers", "forgotten in the last k layers"


def run(lab: Lab) -> Found:
    full = Plan.full(lab.geometry)
    counts = lab.scaled(*COUNTS)
    curves: dict[str, dict[float, Outcomes]] = {
        FIRST: {k: lab.everywhere(FIRST, full.at(range(k), decode=Skip()), setting=str(k)) for k in counts},
        LAST: {
            k: lab.everywhere(LAST, full.at(range(lab.layers - k, lab.layers), decode=Skip()), setting=str(k))
            for k in counts
        },
    }
    table = Table(
        title="Answers kept when the answer's later tokens do not read the image",
        heads=("image", "k", *HEADS),
        rows=curve_rows(curves),
        note="FLOPs are those of the prefill, which runs whole: what is saved is cache.",
    )
    figure = kept_figure(
        {lab.loaded.name: lines_of(curves)},
        title="Right answers kept when the image is forgotten after the prompt",
        x=f"layers k, of {lab.layers}",
    )
    return Found((table,), _findings(lab, curves), figure)


def _findings(lab: Lab, curves: Curves) -> tuple[Finding, ...]:
    stock = lab.everywhere("dense", Plan.full(lab.geometry))
    [shallow], [half], [every] = lab.scaled(8), lab.scaled(16), lab.scaled(32)
    above = "above the stock model"
    return (
        alike(
            "pilot",
            "the answer's tokens need no image in layers 1 to 8 of 32",
            curves[FIRST][shallow],
            stock,
            f"{above}, in the first {shallow} layers",
        ),
        beats(
            "pilot",
            "in the layers after these they do (9 to 15)",
            curves[FIRST][shallow],
            curves[FIRST][half],
            f"with {shallow} layers above {half}",
        ),
        alike(
            "stage 3",
            "and in the last layers they do not",
            curves[LAST][shallow],
            stock,
            f"{above}, in the last {shallow} layers",
        ),
        alike(
            "a control",
            "answers are short: what the prompt has read is enough",
            curves[FIRST][every],
            stock,
            f"{above}, in all layers",
        ),
    )


EXPERIMENT = Experiment(run, "2510.17205", "the image in the cache of the answer", "the pilot analysis")
