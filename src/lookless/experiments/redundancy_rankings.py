"""Layer rankings of arXiv 2501.19036: those that its text names (mean absolute activation, gradient sensitivity,
output variance of a probe set), the greedy search that it used, the one-layer effect, and random orders."""

from __future__ import annotations

from .answers import HEADS, Curves, Outcomes, curve_rows, lines_of
from .charts import kept_figure
from .claims import beats
from .definition import Experiment
from .lab import Lab
from .redundancy import GREEDY, RANKINGS, on_tasks, random
from .report import Finding, Found, Table

RANDOM = "random order"
COUNTS = (8, 16, 24)


def run(lab: Lab) -> Found:
    counts = lab.scaled(*COUNTS)
    curves: dict[str, dict[float, Outcomes]] = {
        name: {n: on_tasks(lab, name, ranking, n, n) for n in counts} for name, ranking in RANKINGS.items()
    }
    curves[RANDOM] = {
        n: tuple(o for seed in range(lab.sizes.seeds) for o in on_tasks(lab, RANDOM, random(seed), n, n, seed))
        for n in counts
    }
    orders = Table(
        title="Orders (of the first task; reduced first comes first)",
        heads=("ranking", "attention", "FFN"),
        rows=tuple((name, *(" ".join(map(str, o)) for o in r(lab, lab.tasks[0]))) for name, r in RANKINGS.items()),
    )
    table = Table(
        title="Answers kept, attention and FFN reduced", heads=("ranking", "layers", *HEADS), rows=curve_rows(curves)
    )
    figure = kept_figure(
        {lab.loaded.name: lines_of(curves)},
        title="Right answers kept when attention and FFN are reduced in the first layers of a ranking",
        x=f"reduced layers, of {lab.layers}",
        height=4.2,
    )
    return Found((table, orders), _findings(lab, curves), figure)


def _findings(lab: Lab, curves: Curves) -> tuple[Finding, ...]:
    at = lab.scaled(*COUNTS)[-1]
    mine = curves[GREEDY][at]
    return tuple(
        beats(
            "Sec. 1.3",
            f"greedy search ranks layers better than {name}",
            mine,
            points[at],
            f"above {name} at {at} of {lab.layers} layers",
        )
        for name, points in curves.items()
        if name != GREEDY
    )


EXPERIMENT = Experiment(run, "2501.19036", "rankings of layers, side by side", "Sec. 1.3")
