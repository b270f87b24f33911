"""Three risks and a label for each layer: the diagnosis of arXiv 2606.31903.

A layer may skip visual attention, the visual FFN, or both. The risk is how far the next token's distribution moves. A
layer is silent where skipping both risks at most a threshold; else it is labelled by the operator it cannot spare.
"""

from __future__ import annotations

from statistics import fmean

from ..layer_plan import spans
from ..methods.operator_skipping import LABELS, labels
from ..scores import Scores
from .charts import Line, curves_figure
from .claims import counted
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

RISKS = {"visual_information_gain": "attention", "ffn_effect": "FFN", "freeze_effect": "both"}
TAU = 0.003  #: nats; of the paper nothing is printed


def run(lab: Lab) -> Found:
    risks = {task: [lab.scores(task, measure) for measure in RISKS] for task in lab.tasks}
    named = {task: labels(*each, tau=TAU) for task, each in risks.items()}
    mean = {name: _mean([each[i] for each in risks.values()], lab.layers) for i, name in enumerate(RISKS.values())}
    [late] = lab.scaled(24)
    tables = (
        Table(
            title="Risk of skipping, nats, mean of the tasks; and the label by task",
            heads=("layer", *mean, *lab.short.values()),
            rows=tuple(
                (layer, *(risk[layer] for risk in mean.values()), *(named[task][layer] for task in lab.tasks))
                for layer in range(lab.layers)
            ),
            note=f"Silent: skipping both risks at most {TAU} nats. Else by the riskier operator.",
        ),
        Table(
            title="Layers by label",
            heads=("task", *LABELS),
            rows=tuple((lab.short[task], *(_layers(each, label) for label in LABELS)) for task, each in named.items()),
        ),
    )
    figure = curves_figure(
        {
            lab.short[task]: {
                f"skip {name}": Line([*range(lab.layers)], scores.mean)
                for name, scores in zip(RISKS.values(), each, strict=True)
            }
            for task, each in risks.items()
        },
        title=f"Risk of skipping operators of one layer (dashed: {TAU} nats, below which a layer is silent)",
        x="decoder layer",
        y="nats",
        log=True,
        level=TAU,
    )
    return Found(tables, _findings(lab, named, late), figure)


def _mean(scores: list[Scores], layers: int) -> list[float]:
    return [fmean(s.mean[layer] for s in scores) for layer in range(layers)]


def _layers(named: tuple[str, ...], label: str) -> str:
    return " ".join(spans(layer for layer, name in enumerate(named) if name == label)) or "none"


def _findings(lab: Lab, named: dict[str, tuple[str, ...]], late: int) -> tuple[Finding, ...]:
    _, ffn, silent = LABELS
    tails = {task: all(label == silent for label in each[late:]) for task, each in named.items()}
    middle = [label for each in named.values() for label in each[:late] if label != silent]
    dominant = sum(label == ffn for label in middle)
    kinds = {label for each in named.values() for label in each}
    return (
        counted(
            "presets",
            "the last quarter of the layers is silent (frozen in every preset; here: on every task)",
            f"from layer {late} of {lab.layers} on silent on {sum(tails.values())} of {len(tails)} tasks.",
            all(tails.values()),
        ),
        counted(
            "presets",
            "before that, attention is what can be skipped (here: most layers that are not silent are ffn-dominant)",
            f"{dominant} of {len(middle)} are ffn-dominant, {len(middle) - dominant} attention-dominant.",
            dominant > len(middle) / 2 if middle else None,
        ),
        counted(
            "key findings",
            "there are layers of all three kinds",
            f"{', '.join(sorted(kinds))}.",
            len(kinds) == len(LABELS),
        ),
    )


EXPERIMENT = Experiment(run, "2606.31903", "three risks of each layer, and its label", "key findings; presets")
