"""Visual information gain by layer and task: Figures 3 and 10, Table 9 and Appendix D of arXiv 2606.08511.

Beside the gain, ShortV's layer contribution (arXiv 2504.00502), which the appendix sets it against, and how far a layer
turns the states of visual tokens: what saturates, and what the answer sees of it, are two things. The dashed line is
the adaptive threshold: between the last layer that V-Skip skips at the paper's depth and the first that it does not.
"""

from __future__ import annotations

import math
from statistics import fmean, median

from ..scores import Scores
from .agreement import jaccard, rank_correlation
from .charts import Line, curves_figure
from .claims import counted
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

GAIN, CONTRIBUTION, TURN = "visual_information_gain", "layer_contribution", "state_cosine"
SATURATED = 0.01  #: of a task's whole gain


def run(lab: Lab) -> Found:
    gains = {task: lab.scores(task, GAIN) for task in lab.tasks}
    contributions = {task: lab.scores(task, CONTRIBUTION) for task in lab.tasks}
    [count] = lab.scaled(19)
    levels = {lab.short[task]: _threshold(scores, count) for task, scores in gains.items()}
    layers = range(lab.layers)
    by_layer = Table(
        title="Visual information gain, nats, mean over samples",
        heads=("layer", *lab.short.values()),
        rows=tuple((layer, *(gains[task].mean[layer] for task in lab.tasks)) for layer in layers),
        digits=5,
    )
    by_task = Table(
        title="By task",
        heads=(
            "task",
            f"threshold at {count} layers",
            "gain in the deep layers, %",
            "rank correlation with layer contribution",
            "same layers (Jaccard)",
            "seconds",
        ),
        rows=tuple(
            (
                lab.short[task],
                levels[lab.short[task]],
                _deep(lab, gains[task]),
                rank_correlation(gains[task].mean, contributions[task].mean),
                jaccard(gains[task].lowest(count), contributions[task].lowest(count)),
                gains[task].seconds,
            )
            for task in lab.tasks
        ),
        note="Deep: from the relative depth of layer 13 of 32. Seconds: of the gain's calibration.",
    )
    figure = curves_figure(
        {
            lab.short[task]: {
                "visual information gain": Line([*layers], gains[task].mean),
                "ShortV's layer contribution": Line([*layers], contributions[task].mean),
                "turn of visual states (1 - cos)": Line([*layers], lab.scores(task, TURN).mean),
            }
            for task in lab.tasks
        },
        title="How far the next token's distribution moves when one layer skips (dashed: V-Skip's threshold)",
        x="decoder layer",
        y="nats, or 1 - cos",
        log=True,
        level=levels,
    )
    return Found((by_layer, by_task), _findings(lab, gains, contributions, count), figure)


def _threshold(scores: Scores, count: int) -> float:
    """The geometric middle between the last gain below the cut and the first above it."""
    ordered = [max(gain, 1e-9) for gain in sorted(scores.mean)]
    return ordered[-1] if count >= len(ordered) else math.sqrt(ordered[count - 1] * ordered[count])


def _deep(lab: Lab, scores: Scores) -> float:
    """The share of the gain in layers from the paper's 13 of 32 on."""
    [first] = lab.scaled(13)
    return sum(scores.mean[first:]) / (sum(scores.mean) or 1)


def _findings(lab: Lab, gains: dict[str, Scores], contributions: dict[str, Scores], count: int) -> tuple[Finding, ...]:
    [first] = lab.scaled(13)
    deep = {task: _deep(lab, scores) for task, scores in gains.items()}
    flat = sum(share <= SATURATED for share in deep.values())
    alike = fmean(jaccard(gains[task].lowest(count), contributions[task].lowest(count)) for task in lab.tasks)
    seconds = [scores.seconds for scores in gains.values() if scores.seconds is not None]
    found = [
        counted(
            "Figure 3",
            "from layer 13 of 32 on there is no gain (here: at most 1 % of a task's, on every task)",
            f"from layer {first} of {lab.layers} on {100 * min(deep.values()):.1f} to {100 * max(deep.values()):.1f} % "
            f"of the gain; at most 1 % on {flat} of {len(deep)} tasks.",
            flat == len(deep),
        ),
        counted(
            "Appendix D",
            "information gain chooses other layers than ShortV's contribution (here: a Jaccard index below 0.8)",
            f"{alike:.2f} in the mean of the tasks, at {count} of {lab.layers} layers.",
            alike < 0.8,
        ),
    ]
    if seconds:
        said = f"{min(seconds):.0f} to {max(seconds):.0f} s on this machine, {lab.sizes.samples} samples."
        found.append(counted("Table 9", "a 7B model is calibrated in 1:39 to 2:15 minutes a task", said, None))
    if lab.geometry.model_type.startswith("qwen"):
        ratios = [scores.mean[0] / max(median(scores.mean[1:]), 1e-9) for scores in gains.values()]
        high = sum(ratio >= 100 for ratio in ratios)
        said = f"at least a hundred times the median of the others on {high} of {len(ratios)} tasks."
        found.append(
            counted("Figure 10", "on Qwen the first layer's gain is far above all others'", said, high == len(ratios))
        )
    return tuple(found)


EXPERIMENT = Experiment(
    run, "2606.08511", "information gain by layer and task, and its cost", "Figures 3, 10; Table 9; App. D"
)
