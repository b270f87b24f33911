"""RedundancyLens together with token pruning, to half of the FLOPs: arXiv 2501.19036, and its Table 1 at that price."""

from __future__ import annotations

from .answers import HEADS, Outcomes, each_draw, mean_kept, row_of
from .charts import Line, kept_by_flops
from .claims import alike, beats, counted, keeps
from .definition import Experiment
from .lab import Lab
from .prices import at_price
from .redundancy import on_tasks, one_layer, reduced
from .report import Found, Table

LENS, FASTV, BOTH = "RedundancyLens", "FastV", "RedundancyLens + FastV"
OTHERS = ("vtw", "fastv")


def run(lab: Lab) -> Found:
    [half] = lab.scaled(16)
    fastv = lab.plan("fastv", lab.tasks[0])
    rows: dict[str, Outcomes] = {
        LENS: on_tasks(lab, LENS, one_layer, half, half),
        FASTV: lab.everywhere(FASTV, fastv),
        BOTH: lab.on_tasks(BOTH, lambda task: reduced(lab, task, one_layer, half, half) | fastv),
    }
    others = at_price(lab, OTHERS, mean_kept(rows[BOTH]))
    rows |= {f"{name} at the price of both": found for name, found in others.found.items()}
    table = Table(
        title=f"Attention and FFN reduced in {half} of {lab.layers} layers, with and without FastV",
        heads=("method", *HEADS),
        rows=tuple((name, *row_of(outcomes)) for name, outcomes in rows.items()),
    )
    one, two, both = (mean_kept(rows[name]) for name in (LENS, FASTV, BOTH))
    findings = (
        counted(
            "Sec. 2",
            "gains add up (72 % alone, 52 % with FastV on InternVL2)",
            f"{100 * one:.1f} % of the FLOPs alone, {100 * two:.1f} % by FastV, {100 * both:.1f} % together.",
            both < min(one, two),
        ),
        alike("Sec. 2", "and cost no more than FastV alone", rows[BOTH], rows[FASTV], "above FastV alone"),
        keeps(
            "Sec. 2",
            "RedundancyLens in half of the layers loses nothing (here: 99 % or more)",
            rows[LENS],
            0.99,
            f"at {half} of {lab.layers}",
        ),
        *(
            beats(
                "Table 1", f"at one price it keeps more than {name.split()[0]}", rows[BOTH], outcomes, f"above {name}"
            )
            for name, outcomes in rows.items()
            if name.endswith("at the price of both")
        ),
    )
    lines = {name: Line([mean_kept(o)], each_draw(o)[:1] or [0.0]) for name, o in rows.items()}
    figure = kept_by_flops(lab.loaded.name, lines)
    return Found((table,), findings, figure)


EXPERIMENT = Experiment(run, "2501.19036", "together with token pruning, to half of the FLOPs", "Sec. 2; Table 1")
