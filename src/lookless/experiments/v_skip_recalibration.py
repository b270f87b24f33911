"""How few layers an architecture can spare: Table 11 of arXiv 2606.08511, which does it for Qwen2.5-VL.

There 7 of 28 layers cost 5.8 points and 4 cost 1.3. Here every number of layers up to the paper's 8 of 28 is measured,
and the deepest is named that keeps as much as the paper's best: a choice of N by a bound on accuracy. The distance (KL
of the whole plan, on calibration samples) chooses without any answer.
"""

from __future__ import annotations

from ..comparison.statistics import retention_by_task
from .answers import HEADS, Outcomes, curve_rows, lines_of
from .charts import curves_figure
from .claims import at_least, counted
from .definition import Experiment
from .lab import Lab
from .report import HOLDS, Found, Table

BEST = 0.9872  #: of Table 11, at 4 of 28 layers


def run(lab: Lab) -> Found:
    [most], [paper] = lab.scaled(8, of=28), lab.scaled(7, of=28)
    counts = range(1, max(most, 2) + 1)
    points: dict[float, Outcomes] = {
        n: lab.on_tasks("V-Skip", lambda task, n=n: lab.plan("v-skip", task, layers=n), setting=str(n))  # type: ignore[misc]
        for n in counts
    }
    distances = {n: _distance(lab, n) for n in counts}
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
    findings = (
        counted(
            "Table 11",
            "the depth has to be chosen for the architecture: on Qwen2.5-VL 98.7 % at 4 of 28 layers, 94.2 % at 7",
            f"98.7 % or more up to {max(spared, default=0)} of {lab.layers} layers (surely up to {max(sure, default=0)}), "
            f"and {100 * (kept[paper].value if kept.get(paper) else 0):.1f} % at {paper}.",
            bool(kept.get(paper)) and max(spared, default=0) < paper,
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


def _distance(lab: Lab, layers: int) -> float:
    """Of the plans of all tasks, each on the calibration samples of its own."""
    from ..search.objective import effects_of

    each = []
    for task in lab.tasks:
        samples, plan = lab.draw(task), lab.plan("v-skip", task, layers=layers)

        def measured(samples=samples, plan=plan) -> dict[str, tuple[float, ...]]:  # type: ignore[no-untyped-def]
            [effects] = effects_of(lab.loaded, samples, [plan], position="last", progress=False)
            return {"distance": tuple(effect.distance for effect in effects)}

        found = lab.numbers(f"{task} distance {layers}", ("distance", samples.hash, plan.hash), measured)["distance"]
        each.append(sum(found) / len(found))
    return sum(each) / len(each)


EXPERIMENT = Experiment(run, "2606.08511", "how few layers an architecture can spare", "Table 11; App. F")
