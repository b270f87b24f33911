"""The repair of a choice that took layers as independent."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..cells import Skip
from ..errors import PlanError
from ..layer_plan import LayerPlan
from ..plan import Plan
from ..progress import shown
from .greedy import SLACK, Found
from .objective import Objective

#: The four actions of operator skipping.
ACTIONS = (
    LayerPlan(),
    LayerPlan(ffn=Skip()),
    LayerPlan(attention=Skip()),
    LayerPlan(attention=Skip(), ffn=Skip()),
)


class Repaired(Found):
    """A plan before and after its repair.

    Attributes:
        before, after: the joint distance, in nats.
        kept: the share of FLOPs after.
        changed: layers whose row is another than before.
        plan: the plan after.
    """

    before: float
    after: float
    kept: float
    changed: tuple[int, ...]
    plan: Plan


def repair(
    objective: Objective,
    plan: Plan,
    *,
    kept: float | None = None,
    actions: Sequence[LayerPlan] = ACTIONS,
    sweeps: int = 1,
    progress: bool = True,
) -> Repaired:
    """The interaction check behind an additive choice, as operator skipping's (arXiv 2606.31903), and one repair sweep.

    Layer by layer, from the last: give it another of ``actions``, or exchange its attention and FFN with another
    layer's; take what lowers the joint distance most within the budget. The paper's text asks for low joint risk and
    prints no procedure; this one is ours. It never makes the plan worse on the samples it saw.

    Args:
        kept: at most this share of FLOPs; by default what ``plan`` keeps.
        sweeps: at most so many; one that changes nothing is the last.

    Raises:
        PlanError: ``plan`` itself keeps more.
    """
    started, evaluations = time.perf_counter(), objective.evaluations
    share = objective.kept(plan)
    budget = share if kept is None else kept
    if share > budget + SLACK:
        raise PlanError(
            f"the plan keeps {share:.1%} of the FLOPs, more than the {budget:.1%} it may: choose a cheaper."
        )
    before, now = objective(plan), plan
    for _ in range(sweeps):
        swept = now
        for layer in shown(list(reversed(range(len(plan.layers)))), "repair", progress):
            near = {p.layers: p for p in _neighbours(now, layer, actions) if objective.kept(p) <= budget + SLACK}
            now = min([now, *near.values()], key=objective)  # the first of equals, so nothing moves for nothing
        if now.layers == swept.layers:
            break
    knobs = {**plan.provenance.knobs, "repaired": sweeps}
    found = now.made_by(knobs=knobs)
    return Repaired(
        provenance=objective.made_by(f"{plan.provenance.method or 'a plan'}, repaired", kept=budget, sweeps=sweeps),
        before=before,
        after=objective(now),
        kept=objective.kept(now),
        changed=tuple(i for i, (a, b) in enumerate(zip(plan.layers, now.layers, strict=True)) if a != b),
        plan=found,
        evaluations=objective.evaluations - evaluations,
        seconds=time.perf_counter() - started,
    )


def _neighbours(plan: Plan, layer: int, actions: Sequence[LayerPlan]) -> list[Plan]:
    """Plans in which ``layer`` has another action, or another layer's, which then has its."""
    mine, made = plan.layers[layer], []
    for action in actions:
        made.append(plan.at([layer], attention=action.attention, ffn=action.ffn))
    for other, row in enumerate(plan.layers):
        swapped = plan.at([layer], attention=row.attention, ffn=row.ffn)
        made.append(swapped.at([other], attention=mine.attention, ffn=mine.ffn))
    return [p for p in made if p.layers != plan.layers]
