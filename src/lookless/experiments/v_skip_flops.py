"""At V-Skip's price: Tables 6 and 7 of arXiv 2606.08511, where all methods save as much as V-Skip can.

V-Skip cannot save much, so the price is its own: what it keeps at the paper's relative depth. Every method is brought
to that share of the FLOPs that run. (The paper's table is by its formulas not at one price: ShortV's 4 layers are
7.74 TFLOPs, not 7.69.)
"""

from __future__ import annotations

from ..comparison.statistics import retention_by_task
from ..figures import Retained, retention_figure
from .answers import HEADS, Outcomes, mean_kept, row_of
from .claims import beats
from .definition import Experiment
from .lab import Lab
from .prices import at_price
from .report import Finding, Found, Table

METHODS = (
    "shortv",
    "vtw",
    "fastv",
    "pyramiddrop",
    "sparsevlm",
    "ffn-skip",
    "operator-skipping",
    "random-layers",
    "random-tokens",
    "down-sampling",
)


def run(lab: Lab) -> Found:
    [count] = lab.scaled(19)
    mine = lab.method("v-skip", "v-skip", layers=count)
    price = mean_kept(mine)
    others = at_price(lab, METHODS, price)
    known = {"v-skip": mine, **others.found}
    table = Table(
        title=f"At {100 * price:.1f} % of the FLOPs that run",
        heads=("method", *HEADS),
        rows=tuple((name, *row_of(outcomes)) for name, outcomes in known.items()),
        note=others.note,
    )
    kept = {name: retention_by_task(outcomes) for name, outcomes in known.items()}
    bars = [Retained(name, mean_kept(known[name]), e.value, e.low, e.high) for name, e in kept.items() if e is not None]
    figure = retention_figure({lab.loaded.name: {"by FLOPs": bars, f"at {price:.0%} of the FLOPs": bars}})
    return Found((table,), _findings(mine, known), figure)


def _findings(mine: Outcomes, known: dict[str, Outcomes]) -> tuple[Finding, ...]:
    papers = {
        "shortv": "Table 6",
        "vtw": "Table 6",
        "fastv": "Table 7",
        "pyramiddrop": "Table 7",
        "sparsevlm": "Table 7",
    }
    return (
        *(
            beats(where, f"at one price V-Skip keeps more than {name}", mine, known[name], f"above {name}")
            for name, where in papers.items()
            if name in known
        ),
        *(
            beats("a control", f"at one price V-Skip keeps more than {name}", mine, known[name], f"above {name}")
            for name in ("random-tokens", "down-sampling", "ffn-skip")
            if name in known
        ),
    )


EXPERIMENT = Experiment(run, "2606.08511", "all methods at the price that V-Skip can reach", "Tables 6, 7")
