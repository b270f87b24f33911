"""Calibrations on other samples: Figure 5b of arXiv 2606.08511, which finds the gain insensitive to the seed."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

from .agreement import mean_jaccard, rank_correlation
from .answers import HEADS, Outcomes, row_of
from .charts import Line, curves_figure
from .claims import alike, counted
from .definition import Experiment
from .lab import Lab
from .report import Found, Table

GAIN = "visual_information_gain"
SAME = 0.9  #: Jaccard index of masks that count as one


def run(lab: Lab) -> Found:
    [count] = lab.scaled(19)
    seeds = range(lab.sizes.seeds)
    scores = {task: [lab.scores(task, GAIN, seed) for seed in seeds] for task in lab.tasks}
    agreement = {task: mean_jaccard([s.lowest(count) for s in each]) for task, each in scores.items()}
    drawn: Outcomes = tuple(o for seed in seeds for o in lab.method("V-Skip", "v-skip", draw=seed, layers=count))
    tables = (
        Table(
            title=f"{lab.sizes.seeds} calibrations of {lab.sizes.samples} samples, {count} of {lab.layers} layers",
            heads=("task", "same layers (mean Jaccard)", "rank correlation of the gains"),
            rows=tuple(
                (
                    lab.short[task],
                    agreement[task],
                    fmean(rank_correlation(a.mean, b.mean) for a, b in combinations(each, 2)),
                )
                for task, each in scores.items()
            ),
            digits=2,
        ),
        Table(
            title="Answers kept by seed",
            heads=("seed", *HEADS),
            rows=tuple((str(seed), *row_of(tuple(o for o in drawn if o.draw == seed))) for seed in seeds),
        ),
    )
    findings = (
        counted(
            "Figure 5b",
            f"the layers do not depend on the samples (here: a mean Jaccard index of {SAME} or more)",
            f"{fmean(agreement.values()):.2f} in the mean of the tasks, {min(agreement.values()):.2f} on the least: "
            f"the choice is {'stable' if fmean(agreement.values()) >= SAME else 'sensitive to the samples'}.",
            fmean(agreement.values()) >= SAME,
        ),
        alike(
            "Figure 5b",
            "nor do the answers (here: of the first seed and the others)",
            tuple(o for o in drawn if o.draw == 0),
            tuple(o for o in drawn if o.draw > 0),
            "above the other seeds",
        ),
    )
    figure = curves_figure(
        {
            lab.short[task]: {
                "mean of the calibrations, and the band between the lowest and the highest": Line(
                    [*range(lab.layers)],
                    [fmean(layer) for layer in zip(*(s.mean for s in each), strict=True)],
                    [min(layer) for layer in zip(*(s.mean for s in each), strict=True)],
                    [max(layer) for layer in zip(*(s.mean for s in each), strict=True)],
                )
            }
            for task, each in scores.items()
        },
        title=f"Visual information gain of {lab.sizes.seeds} calibrations on other samples (band: lowest to highest)",
        x="decoder layer",
        y="nats",
        log=True,
    )
    return Found(tables, findings, figure)


EXPERIMENT = Experiment(run, "2606.08511", "whether the samples of a calibration matter", "Figure 5b; Sec. 4.5.4")
