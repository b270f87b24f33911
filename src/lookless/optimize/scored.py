"""The scores that methods need, from single changes that a search has run anyway."""

from __future__ import annotations

from collections.abc import Sequence

from ..cells import Skip
from ..data import Samples
from ..layer_plan import LayerPlan
from ..plan import Plan
from ..scores import Scores
from ..search.objective import Objective

#: The measures that methods need, by the row that they are of.
MEASURES = {
    "visual_information_gain": LayerPlan(attention=Skip()),
    "ffn_effect": LayerPlan(ffn=Skip()),
    "freeze_effect": LayerPlan(attention=Skip(), ffn=Skip()),
}


def task_scores(objective: Objective, samples: Samples, places: Sequence[int], measure: str) -> Scores:
    """One of :data:`MEASURES` on the samples of one task.

    Args:
        objective: measures plans on the samples of all tasks; what it has run is not run again.
        samples, places: of the task, and their indices in ``objective``.
    """
    full, layers = Plan.full(objective.geometry), range(objective.geometry.layers)
    plans = [full.at([layer], **MEASURES[measure].planned) for layer in layers]
    columns = [[effect.distance for effect in objective.effects(plan, places)] for plan in plans]
    made = objective.provenance
    return Scores(
        name=measure,
        position=str(made.knobs["position"]),
        per_sample=tuple(zip(*columns, strict=True)),
        geometry=objective.geometry,
        model=made.model,
        revision=made.revision,
        data=samples.name,
        data_hash=samples.hash,
        visual=objective.visual,
        text=objective.text,
        sample_hashes=samples.hashes,
        seed=samples.seed,
    )
