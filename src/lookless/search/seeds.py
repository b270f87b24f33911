"""The plans of published methods near a budget: where a joint search starts, so that it ends no worse than they."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import LooklessError
from ..geometry import Geometry
from ..methods import METHODS, Method
from ..plan import Plan
from ..ranks import RANKS
from ..scores import Scores
from .greedy import SLACK
from .price import Pricing

STEPS = 40  #: strengths tried of each method
#: A measure that a method takes, and the one measured here that stands in for it.
STAND_INS = {"layer_contribution": "freeze_effect", "logit_cosine": "visual_information_gain"}


def method_plans(
    geometry: Geometry, scores: Mapping[str, Scores], *, visual: float, text: float, tower: bool = False
) -> dict[str, list[Plan]]:
    """Plans of growing strength of each method that a search can run, by the method's name.

    Left out: methods that are not one amount, that filter by what they see, or that rank by the vision tower where not
    ``tower``, and those that need scores which are not among ``scores`` and have none that can stand in.
    """
    found = {name: list(_plans(method, geometry, scores, visual, text, tower)) for name, method in METHODS.items()}
    return {name: plans for name, plans in found.items() if plans}


def nearest(plans: list[Plan], budget: float, pricing: Pricing) -> Plan | None:
    """The dearest of ``plans`` within ``budget``."""
    priced = [(pricing.share(plan.layers), i) for i, plan in enumerate(plans)]
    within = [(price, i) for price, i in priced if price <= budget + SLACK]
    return plans[max(within)[1]] if within else None


def _plans(
    method: Method, geometry: Geometry, scores: Mapping[str, Scores], visual: float, text: float, tower: bool
) -> Iterator[Plan]:
    known = {**scores, **{m: scores[s].use_as(m) for m, s in STAND_INS.items() if s in scores and m not in scores}}
    if method.strength is None or any(measure not in known for measure in method.measures):
        return
    needed: dict[str, Scores] = {measure: known[measure] for measure in method.measures}
    prompt = method.prompt_arguments(round(visual), round(text)) if method.prompt_arguments else {}
    seen = set()
    for step in range(1, STEPS + 1):
        knobs: dict[str, Any] = {**prompt, **method.strength(geometry.layers, step / STEPS)}
        try:
            plan = method.build(geometry, needed, **knobs)
        except LooklessError:  # a strength out of the method's range
            continue
        ranks = {rank for row in plan.layers for rank in row.ranks}
        can_run = plan.is_static and (tower or not any(RANKS[rank].reads == "tower" for rank in ranks))
        if can_run and plan.layers not in seen:
            seen.add(plan.layers)
            yield plan
