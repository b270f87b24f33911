"""Operator skipping over budgets, beside pruning and layer skipping at the same price: arXiv 2606.31903.

And composed with token pruning: FastV's half of the tokens, with the operators that a budget chooses.
"""

from __future__ import annotations

from ..errors import PlanError
from .answers import HEADS, Curves, Outcomes, curve_rows, priced, row_of
from .charts import kept_by_flops
from .claims import beats, keeps
from .definition import Experiment
from .lab import Lab
from .prices import at_price
from .report import Finding, Found, Table

MINE, COMPOSED = "operator-skipping", "operator-skipping + FastV"
OTHERS = ("shortv", "fastv", "random-tokens", "down-sampling")
SAVED = (0.15, 0.337, 0.5)
PAPER = 0.337


def run(lab: Lab) -> Found:
    curves: dict[str, dict[float, Outcomes]] = {}
    for save in SAVED:
        for name, found in {**_mine(lab, save), **at_price(lab, OTHERS, 1 - save).found}.items():
            curves.setdefault(name, {})[save] = found
    fastv = lab.plan("fastv", lab.tasks[0])
    composed = lab.on_tasks(COMPOSED, lambda task: fastv | lab.plan(MINE, task, save=PAPER), setting=f"{PAPER}")
    table = Table(
        title="Answers kept by the share of FLOPs saved",
        heads=("method", "asked to save", *HEADS),
        rows=(*curve_rows(curves), (COMPOSED, PAPER, *row_of(composed))),
        note=f"{COMPOSED}: half of the tokens, and the operators that save {PAPER:.1%} of all of them.",
        digits=3,
    )
    figure = kept_by_flops(
        lab.loaded.name, {**priced(curves), COMPOSED: priced({COMPOSED: {PAPER: composed}})[COMPOSED]}, height=4.4
    )
    return Found((table,), _findings(curves, composed), figure)


def _mine(lab: Lab, save: float) -> dict[str, Outcomes]:
    """Nothing where freezing every layer does not save as much."""
    try:
        return {MINE: lab.method(MINE, MINE, setting=f"{save}", save=save)}
    except PlanError:
        return {}


def _findings(curves: Curves, composed: Outcomes) -> tuple[Finding, ...]:
    known = {name: points[PAPER] for name, points in curves.items() if PAPER in points}
    composes = keeps(
        "notes",
        "it composes with token pruning (here: 95 % kept with FastV)",
        composed,
        0.95,
        "with half of the tokens",
    )
    if MINE not in known:
        return (composes,)
    mine, price = known.pop(MINE), f"at {1 - PAPER:.0%} of the FLOPs"
    return (
        keeps("abstract", "99.5 % is kept with 33.7 % of the FLOPs saved", mine, 0.995, price),
        *(
            beats(
                "summary",
                f"at one price operator skipping keeps more than {name}",
                mine,
                found,
                f"above {name} {price}",
            )
            for name, found in known.items()
        ),
        composes,
    )


EXPERIMENT = Experiment(
    run, "2606.31903", "budgets, beside pruning and layer skipping", "abstract; summary; key findings"
)
