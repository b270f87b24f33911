"""ViCA: visual tokens are never updated, and text attends to them in a few layers only.

arXiv 2602.07574. The projected image keeps its first state: no visual attention and no visual FFN in any layer; keys
and values are made from it in eight layers of 32, and text attends to it there alone. The authors train for it. Here it
is put on an untrained model, as the far end of freezing, and as the best known guess at *which* layers must read.

Scaled to another depth, layers that fall together are one: 12 layers read in five.
"""

from __future__ import annotations

from ..cells import Skip
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Layers, method
from .published import LLAVA_7B


@method
def vica(model: Geometry | int, *, layers: Layers = (0, 1, 7, 8, 9, 10, 11, 14)) -> Plan:
    """Never update visual tokens, and let text read them in a few layers only."""
    plan = Plan.full(model).at(layers)  # refuses layers that are not there
    every = range(len(plan.layers))
    return plan.at(every, attention=Skip(), ffn=Skip()).at(set(every) - set(layers), visible=Skip())


METHOD = Method(
    vica,
    "2602.07574",
    "ViCA, untrained",
    published=LLAVA_7B,
)
