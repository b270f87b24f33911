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
from .charts import curves_figure
from .curves import HEADS, Curves, Outcomes, above, curve_rows, lines_of, retained
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table, above_zero, at_least, points, shown

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


def run(lab: Lab) -> Found:
    counts = lab.scaled(*COUNTS)
    curves = {name: {n: _drawn(lab, name, n) for n in counts if name != VTW or 0 < n < lab.layers} for name in _PLANS}
    table = Table(title="Answers kept by the number of layers", heads=("method", "layers", *HEADS), rows=curve_rows(curves), note=_NOTE)
    figure = curves_figure(
        {lab.loaded.name: lines_of(curves)},
        title="Right answers kept when so many layers skip (mean of the tasks' retentions)",
        x=f"layers that skip, of {lab.layers}",
        y="retention",
        level=1.0,
        height=4.6,
    )
    return Found((table,), _findings(lab, curves), figure)


_NOTE = (
    "Bands: V-Skip, of calibrations on other samples; random layers, of other draws. FLOPs of all methods at one number "
    "of layers differ: what an FFN saves is not what attention saves."
)


def _v_skip(lab: Lab, task: str, layers: int, draw: int) -> Plan:
    return lab.plan("v-skip", task, draw, layers=layers)


def _ffn_of_v_skip(lab: Lab, task: str, layers: int, draw: int) -> Plan:
    return change_lowest(lab.scores(task, "visual_information_gain"), layers, ffn=Skip())


def _method(name: str) -> Callable[[Lab, str, int, int], Plan]:
    return lambda lab, task, layers, draw: lab.plan(name, task, layers=layers)


_PLANS: dict[str, Callable[[Lab, str, int, int], Plan]] = {
    V_SKIP: _v_skip,
    FFN: _method("ffn-skip"),
    SAME: _ffn_of_v_skip,
    SHORTV: _method("shortv"),
    COSINE: _method("logit-cosine"),
    RANDOM: lambda lab, task, layers, draw: lab.plan("random-layers", task, layers=layers, seed=draw),
    VTW: lambda lab, task, layers, draw: lab.plan("vtw", task, after=lab.layers - layers - 1),
}


def _drawn(lab: Lab, name: str, layers: int) -> Outcomes:
    draws = range(lab.sizes.seeds if name in (V_SKIP, RANDOM) else 1)
    return tuple(
        outcome
        for draw in draws
        for outcome in lab.on_tasks(
            name, lambda task, draw=draw: _PLANS[name](lab, task, layers, draw), setting=str(layers), draw=draw  # type: ignore[misc]
        )
    )


def _findings(lab: Lab, curves: Curves) -> tuple[Finding, ...]:
    [paper], [most], [all_layers] = lab.scaled(19), lab.scaled(28), lab.scaled(32)
    mine = curves[V_SKIP]

    def kept(layers: int, bound: float, where: str, claim: str) -> Finding:
        found = retained(mine[layers])
        said = f"{shown(found)} at {layers} of {lab.layers} layers."
        return Finding(where=where, claim=claim, measured=said, verdict=at_least(found, bound))

    def beats(other: str, layers: int, where: str, claim: str) -> Finding:
        found = above(mine[layers], curves[other][layers])
        said = f"{points(found)} of accuracy above {other} at {layers} of {lab.layers} layers."
        return Finding(where=where, claim=claim, measured=said, verdict=above_zero(found))

    return (
        kept(paper, 0.99, "Tables 1 and 5", "at 19 of 32 layers nothing is lost (100.3 % kept; taken here as 99 % or more)"),
        kept(all_layers, 0.9, "Table 5", "with no visual attention at all nine tenths of the answers are left (91.1 %)"),
        beats(RANDOM, paper, "Figure 5a", "chosen layers keep more than random ones"),
        beats(COSINE, paper, "Figure 5a", "layers chosen by information gain keep more than those by cosine of logits"),
        beats(FFN, paper, "Tables 4 and 8", "at one number of layers V-Skip keeps more than FFN-Skip (19 of 32)"),
        beats(SAME, paper, "Tables 4 and 8", "the same, where FFN-Skip has V-Skip's layers (19 of 32)"),
        beats(FFN, most, "Table 8", "FFN-Skip falls first (28 of 32: 98.7 against 92.1 %)"),
        beats(SHORTV, paper, "Tables 1 and 4", "at one number of layers V-Skip keeps more than ShortV"),
        beats(VTW, paper, "Table 1", "V-Skip keeps more than withdrawal (here of as many layers)"),
    )


EXPERIMENT = Experiment(run, "2606.08511", "how many layers can skip, beside every baseline", "Tables 1, 4, 5, 8; Figure 5a")
