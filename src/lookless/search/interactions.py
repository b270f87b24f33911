"""Repair of a plan that was chosen as if its layers were independent."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..cells import Skip
from ..errors import PlanError
from ..layer_plan import LayerPlan
from ..plan import Plan
from ..progress import track
from .greedy import SLACK, SearchResult
from .objective import Objective

#: The four actions of operator skipping.
ACTIONS = (
    LayerPlan(),
    LayerPlan(ffn=Skip()),
    LayerPlan(attention=Skip()),
    LayerPlan(attention=Skip(), ffn=Skip()),
)


class Repaired(SearchResult):
    """A plan before and after its repair.

    Attributes:
        before, after: the joint distance, in nats.
        kept: the share of FLOPs after.
        changed: layers whose row differs from before.
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
    """The interaction check after an additive choice, as in operator skipping (arXiv 2606.31903), and a repair sweep.

    Layer by layer, from the last: give it another of ``actions``, or exchange its attention and FFN with another
    layer's; take what lowers the joint distance most within the budget. The paper requires low joint risk and prints
    no procedure; this one is ours. It never makes the plan worse on the samples it saw.

    Args:
        objective: measures plans.
        plan: to repair.
        kept: at most this share of FLOPs; by default what ``plan`` keeps.
        actions: cells a layer may be given.
        sweeps: the largest number of sweeps; one that changes nothing is the last.
        progress: show a bar on standard error.

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
    before = objective(plan)
    now = _swept(objective, plan, budget, actions, sweeps, progress)
    return Repaired(
        provenance=objective.made_by(f"{plan.provenance.method or 'a plan'}, repaired", kept=budget, sweeps=sweeps),
        before=before,
        after=objective(now),
        kept=objective.kept(now),
        changed=tuple(i for i, (a, b) in enumerate(zip(plan.layers, now.layers, strict=True)) if a != b),
        plan=now.made_by(knobs={**plan.provenance.knobs, "repaired": sweeps}),
        evaluations=objective.evaluations - evaluations,
        seconds=time.perf_counter() - started,
    )


def _swept(
    objective: Objective, plan: Plan, budget: float, actions: Sequence[LayerPlan], sweeps: int, progress: bool
) -> Plan:
    """``plan`` after at most ``sweeps`` sweeps over its layers."""
    now = plan
    for _ in range(sweeps):
        before = now
        for layer in track(list(reversed(range(len(plan.layers)))), "repair", progress):
            near = {p.layers: p for p in _neighbours(now, layer, actions) if objective.kept(p) <= budget + SLACK}
            now = min([now, *near.values()], key=objective)  # the first of equals: no change without a gain
        if now.layers == before.layers:
            break
    return now


def _neighbours(plan: Plan, layer: int, actions: Sequence[LayerPlan]) -> list[Plan]:
    """Plans in which ``layer`` has another of ``actions``, or has exchanged its cells with another layer."""
    mine, made = plan.layers[layer], []
    for action in actions:
        made.append(plan.at([layer], attention=action.attention, ffn=action.ffn))
    for other, row in enumerate(plan.layers):
        swapped = plan.at([layer], attention=row.attention, ffn=row.ffn)
        made.append(swapped.at([other], attention=mine.attention, ffn=mine.ffn))
    return [p for p in made if p.layers != plan.layers]
