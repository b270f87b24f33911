"""When the answer can be read, layer by layer, and under skips: a logit lens on the stages of arXiv 2510.17205.

The paper says that fusion happens abruptly in middle layers and that deep layers only refine the language. A logit lens
reads the state of the last prompt token after each layer with the model's own last norm and head: how likely is the
first token of the answer that the model will give? Under a plan, the same token is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from statistics import fmean

import torch
from torch import Tensor

from ..cells import Keep, Skip
from ..errors import PlanError
from ..plan import Plan
from ..runtime.families import locate
from ..runtime.patching import applied
from .charts import Line, curves_figure
from .claims import counted
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

STOCK, BLIND, WITHDRAWN, V_SKIP, SILENT = (
    "stock model",
    "without an image",
    "image withdrawn in the deep layers",
    "V-Skip",
    "operator skipping",
)
NAMES = (STOCK, BLIND, WITHDRAWN, V_SKIP, SILENT)
SAVED = 0.337  #: operator skipping's own setting
Curves = dict[str, dict[str, tuple[float, ...]]]  # by task, by what the lens is held on
FORMED = 0.5  #: a probability from which the answer is said to be there


def run(lab: Lab) -> Found:
    curves = {task: _curves(lab, task) for task in lab.tasks}
    names = dict.fromkeys(name for lines in curves.values() for name in lines)
    table = Table(
        title="Probability of the answer's first token after each layer, %, mean of the tasks",
        heads=("layer", *(f"{name}, %" for name in names)),
        rows=tuple((layer, *(_mean(curves, name)[layer] for name in names)) for layer in range(lab.layers)),
        note="Of the token that the stock model answers with, read at the last prompt token.",
    )
    figure = curves_figure(
        {
            lab.short[task]: {n: Line([*range(lab.layers)], line) for n, line in lines.items()}
            for task, lines in curves.items()
        },
        title="When the answer can be read (dashed: a probability of one half)",
        x="decoder layer",
        y="probability of the answer's first token",
        level=FORMED,
    )
    return Found((table,), _findings(lab, curves), figure)


def plans(lab: Lab, task: str) -> dict[str, Plan | None]:
    """What the lens is held on; a method that cannot reach its setting here is left out."""
    full = Plan.full(lab.geometry)
    [deep], [count] = lab.scaled(24), lab.scaled(19)
    found: dict[str, Plan | None] = {
        STOCK: None,
        BLIND: full.at(range(lab.layers), visible=Skip()),
        WITHDRAWN: full.at([min(deep, lab.layers - 1)], keep=Keep(0)),
        V_SKIP: lab.plan("v-skip", task, layers=count),
    }
    with suppress(PlanError):
        found[SILENT] = lab.plan("operator-skipping", task, save=SAVED)
    return found


def _curves(lab: Lab, task: str) -> dict[str, tuple[float, ...]]:
    samples, held = lab.draw(task), plans(lab, task)
    hashes = [None if plan is None else plan.hash for plan in held.values()]
    found = lab.numbers(f"{task} lens", ("lens", samples.hash, *hashes), lambda: _measured(lab, task, held))
    return {name: found[name] for name in NAMES if name in found}


def _measured(lab: Lab, task: str, held: dict[str, Plan | None]) -> dict[str, tuple[float, ...]]:
    """The answer's probability after each layer, mean over samples, under each plan."""
    inputs = [lab.loaded.inputs([item]) for item in lab.draw(task) if item.pictures]
    answers: list[int] = []
    found = {}
    for name, plan in held.items():
        with applied(lab.loaded.model, plan):
            lenses = [lens(lab, each) for each in inputs]
        answers = answers or [int(logits[-1].argmax()) for logits in lenses]
        pairs = zip(lenses, answers, strict=True)
        found[name] = _by_layer([logits.softmax(-1)[:, token].tolist() for logits, token in pairs])
    return found


@torch.no_grad()
def lens(lab: Lab, inputs: dict[str, Tensor]) -> Tensor:
    """Logits at the last prompt token after each layer, float32 ``[layers, vocabulary]``; the last are the model's."""
    model, located = lab.loaded.model, locate(lab.loaded.model)
    states = model(**inputs, output_hidden_states=True, logits_to_keep=1, use_cache=False).hidden_states[1:]
    last = [state[0, -1] for state in states]
    normed = [*map(located.norm, last[:-1]), last[-1]]  # the model's own last state is normalised already
    logits: Tensor = model.get_output_embeddings()(torch.stack(normed)).float()  # type: ignore[operator]
    return logits


def _by_layer(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(fmean, zip(*rows, strict=True)))


def _mean(curves: Curves, name: str) -> tuple[float, ...]:
    """Of the tasks that have it."""
    return _by_layer([lines[name] for lines in curves.values() if name in lines])


def formed(line: Sequence[float]) -> int | None:
    """The first layer after which the answer is there for good: at half of what the last layer makes of it."""
    below = [layer for layer, p in enumerate(line) if p < FORMED * line[-1]]
    return None if line[-1] == 0 else (below[-1] + 1 if below else 0)


def steepest(line: Sequence[float], width: int) -> float:
    """The largest rise over ``width`` layers, as a share of the whole."""
    start = (0.0, *line)
    rises = [start[min(at + width, len(line))] - start[at] for at in range(len(line))]
    return max(rises) / line[-1] if line[-1] else 0.0


def _findings(lab: Lab, curves: Curves) -> tuple[Finding, ...]:
    stock, blind, withdrawn = (_mean(curves, name)[-1] for name in (STOCK, BLIND, WITHDRAWN))
    [early], [deep], width = lab.scaled(7), lab.scaled(24), max(1, round(lab.layers / 8))
    rise = fmean(steepest(lines[STOCK], width) for lines in curves.values())
    there = {task: formed(lines[STOCK]) for task, lines in curves.items()}
    middle = sum(layer is not None and early <= layer < deep for layer in there.values())
    moved = {
        name: max(_moved(lines[STOCK], lines[name]) for lines in curves.values() if name in lines)
        for name in (V_SKIP, SILENT)
        if any(name in lines for lines in curves.values())
    }
    return (
        counted(
            "abstract",
            "fusion happens abruptly (here: an eighth of the layers makes half of the answer's probability)",
            f"{rise:.0%} of it within {width} of {lab.layers} layers, in the mean of the tasks.",
            rise >= 0.5,
        ),
        counted(
            "abstract",
            "in the middle layers (here: half of it is there for good after layer 7 of 32 and before layer 24, on "
            "every task)",
            f"on {middle} of {len(there)} tasks: {_layers(lab, there)}, of {lab.layers}.",
            middle == len(there),
        ),
        counted(
            "stage 3",
            "deep layers need no image any more (here: withdrawn from layer 24 of 32 on, nine tenths of the "
            "probability stay)",
            f"{withdrawn:.0%} where the stock model has {stock:.0%}, and {blind:.0%} without an image.",
            withdrawn >= 0.9 * stock,
        ),
        counted(
            "a control",
            "skips leave the answer where it forms (here: within one layer of the stock model's, on every task)",
            f"{', '.join(f'{name} {by:g} layers off at most' for name, by in moved.items())}.",
            all(by <= 1 for by in moved.values()),
        ),
    )


def _moved(stock: Sequence[float], line: Sequence[float]) -> float:
    """By how many layers the answer is there earlier or later; infinite where it never is."""
    one, other = formed(stock), formed(line)
    return float("inf") if one is None or other is None else abs(one - other)


def _layers(lab: Lab, there: dict[str, int | None]) -> str:
    return ", ".join(f"{lab.short[task]} {'never' if at is None else f'layer {at}'}" for task, at in there.items())


EXPERIMENT = Experiment(run, "2510.17205", "when the answer can be read, and under skips", "abstract; the three stages")
