"""Which layers V-Skip skips, task by task: Figure 9 and Appendix C of arXiv 2606.08511.

A map for each task: a row for each number of layers, dark where a layer skips. Two tasks' masks are compared by their
Jaccard index, and so are two calibrations of one task on other samples: what differs more than those differs by task.
"""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import numpy as np

from ..evaluation import Estimate, mean_estimate
from ..layer_plan import spans
from .agreement import jaccard
from .charts import Matrix, matrix_figure
from .claims import counted
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table, above_zero

GAIN = "visual_information_gain"


def run(lab: Lab) -> Found:
    [count] = lab.scaled(19)
    masks = {
        task: [lab.scores(task, GAIN, seed).lowest(count) for seed in range(lab.sizes.seeds)] for task in lab.tasks
    }
    names = lab.short
    similarity = Table(
        title=f"Jaccard index of the tasks' masks, {count} of {lab.layers} layers",
        heads=("task", *names.values(), "itself, other samples"),
        rows=tuple(
            (names[a], *(jaccard(masks[a][0], masks[b][0]) for b in lab.tasks), _within(masks[a])) for a in lab.tasks
        ),
        digits=2,
    )
    skipped = Table(
        title="Layers skipped",
        heads=("task", "layers", "layers of all calibrations", "layers of some"),
        rows=tuple((names[task], *_listed(masks[task])) for task in lab.tasks),
    )
    figure = matrix_figure(
        _maps(lab),
        title="Layers that skip visual attention (dark), by how many may",
        x="decoder layer",
        y="layers that skip",
        size=0.22,
    )
    return Found((similarity, skipped), _findings(lab, masks), figure)


def _maps(lab: Lab) -> dict[str, Matrix]:
    layers = range(lab.layers)
    rows = range(1, lab.layers + 1)
    return {
        lab.short[task]: Matrix(
            rows=[str(n) if n % 4 == 0 or n == 1 else "" for n in rows],
            columns=[str(layer) if layer % 4 == 0 else "" for layer in layers],
            values=[[float(layer in lab.scores(task, GAIN).lowest(n)) for layer in layers] for n in rows],
            form="",
        )
        for task in lab.tasks
    }


def _within(masks: list[tuple[int, ...]]) -> float:
    return fmean(jaccard(a, b) for a, b in combinations(masks, 2))


def _listed(masks: list[tuple[int, ...]]) -> list[str]:
    always = set.intersection(*map(set, masks))
    sometimes = set.union(*map(set, masks)) - always
    return [" ".join(spans(sorted(layers))) for layers in (masks[0], always, sometimes)]


def _findings(lab: Lab, masks: dict[str, list[tuple[int, ...]]]) -> tuple[Finding, ...]:
    first = [lab.short[task] for task in lab.tasks if 0 in masks[task][0]]
    said = f"{', '.join(first) or 'no task'} of {len(masks)} tasks." if len(first) < len(masks) else "all tasks."
    found = [
        counted(
            "App. C.2",
            "whether the first layer may skip depends on the task (yes on MME and MMBench, no on OCRBench)",
            f"it skips on {said}",
            0 < len(first) < len(masks) if len(masks) > 1 else None,
        )
    ]
    if len(masks) > 1:
        less = _less_alike(masks)
        found.append(
            Finding(
                where="App. C.2",
                claim="masks differ by task (here: more than those of two calibrations of one task)",
                measured=f"the Jaccard index is {less.value:.2f} lower ({less.low:.2f} to {less.high:.2f}).",
                verdict=above_zero(less),
            )
        )
    return tuple(found)


def _less_alike(masks: dict[str, list[tuple[int, ...]]]) -> Estimate:
    """By how much two tasks' masks agree less than two of one task: resampled over tasks."""
    between = {a: fmean(jaccard(x, y) for b in masks if b != a for x in masks[a] for y in masks[b]) for a in masks}
    return mean_estimate(np.array([_within(masks[a]) - between[a] for a in masks]))


EXPERIMENT = Experiment(
    run, "2606.08511", "which layers skip, task by task, and how alike the masks are", "Figure 9; App. C"
)
