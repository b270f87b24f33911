"""What to choose operators by: arXiv 2606.31903 asks for a criterion that the answer can see.

One budget and one search, three criteria: how far an operator moves visual tokens (its update size), the first-order
influence of that on the answer's log-probability, and the measured risk of skipping it. Where the first two name no
number for both operators of a layer, it is their sum.
"""

from __future__ import annotations

from contextlib import suppress

from ..errors import PlanError
from ..plan import Plan
from ..scores import Scores
from .answers import HEADS, Curves, Outcomes, curve_rows, priced
from .charts import kept_by_flops
from .claims import beats
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

SIZE, INFLUENCE, RISK = "update size", "influence on the answer", "measured risk"
SUFFIX = {SIZE: "update_size", INFLUENCE: "influence"}
MEASURES = ("visual_information_gain", "ffn_effect", "freeze_effect")
SAVED = (0.337, 0.5)


def run(lab: Lab) -> Found:
    curves: dict[str, dict[float, Outcomes]] = {name: {} for name in (SIZE, INFLUENCE, RISK)}
    for name, points in curves.items():
        for save in SAVED:
            with suppress(PlanError):  # freezing every layer saves less
                points[save] = _answers(lab, name, save)
    table = Table(
        title="Answers kept by the share of FLOPs saved, operators chosen by",
        heads=("criterion", "asked to save", *HEADS),
        rows=curve_rows(curves),
        digits=3,
    )
    figure = kept_by_flops(lab.loaded.name, priced(curves), title="Right answers kept, by what operators are chosen by")
    return Found((table,), _findings(curves), figure)


def _answers(lab: Lab, name: str, save: float) -> Outcomes:
    return lab.on_tasks(name, lambda task: plan(lab, task, name, save), setting=f"{save}")


def plan(lab: Lab, task: str, name: str, save: float) -> Plan:
    """Operator skipping by a criterion."""
    if name == RISK:
        return lab.plan("operator-skipping", task, save=save)
    attention, ffn = (lab.scores(task, f"{operator}_{SUFFIX[name]}") for operator in ("attention", "ffn"))
    each = dict(zip(MEASURES, (attention, ffn, both(attention, ffn)), strict=True))
    return lab.plan_by("operator-skipping", {m: scores.use_as(m) for m, scores in each.items()}, save=save)


def both(attention: Scores, ffn: Scores) -> Scores:
    """Of skipping both operators of a layer, sample by sample."""
    rows = zip(attention.per_sample, ffn.per_sample, strict=True)
    return attention.model_copy(
        update={"per_sample": tuple(tuple(a + f for a, f in zip(*row, strict=True)) for row in rows)}
    )


def _findings(curves: Curves) -> tuple[Finding, ...]:
    deepest = max(curves[RISK])
    mine = curves[RISK][deepest]
    return (
        *(
            beats(
                "abstract",
                f"operators chosen by what the answer sees keep more than by {name}",
                mine,
                curves[name][deepest],
                f"of the measured risk above {name}, {deepest:.1%} saved",
            )
            for name in (SIZE, INFLUENCE)
        ),
        beats(
            "the diagnostic",
            "one backward pass sees it better than the size of updates does",
            curves[INFLUENCE][deepest],
            curves[SIZE][deepest],
            f"of the influence above the update size, {deepest:.1%} saved",
        ),
    )


EXPERIMENT = Experiment(run, "2606.31903", "what to choose operators by", "abstract; the criterion")
