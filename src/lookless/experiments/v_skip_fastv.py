"""V-Skip on top of FastV: Table 2 of arXiv 2606.08511, and the same at other shares of kept tokens."""

from __future__ import annotations

from .answers import HEADS, Curves, Outcomes, curve_rows, mean_kept_papers, priced, row_of
from .charts import kept_by_flops
from .claims import alike, beats, counted
from .definition import Experiment
from .lab import Lab
from .report import Found, Table

KEPT = (0.75, 0.5, 0.25)
FASTV, BOTH, V_SKIP = "FastV", "FastV + V-Skip", "V-Skip"


def run(lab: Lab) -> Found:
    [count], [layer] = lab.scaled(19), lab.scaled(3)
    layer = max(1, layer)
    alone = lab.method(V_SKIP, "v-skip", layers=count)
    curves: dict[str, dict[float, Outcomes]] = {
        FASTV: {keep: lab.method(FASTV, "fastv", setting=f"{keep}", layer=layer, keep=keep) for keep in KEPT},
        BOTH: {keep: _both(lab, layer, keep, count) for keep in KEPT},
    }
    table = Table(
        title=f"FastV before layer {layer}, V-Skip in {count} of {lab.layers} layers",
        heads=("method", "tokens kept", *HEADS),
        rows=((V_SKIP, 1.0, *row_of(alone)), *curve_rows(curves)),
        digits=2,
    )
    one, two = (mean_kept_papers(curves[name][0.5]) or 1.0 for name in (FASTV, BOTH))
    findings = (
        counted(
            "Table 2",
            "V-Skip takes a twelfth of the FLOPs that FastV leaves (61.66 to 56.73 %)",
            f"{100 * one:.1f} to {100 * two:.1f} %, {100 * (1 - two / one):.1f} % of what FastV leaves.",
            1 - two / one > 0.05,
        ),
        alike("Table 2", "and costs no accuracy", curves[BOTH][0.5], curves[FASTV][0.5], "above FastV alone"),
        beats(
            "Table 2", "V-Skip alone keeps more than FastV", alone, curves[FASTV][0.5], "above FastV (at more FLOPs)"
        ),
    )
    figure = kept_by_flops(lab.loaded.name, priced(_with_start(curves, alone)))
    return Found((table,), findings, figure)


def _both(lab: Lab, layer: int, keep: float, count: int) -> Outcomes:
    fastv = lab.plan("fastv", lab.tasks[0], layer=layer, keep=keep)
    return lab.on_tasks(BOTH, lambda task: fastv | lab.plan("v-skip", task, layers=count), setting=f"{keep}")


def _with_start(curves: Curves, alone: Outcomes) -> Curves:
    """V-Skip alone is FastV + V-Skip with all tokens kept."""
    return {FASTV: curves[FASTV], BOTH: {1.0: alone, **curves[BOTH]}}


EXPERIMENT = Experiment(run, "2606.08511", "V-Skip together with FastV", "Table 2")
