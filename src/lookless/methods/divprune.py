"""DivPrune: the visual tokens that are least alike.

arXiv 2503.02175 (CVPR 2025): choose the subset of visual tokens whose smallest cosine distance is largest,
greedily, from the projected features and before the first decoder layer; no attention, no question. The released
default keeps 9.8 % of them.
"""

from __future__ import annotations

from ..cells import Keep
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import method
from .published import LLAVA_7B
from .strength import fewer_tokens


@method
def divprune(model: Geometry | int, *, keep: float = 0.098) -> Plan:
    """Keep the most diverse visual tokens, before the first layer."""
    return Plan.full(model).at([0], keep=Keep(keep, rank="diversity"))


METHOD = Method(
    divprune,
    "2503.02175",
    "DivPrune",
    published=LLAVA_7B,
    strength=fewer_tokens,
)
