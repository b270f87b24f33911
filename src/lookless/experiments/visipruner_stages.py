"""VisiPruner's three stages, apart and together: arXiv 2510.17205.

Thresholds are those of the authors' code for LLaVA-1.5-7B, and the length among them is absolute: on another model a
stage may never act. `visipruner-tokens` tells where it does.
"""

from __future__ import annotations

from ..cells import Filter, Sink, Skip
from ..plan import Plan
from .answers import HEADS, Outcomes, each_draw, mean_kept, row_of
from .charts import Line, kept_by_flops
from .claims import alike, beats, keeps
from .definition import Experiment
from .lab import Lab
from .prices import at_price
from .report import Finding, Found, Table

SHALLOW, FILTER, EXIT, TWO, ALL = (
    "1: shallow",
    "2: filter",
    "3: exit",
    "1 and 2",
    "1, 2 and 3",
)
NEVER = 1.1  #: no cosine is as high, so that no layer is idle


def stages(lab: Lab) -> dict[str, Plan]:
    """A plan for each stage and for those together."""
    whole = lab.plan("visipruner", lab.tasks[0])
    shallow = (
        Plan.full(lab.geometry).at([0], visible=Sink(), attention=Skip()).at(whole.skipped("visible"), visible=Skip())
    )
    at = [layer for layer, row in enumerate(whole.layers) if isinstance(row.keep, Filter)]
    filtering = Filter(exit_cosine=NEVER)
    full = Plan.full(lab.geometry)
    return {
        SHALLOW: shallow,
        FILTER: full.at(at, keep=filtering),
        EXIT: full.at(at, keep=Filter(norm=0.0)),
        TWO: shallow.at(at, keep=filtering),
        ALL: whole,
    }


def run(lab: Lab) -> Found:
    rows = {name: lab.everywhere(name, plan) for name, plan in stages(lab).items()}
    price = mean_kept(rows[ALL])
    others = at_price(lab, ("fastv", "random-tokens", "down-sampling"), price)
    rows |= {f"{name} at the price of all": found for name, found in others.found.items()}
    table = Table(
        title="Stages of VisiPruner",
        heads=("stages", *HEADS),
        rows=tuple((name, *row_of(outcomes)) for name, outcomes in rows.items()),
        note="Stage 3 alone keeps all visual tokens until it withdraws them. FLOPs are traced, prompt by prompt.",
    )
    lines = {name: Line([mean_kept(o)], each_draw(o)[:1] or [0.0]) for name, o in rows.items()}
    figure = kept_by_flops(lab.loaded.name, lines, title="Right answers kept by FLOPs, stage by stage", height=4.2)
    return Found((table,), _findings(lab, rows), figure)


def _findings(lab: Lab, rows: dict[str, Outcomes]) -> tuple[Finding, ...]:
    stock = lab.everywhere("dense", Plan.full(lab.geometry))
    kept = mean_kept(rows[ALL])
    return (
        alike("stage 1", "shallow layers need no reading of the image", rows[SHALLOW], stock, "above the stock model"),
        alike(
            "stage 2",
            "a few tokens are enough in the middle (GQA 62.0 to 61.3)",
            rows[TWO],
            rows[SHALLOW],
            "above stage 1 alone",
        ),
        alike("stage 3", "and none in the end (61.3 to 61.0)", rows[ALL], rows[TWO], "above stages 1 and 2"),
        keeps("Table 5", "97 % is kept by all three (63.8 to 61.9)", rows[ALL], 0.97, f"at {kept:.0%} of the FLOPs"),
        *(
            beats("abstract", f"it keeps more than {name.split()[0]} at one price", rows[ALL], found, f"above {name}")
            for name, found in rows.items()
            if name.endswith("the price of all")
        ),
    )


EXPERIMENT = Experiment(run, "2510.17205", "three stages, apart and together", "Sec. 4; Table 5; abstract")
