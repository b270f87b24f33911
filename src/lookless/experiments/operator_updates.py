"""Update size against effect on the answer: the motivating finding of arXiv 2606.31903.

Its abstract: late updates of visual tokens can remain large while they have little effect on the representation of the
answer's tokens. For each layer and operator: how far it moves visual tokens; how far the answer's representation (the
final, normalised state at the last prompt token) and its distribution move when the update is removed; and the
first-order influence on the answer's log-probability. The paper prints no formula, so these are derived.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean, median

from torch import Tensor, nn

from ..calibration.distances import kl, turn
from ..calibration.replay import full_runs, one_row, run_from
from ..cells import Skip
from ..layer_plan import LayerPlan, spans
from ..runtime.families import Located, locate
from .agreement import rank_correlation
from .charts import Line, curves_figure
from .claims import counted
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

OPERATORS = ("attention", "ffn")
TAU = 0.003  #: nats, up to which the answer is said not to hear an update; as of the labels of operator-risks
SIZE, TURN, SHIFT, INFLUENCE = "update size", "answer's state turns", "answer's distribution moves", "influence"
UNITS = {SIZE: "share of the state", TURN: "1 - cos", SHIFT: "nats", INFLUENCE: "nats"}
Profile = dict[str, list[float]]  # by measure, of each layer


def run(lab: Lab) -> Found:
    profiles = {operator: _mean([_profile(lab, task, operator) for task in lab.tasks]) for operator in OPERATORS}
    table = Table(
        title="Mean of the tasks",
        heads=("operator", "layer", *(f"{name} ({unit})" for name, unit in UNITS.items()), "so it is"),
        rows=tuple(
            (operator, layer, *(profile[name][layer] for name in UNITS), kind)
            for operator, profile in profiles.items()
            for layer, kind in enumerate(kinds(profile))
        ),
        note="The state turns and the distribution moves when that one update is removed; influence is its first-order "
        "estimate in the log-probability of the model's own answer. Nothing reads what the last layer does. "
        f"Silent: at most {TAU} nats. Large: the median update of the operator, or more.",
        digits=5,
    )
    figure = curves_figure(
        {
            f"visual {operator}": {
                f"{name} ({unit})": Line([*range(lab.layers)], profiles[operator][name]) for name, unit in UNITS.items()
            }
            for operator in OPERATORS
        },
        title="How far visual tokens are moved, and how much of that the answer sees (mean of the tasks)",
        x="decoder layer",
        y="see legend",
        log=True,
        columns=2,
    )
    return Found(
        (table,), tuple(f for operator in OPERATORS for f in _findings(lab, operator, profiles[operator])), figure
    )


def kinds(profile: Profile) -> list[str]:
    """Of each layer: large or small, by the median update; heard or silent, by whether the distribution moves."""
    middle = median(profile[SIZE])
    sizes = ["large" if size >= middle else "small" for size in profile[SIZE]]
    return [
        f"{size}, {'silent' if shift <= TAU else 'heard'}" for size, shift in zip(sizes, profile[SHIFT], strict=True)
    ]


def _mean(profiles: list[Profile]) -> Profile:
    return {name: [fmean(layer) for layer in zip(*(p[name] for p in profiles), strict=True)] for name in UNITS}


def _profile(lab: Lab, task: str, operator: str) -> Profile:
    samples = lab.draw(task)
    found = lab.numbers(
        f"{task} {operator} removed", ("removed", operator, samples.hash), lambda: _removed(lab, task, operator)
    )
    return {
        SIZE: [*lab.scores(task, f"{operator}_update_size").mean],
        INFLUENCE: [*lab.scores(task, f"{operator}_influence").mean],
        TURN: [*found[TURN]],
        SHIFT: [*found[SHIFT]],
    }


def _removed(lab: Lab, task: str, operator: str) -> dict[str, tuple[float, ...]]:
    """What the answer loses with each update, mean over samples."""
    located, model = locate(lab.loaded.model), lab.loaded.model
    cells = LayerPlan(attention=Skip()) if operator == "attention" else LayerPlan(ffn=Skip())
    turns: list[list[float]] = [[] for _ in range(lab.layers)]
    shifts: list[list[float]] = [[] for _ in range(lab.layers)]
    with last_states(located) as states:
        for full in full_runs(lab.loaded, lab.draw(task), "", "last", False):
            dense = states[-1]
            for layer in range(lab.layers):
                logits = run_from(model, located, full, layer, one_row(lab.geometry, layer, cells))
                turns[layer].append(float(turn(dense, states[-1]).mean()))
                shifts[layer].append(float(kl(full.logits, logits).mean()))
            states.clear()
    return {TURN: tuple(map(fmean, turns)), SHIFT: tuple(map(fmean, shifts))}


@contextmanager
def last_states(located: Located) -> Iterator[list[Tensor]]:
    """What the decoder's final norm gives, call by call: logits are read from it, at the rows read alone."""
    states: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        states.append(output.detach().float())

    hook = located.norm.register_forward_hook(record)
    try:
        yield states
    finally:
        hook.remove()


def _findings(lab: Lab, operator: str, profile: Profile) -> tuple[Finding, ...]:
    [late] = lab.scaled(21)
    end = lab.layers - 1  # nothing reads what the last layer does to visual tokens
    sizes, turns = profile[SIZE][:end], profile[TURN][:end]
    size = fmean(sizes[late:]) / (fmean(sizes[:late]) or 1)
    effect = fmean(turns[late:]) / (fmean(turns[:late]) or 1)
    loud = [layer for layer, kind in enumerate(kinds(profile)[:end]) if kind == "large, silent"]
    agree = rank_correlation(profile[SIZE][:end], profile[SHIFT][:end])
    screened = rank_correlation(profile[INFLUENCE][:end], profile[SHIFT][:end])
    return (
        counted(
            "abstract",
            f"late updates by visual {operator} stay large and hardly reach the answer (here: in the last third half "
            f"the size of those before or more, and a tenth of the effect on the answer's state or less)",
            f"{size:.2f} of the size and {effect:.3f} of the effect, from layer {late} of {lab.layers} on. Large and "
            f"silent: {'layers ' + ' '.join(spans(loud)) if loud else 'no layer'}.",
            size >= 0.5 and effect <= 0.1,
        ),
        counted(
            "abstract",
            f"the size of an update does not tell its effect ({operator}; here: a rank correlation below 0.5)",
            f"a rank correlation of {agree:.2f} with the movement of the distribution; of the first-order influence "
            f"{screened:.2f}.",
            agree < 0.5,
        ),
    )


EXPERIMENT = Experiment(run, "2606.31903", "large updates that the answer does not see", "abstract; the diagnostic")
