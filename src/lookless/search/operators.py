"""Operator skipping (arXiv 2606.31903): what each layer lives by, and the choice that follows for one budget.

The choice is by a sum of risks, each of one layer. What its changes do together is measured here; if that is much more
than the sum, :func:`lookless.search.repair` goes on from the plan.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..layer_plan import spans
from ..methods.operator_skipping import LABELS, labels, operator_skipping
from ..plan import Plan
from ..scores import Scores
from .greedy import SearchResult
from .objective import Objective

TAU = 0.001  #: nats; ours: the paper prints no threshold


class OperatorChoice(SearchResult):
    """What operator skipping chose.

    Attributes:
        labels: of each layer: ``attention-dominant``, ``ffn-dominant`` or ``silent``.
        tau: a layer is silent if skipping both its operators risks at most so many nats.
        kept: the share of FLOPs.
        joint: the plan's own distance, on the objective's samples.
        plan: the plan.
    """

    labels: tuple[str, ...]
    tau: float
    kept: float
    joint: float
    plan: Plan

    def __str__(self) -> str:
        by_label = {name: [i for i, label in enumerate(self.labels) if label == name] for name in LABELS}
        return "; ".join(f"{name}: {' '.join(spans(layers)) or 'no layer'}" for name, layers in by_label.items())


def operator_choice(
    objective: Objective, scores: Mapping[str, Scores], *, kept: float, tau: float = TAU
) -> OperatorChoice:
    """Label the layers, and skip attention, FFN or both where that risks least.

    Args:
        objective: measures the plan that is chosen.
        scores: of ``visual_information_gain``, ``ffn_effect`` and ``freeze_effect``, by these names.
        kept: at most this share of FLOPs.
        tau: as of :func:`lookless.methods.labels`, in nats.

    Raises:
        PlanError: freezing every layer keeps more.
    """
    started, evaluations = time.perf_counter(), objective.evaluations
    risks = scores["visual_information_gain"], scores["ffn_effect"], scores["freeze_effect"]
    plan = operator_skipping(*risks, save=1 - kept, visual=objective.visual, text=objective.text)
    return OperatorChoice(
        provenance=objective.made_by("operator-skipping", kept=kept, tau=tau),
        labels=labels(*risks, tau=tau),
        tau=tau,
        kept=objective.kept(plan),
        joint=objective(plan),
        plan=plan,
        evaluations=objective.evaluations - evaluations,
        seconds=time.perf_counter() - started,
    )
