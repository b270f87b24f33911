"""How many samples, and whether drawn by subtask: Figure 7a and Section 4.5.5 of arXiv 2606.08511.

One mask for all tasks, as the paper has one for the subtasks of MME: from samples drawn from all tasks alike
(stratified), or from their union whatever the task (random). The gain of each sample is measured once; a calibration of
other samples is their mean.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np

from ..cells import Skip
from ..methods.selection import change_lowest
from ..scores import Scores
from .agreement import jaccard
from .answers import HEADS, Curves, Outcomes, curve_rows, lines_of
from .charts import kept_figure
from .claims import alike
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

GAIN = "visual_information_gain"
SIZES = (14, 28, 42, 56)
RESAMPLES = 50  #: of which masks are compared; as many as there are seeds answer
STRATIFIED, RANDOM = "stratified", "random"


def run(lab: Lab) -> Found:
    [count] = lab.scaled(19)
    seeds = range(lab.sizes.seeds)
    gains = [[row for seed in seeds for row in lab.scores(task, GAIN, seed).per_sample] for task in lab.tasks]
    blank, total = lab.scores(lab.tasks[0], GAIN), sum(map(len, gains))
    whole = _scores(blank, [row for task in gains for row in task]).lowest(count)
    sizes = [size for size in SIZES if size < total] or [max(1, total // 2)]
    agreement: dict[tuple[str, int], float] = {}
    curves: dict[str, dict[float, Outcomes]] = {}
    for name in (STRATIFIED, RANDOM):
        for size in sizes:
            rng = np.random.default_rng(size)
            drawn = [_scores(blank, _drawn(gains, name, size, rng)) for _ in range(RESAMPLES)]
            agreement[name, size] = fmean(jaccard(scores.lowest(count), whole) for scores in drawn)
            plans = [change_lowest(scores, count, attention=Skip()) for scores in drawn[: lab.sizes.seeds]]
            curves.setdefault(name, {})[size] = tuple(
                o for draw, plan in enumerate(plans) for o in lab.everywhere(name, plan, setting=str(size), draw=draw)
            )
    tables = (
        Table(
            title="Answers kept by the number of samples", heads=("drawn", "samples", *HEADS), rows=curve_rows(curves)
        ),
        Table(
            title=f"Layers shared with the mask of all {total} samples (mean Jaccard of {RESAMPLES} draws)",
            heads=("samples", STRATIFIED, RANDOM),
            rows=tuple((size, agreement[STRATIFIED, size], agreement[RANDOM, size]) for size in sizes),
            digits=2,
        ),
    )
    figure = kept_figure(
        {lab.loaded.name: lines_of(curves)},
        title="Right answers kept by one mask of so many samples (band: lowest to highest draw)",
        x="samples, of all tasks together",
    )
    return Found(tables, _findings(curves, sizes), figure)


def _drawn(
    gains: list[list[tuple[float, ...]]], how: str, size: int, rng: np.random.Generator
) -> list[tuple[float, ...]]:
    """Samples' gains, without replacement."""
    if how == RANDOM:
        rows = [row for task in gains for row in task]
        return [rows[i] for i in rng.permutation(len(rows))[:size]]
    piles = [[task[i] for i in rng.permutation(len(task))] for task in gains]
    order = rng.permutation(len(piles))  # which tasks give one more, where the size is no multiple
    turns = [piles[t][i] for i in range(max(map(len, piles))) for t in order if i < len(piles[t])]
    return turns[:size]


def _scores(blank: Scores, rows: list[tuple[float, ...]]) -> Scores:
    return blank.model_copy(update={"per_sample": tuple(rows), "sample_hashes": None, "data": None, "data_hash": None})


def _findings(curves: Curves, sizes: list[int]) -> tuple[Finding, ...]:
    few, many = min(sizes), max(sizes)
    every = {name: tuple(o for outcomes in points.values() for o in outcomes) for name, points in curves.items()}
    strata = "random samples are as good as stratified ones"
    return (
        alike("Figure 7a", strata, every[RANDOM], every[STRATIFIED], "above stratified"),
        *(
            alike(
                "Figure 7a",
                f"{few} samples are as good as {many} ({name})",
                points[few],
                points[many],
                f"above {many} samples",
            )
            for name, points in curves.items()
        ),
    )


EXPERIMENT = Experiment(
    run, "2606.08511", "how many samples calibration needs, and whether by subtask", "Figure 7a; Sec. 4.5.5"
)
