"""Reduced layers: attention, FFN and both, layer by layer, to the half-layer threshold of arXiv 2501.19036."""

from __future__ import annotations

from ..comparison.entry import Entry
from .answers import HEADS, Curves, Outcomes, curve_rows, lines_of
from .charts import kept_figure
from .claims import beats, keeps
from .definition import Experiment
from .lab import Lab
from .redundancy import GREEDY, ONE_LAYER, RANKINGS, on_tasks, one_layer, reduced
from .report import Finding, Found, Table

ATTENTION, FFN, BOTH = "attention", "FFN", "both"
COUNTS = (8, 16, 24, 32)
BUDGETS = (0.9, 0.8, 0.72, 0.6)


def run(lab: Lab) -> Found:
    curves = {by: _curves(lab, by) for by in (GREEDY, ONE_LAYER)}
    tables = tuple(
        Table(
            title=f"Answers kept by the number of reduced layers, ranked by {by}",
            heads=("reduced", "layers", *HEADS),
            rows=curve_rows(each),
        )
        for by, each in curves.items()
    )
    figure = kept_figure(
        {f"ranked by {by}": lines_of(each) for by, each in curves.items()},
        title=f"Right answers kept when visual attention, the visual FFN or both are reduced ({lab.loaded.name})",
        x=f"reduced layers, of {lab.layers}",
        columns=2,
    )
    return Found((*tables, _budgets(lab)), _findings(lab, curves[GREEDY]), figure)


def _budgets(lab: Lab) -> Table:
    """The stop of the paper's ranking: as many layers as it takes to a share of the FLOPs."""
    plans = [reduced(lab, lab.tasks[0], one_layer, n, n) for n in range(lab.layers + 1)]
    kept = [lab.work.kept_papers(Entry(plan)) or 1.0 for plan in plans]
    layers = [next((n for n, share in enumerate(kept) if share <= budget), None) for budget in BUDGETS]
    return Table(
        title="Layers to reduce, attention and FFN, until a budget of FLOPs is met",
        heads=("budget, %", "layers", "FLOPs, papers' count, %"),
        rows=tuple((b, n, None if n is None else kept[n]) for b, n in zip(BUDGETS, layers, strict=True)),
    )


def _curves(lab: Lab, by: str) -> dict[str, dict[float, Outcomes]]:
    return {
        name: {
            n: on_tasks(lab, f"{name} by {by}", RANKINGS[by], n if name != FFN else 0, n if name != ATTENTION else 0)
            for n in lab.scaled(*COUNTS)
        }
        for name in (ATTENTION, FFN, BOTH)
    }


def _findings(lab: Lab, curves: Curves) -> tuple[Finding, ...]:
    [half], [every] = lab.scaled(16), lab.scaled(32)
    return (
        keeps(
            "Sec. 2",
            "half of the layers can be reduced for nothing (here: 99 % or more)",
            curves[BOTH][half],
            0.99,
            f"at {half} of {lab.layers}, both",
        ),
        beats(
            "Sec. 2",
            "beyond half of the layers answers are lost",
            curves[BOTH][half],
            curves[BOTH][every],
            f"with {half} layers above all {every}, both",
        ),
        beats(
            "Sec. 2",
            "beyond half, reducing the FFN hurts more than attention",
            curves[ATTENTION][every],
            curves[FFN][every],
            f"with attention reduced above FFN, all {every} layers",
        ),
    )


EXPERIMENT = Experiment(
    run, "2501.19036", "curves over reduced layers: attention, FFN, both", "Sec. 2; the half-layer threshold"
)
