"""What visual tokens do in a hybrid, by the kind of mixer: layers with attention beside layers with a gated delta rule.

V-Skip (arXiv 2606.08511) and operator skipping (arXiv 2606.31903) were shown on models of attention alone. Here their
three measures are split by what mixes the rows of a layer, and as many FLOPs are spared in layers of one kind as in
layers of the other. The last layer is left out: what it does to visual tokens nobody reads, whatever mixes its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import fmean

from ..cells import Cell, Skip
from ..comparison.entry import Entry
from ..errors import PlanMismatchError
from ..layer_plan import spans
from ..methods.selection import ranking
from ..plan import Plan
from .answers import HEADS, Outcomes, row_of
from .charts import Line, curves_figure
from .claims import beats, counted
from .definition import Experiment
from .lab import Lab
from .report import Finding, Found, Table

DELTA, ATTENTION, EITHER = "gated delta rule", "attention", "either"
#: What is skipped, by the measure that chooses its layers.
SKIPPED: dict[str, tuple[str, dict[str, Cell]]] = {
    "visual_information_gain": ("reading", {"attention": Skip()}),
    "ffn_effect": ("FFN", {"ffn": Skip()}),
    "freeze_effect": ("both", {"attention": Skip(), "ffn": Skip()}),
}
WHERE = "in no paper"
Kinds = Mapping[str, tuple[int, ...]]
#: By kind and budget: the layers of the first task, and the answers to all tasks.
Answers = Mapping[tuple[str, int], tuple[tuple[int, ...], Outcomes]]


def run(lab: Lab) -> Found:
    kinds = kinds_of(lab)
    means = {measure: _means(lab, measure) for measure in SKIPPED}
    answers = {measure: _at_equal_flops(lab, measure, kinds) for measure in SKIPPED}
    counts = {kind: len(layers) for kind, layers in kinds.items()}
    tables = (
        Table(
            title="Nats that the answer moves when one layer skips, mean of the tasks",
            heads=("layer", "mixer", *(what for what, _ in SKIPPED.values())),
            rows=tuple(
                (layer, kind, *(means[measure][layer] for measure in SKIPPED))
                for layer in range(lab.layers - 1)
                for kind, layers in kinds.items()
                if layer in layers
            ),
        ),
        Table(
            title="The same, mean of the layers of a kind",
            heads=("mixer", "layers", *(what for what, _ in SKIPPED.values())),
            rows=tuple(
                (kind, counts[kind], *(_of_kind(means[measure], layers) for measure in SKIPPED))
                for kind, layers in kinds.items()
            ),
        ),
        Table(
            title="Answers kept when layers of one kind skip, at equal FLOPs",
            heads=("skipped", "in layers with", "how many", "layers (first task)", *HEADS),
            rows=tuple(
                (SKIPPED[measure][0], kind, len(layers), " ".join(spans(layers)), *row_of(outcomes))
                for measure, found in answers.items()
                for (kind, _), (layers, outcomes) in found.items()
            ),
            note="Of each kind the layers with the lowest score, as many as come nearest to the FLOPs of half of the "
            "layers of the kind that has fewer, then of all. The last layer, whose visual work is dead, is in none.",
        ),
    )
    figure = curves_figure(
        {
            f"{what} skipped": {
                kind: Line(layers, [means[measure][layer] for layer in layers]) for kind, layers in kinds.items()
            }
            for measure, (what, _) in SKIPPED.items()
        },
        title="How far the answer moves when one layer skips, by the kind of its mixer",
        x="decoder layer",
        y="nats",
        log=True,
    )
    return Found(tables, _findings(lab, kinds, answers), figure)


def kinds_of(lab: Lab) -> Kinds:
    """Layers by the kind of their mixer, without the last layer.

    Raises:
        PlanMismatchError: all are of one kind.
    """
    delta = tuple(layer for layer in range(lab.layers - 1) if lab.geometry.delta_of(layer) is not None)
    attention = tuple(layer for layer in range(lab.layers - 1) if layer not in delta)
    if not delta or not attention:
        raise PlanMismatchError(
            f"this experiment compares layers by the kind of their mixer, and those of {lab.geometry.model_type} are "
            f"all of one kind: give a hybrid such as Qwen3.5."
        )
    return {DELTA: delta, ATTENTION: attention}


def _means(lab: Lab, measure: str) -> list[float]:
    """Of each layer, the mean of the tasks."""
    scores = [lab.scores(task, measure).mean for task in lab.tasks]
    return [fmean(of_task[layer] for of_task in scores) for layer in range(lab.layers)]


def _of_kind(means: list[float], layers: Collection[int]) -> float:
    return fmean(means[layer] for layer in layers)


def _at_equal_flops(lab: Lab, measure: str, kinds: Kinds) -> Answers:
    """At half of the layers of the kind that has fewer, and at all of them: what each kind keeps at that price."""
    what, cells = SKIPPED[measure]
    fewer = min(kinds, key=lambda kind: len(kinds[kind]))
    most, found = len(kinds[fewer]), {}
    for budget in sorted({-(-most // 2), most}):
        price = _price(lab, cells, kinds[fewer][:budget])
        for kind, layers in {**kinds, EITHER: tuple(range(lab.layers - 1))}.items():
            chosen = {task: _nearest(lab, task, measure, layers, price) for task in lab.tasks}
            plans = {task: Plan.full(lab.geometry).at(mine, **cells) for task, mine in chosen.items()}
            outcomes = lab.on_tasks(f"{what} skipped, {kind}", plans.__getitem__, setting=f"{budget} {fewer}")
            found[kind, budget] = chosen[lab.tasks[0]], outcomes
    return found


def _nearest(lab: Lab, task: str, measure: str, layers: Collection[int], price: float) -> tuple[int, ...]:
    """The lowest of ``layers``, as many as come nearest to ``price``."""
    order = [layer for layer in ranking(lab.scores(task, measure)) if layer in layers]
    firsts = (order[:count] for count in range(1, len(order) + 1))
    best = min(firsts, key=lambda some: abs(_price(lab, SKIPPED[measure][1], some) - price))
    return tuple(sorted(best))


def _price(lab: Lab, cells: dict[str, Cell], layers: Collection[int]) -> float:
    """The share of FLOPs that runs when ``layers`` skip."""
    return lab.work.kept(Entry(Plan.full(lab.geometry).at(layers, **cells)))


def _findings(lab: Lab, kinds: Kinds, answers: Mapping[str, Answers]) -> tuple[Finding, ...]:
    return (
        *(_larger(lab, measure, kinds) for measure in SKIPPED),
        *(
            beats(
                WHERE,
                f"at equal FLOPs more is kept when layers with a gated delta rule skip ({SKIPPED[measure][0]})",
                found[DELTA, budget][1],
                found[ATTENTION, budget][1],
                f"above the same in layers with attention ({len(found[DELTA, budget][0])} and "
                f"{len(found[ATTENTION, budget][0])} layers)",
            )
            for measure, found in answers.items()
            for budget in [max(budget for _, budget in found)]
        ),
    )


def _larger(lab: Lab, measure: str, kinds: Kinds) -> Finding:
    """In which kind of layer a measure is larger, task by task."""
    of_tasks = [
        [_of_kind(list(lab.scores(task, measure).mean), kinds[kind]) for kind in (ATTENTION, DELTA)]
        for task in lab.tasks
    ]
    larger = sum(attention > delta for attention, delta in of_tasks)
    attention, delta = (fmean(means) for means in zip(*of_tasks, strict=True))
    return counted(
        WHERE,
        f"skipping ({SKIPPED[measure][0]}) moves the answer more in a layer with attention (here: on every task)",
        f"{attention:.4f} nats, and {delta:.4f} with a gated delta rule; more on {larger} of {len(of_tasks)} tasks.",
        True if larger == len(of_tasks) else False if larger == 0 else None,
    )


EXPERIMENT = Experiment(
    run, "2606.08511", "a hybrid's layers by the kind of their mixer", "nothing: its measures, on a hybrid"
)
