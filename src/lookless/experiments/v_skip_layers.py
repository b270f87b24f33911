"""V-Skip's number of layers, with every baseline: Tables 1, 4, 5 and 8 and Figure 5a of arXiv 2606.08511.

As many layers as the paper's 4 to 32 of 32 skip what a method skips. V-Skip and random layers have a band: V-Skip of
calibrations on other samples, random layers of other draws. FFN-Skip has two rows, as the paper does not say by which
scores its layers are chosen: its own, and V-Skip's.
"""

from __future__ import annotations

from collections.abc import Callable

from ..cells import Skip
from ..methods.selection import change_lowest
from ..plan import Plan
from .answers import HEADS, Curves, Outcomes, curve_rows, lines_of
from .charts import kept_figure
from .claims import beats, keeps
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

V_SKIP, FFN, SAME, SHORTV, COSINE, RANDOM, VTW = (
    "V-Skip",
    "FFN-Skip",
    "FFN-Skip, V-Skip's layers",
    "ShortV",
    "logit cosine",
    "random layers",
    "VTW, so many layers without image",
)
COUNTS = (0, 4, 8, 16, 19, 21, 24, 28, 32)
NOTE = (
    "Draws: of V-Skip, calibrations on other samples; of random layers, other layers. FLOPs of the methods at one "
    "number of layers differ: an FFN saves more than attention."
)
Made = Callable[[Lab, str, int, int], Plan]


def run(lab: Lab) -> Found:
    counts = lab.scaled(*COUNTS)
    curves: dict[str, dict[float, Outcomes]] = {
        name: {n: _drawn(lab, name, n) for n in counts if name != VTW or 0 < n < lab.layers} for name in PLANS
    }
    heads = ("method", "layers", *HEADS)
    table = Table(title="Answers kept by the number of layers", heads=heads, rows=curve_rows(curves), note=NOTE)
    figure = kept_figure(
        {lab.loaded.name: lines_of(curves)},
        title="Right answers kept when so many layers skip",
        x=f"layers that skip, of {lab.layers}",
        height=4.6,
    )
    return Found((table,), _findings(lab, curves), figure)


def _ffn_of_v_skip(lab: Lab, task: str, layers: int, draw: int) -> Plan:
    return change_lowest(lab.scores(task, "visual_information_gain"), layers, ffn=Skip())


def _method(name: str) -> Made:
    return lambda lab, task, layers, draw: lab.plan(name, task, layers=layers)


PLANS: dict[str, Made] = {
    V_SKIP: lambda lab, task, layers, draw: lab.plan("v-skip", task, draw, layers=layers),
    FFN: _method("ffn-skip"),
    SAME: _ffn_of_v_skip,
    SHORTV: _method("shortv"),
    COSINE: _method("logit-cosine"),
    RANDOM: lambda lab, task, layers, draw: lab.plan("random-layers", task, layers=layers, seed=draw),
    VTW: lambda lab, task, layers, draw: lab.plan("vtw", task, after=lab.layers - layers - 1),
}


def _drawn(lab: Lab, name: str, layers: int) -> Outcomes:
    def outcomes(draw: int) -> Outcomes:
        return lab.on_tasks(name, lambda task: PLANS[name](lab, task, layers, draw), setting=str(layers), draw=draw)

    draws = lab.sizes.seeds if name in (V_SKIP, RANDOM) else 1
    return tuple(outcome for draw in range(draws) for outcome in outcomes(draw))


def _findings(lab: Lab, curves: Curves) -> tuple[Finding, ...]:
    [paper], [most], [every] = lab.scaled(19), lab.scaled(28), lab.scaled(32)
    mine = curves[V_SKIP]
    here = f"at {paper} of {lab.layers} layers"

    def above(where: str, claim: str, other: str) -> Finding:
        return beats(where, claim, mine[paper], curves[other][paper], f"above {other} {here}")

    return (
        keeps(
            "Tables 1, 5", "nothing is lost at 19 of 32 layers: 100.3 % (here: 99 % or more)", mine[paper], 0.99, here
        ),
        keeps(
            "Table 5",
            "without any visual attention nine tenths of the answers are left: 91.1 % at 32 of 32",
            mine[every],
            0.9,
            f"at {every} of {lab.layers}",
        ),
        above("Figure 5a", "chosen layers keep more than random ones", RANDOM),
        above("Figure 5a", "layers chosen by information gain keep more than those by cosine of logits", COSINE),
        above("Tables 4, 8", "at one number of layers V-Skip keeps more than FFN-Skip (19 of 32)", FFN),
        above("Tables 4, 8", "the same, with FFN-Skip in V-Skip's layers", SAME),
        beats(
            "Table 8",
            "FFN-Skip falls first: 92.1 against 98.7 % at 28 of 32",
            mine[most],
            curves[FFN][most],
            f"above {FFN} at {most} of {lab.layers}",
        ),
        above("Tables 1, 4", "at one number of layers V-Skip keeps more than ShortV", SHORTV),
        above("Table 1", "V-Skip keeps more than withdrawal (here: of as many layers)", VTW),
    )


EXPERIMENT = Experiment(
    run, "2606.08511", "how many layers can skip, beside every baseline", "Tables 1, 4, 5, 8; Figure 5a"
)
