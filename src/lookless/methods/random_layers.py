"""Random layers: the control of every method that chooses layers.

Of the selection baselines of V-Skip (arXiv 2606.08511) and ShortV (arXiv 2504.00502, where freezing random layers keeps
56.1 on GQA and chosen ones 60.9): skip as many layers, drawn blindly. The papers do not give their draws; ``seed`` is
ours, and one seed is one draw: look at several.
"""

from __future__ import annotations

import random

from ..cells import Skip
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Count, method
from .published import V_SKIP_LAYERS, each
from .selection import first
from .strength import more_layers


@method
def random_layers(model: Geometry | int, *, layers: Count, seed: int = 0) -> Plan:
    """Skip visual attention in layers drawn at random: what choosing has to beat."""
    plan = Plan.full(model)
    order = list(range(len(plan.layers)))
    random.Random(seed).shuffle(order)
    return plan.at(first(tuple(order), layers, len(order)), attention=Skip())


METHOD = Method(
    random_layers,
    "2606.08511",
    "Random, a selection baseline of V-Skip",
    paper_arguments={"layers": 19},
    ours=("seed",),
    published=each("layers", V_SKIP_LAYERS, "V-Skip"),
    strength=more_layers,
)
