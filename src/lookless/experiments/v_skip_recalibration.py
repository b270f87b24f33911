"""How few layers an architecture can spare: Table 11 of arXiv 2606.08511, which does it for Qwen2.5-VL.

There 7 of 28 layers cost 5.8 points and 4 cost 1.3. Here every number of layers up to the paper's 8 of 28 is measured,
and the deepest is named that keeps as much as the paper's best: a choice of N by a bound on accuracy. The distance (KL
of the whole plan, on calibration samples) chooses without any answer.
"""

from __future__ import annotations

from statistics import fmean

from ..comparison.statistics import retention_by_task
from ..search.objective import effects_of
from .answers import HEADS, Outcomes, curve_rows, lines_of
from .charts import curves_figure
from .claims import counted
from .definition import Experiment
from .lab import Lab
from .report import HOLDS, Found, Table, at_least, shown

BEST = 0.9872  #: of Table 11, at 4 of 28 layers


def run(lab: Lab) -> Found:
    [most], [paper] = lab.scaled(8, of=28), lab.scaled(7, of=28)
    counts = range(1, max(most, 2) + 1)
    points: dict[float, Outcomes] = {n: lab.method("V-Skip", "v-skip", setting=str(n), layers=n) for n in counts}
    distances = {n: fmean(_distance(lab, task, n) for task in lab.tasks) for n in counts}
    kept = {n: retention_by_task(outcomes) for n, outcomes in points.items()}
    spared = [n for n, found in kept.items() if found is not None and found.value >= BEST]
    sure = [n for n, found in kept.items() if at_least(found, BEST) == HOLDS]
    rows = curve_rows({"V-Skip": points})
    table = Table(
        title=f"V-Skip in few of {lab.layers} layers",
        heads=("method", "layers", *HEADS, "distance, nats"),
        rows=tuple((*row, distances[n]) for row, n in zip(rows, counts, strict=True)),
        note="Distance: KL(full || plan) of the next token on calibration samples, mean of the tasks.",
        digits=5,
    )
    most_spared = max(spared, default=0)
    findings = (
        counted(
            "Table 11",
            "the depth has to be chosen for the architecture: on Qwen2.5-VL 98.7 % at 4 of 28 layers, 94.2 % at 7",
            f"98.7 % or more up to {most_spared} of {lab.layers} layers (surely up to {max(sure, default=0)}), and "
            f"{shown(kept[paper])} at {paper}.",
            most_spared < paper,
        ),
    )
    figure = curves_figure(
        {lab.loaded.name: lines_of({"V-Skip": points})},
        title="Right answers kept in the first few layers that skip (dashed: the paper's best on Qwen2.5-VL)",
        x=f"layers that skip, of {lab.layers}",
        y="mean of the tasks' retentions",
        level=BEST,
    )
    return Found((table,), findings, figure)


def _distance(lab: Lab, task: str, layers: int) -> float:
    """Of a task's plan, on the calibration samples that it was made by."""
    samples, plan = lab.draw(task), lab.plan("v-skip", task, layers=layers)

    def measured() -> dict[str, tuple[float, ...]]:
        [effects] = effects_of(lab.loaded, samples, [plan], position="last", progress=False)
        return {"distance": tuple(effect.distance for effect in effects)}

    return fmean(lab.numbers(f"{task} distance {layers}", ("distance", samples.hash, plan.hash), measured)["distance"])


EXPERIMENT = Experiment(run, "2606.08511", "how few layers an architecture can spare", "Table 11; App. F")
