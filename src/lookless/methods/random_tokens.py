"""Random tokens: the control of every method that ranks them.

Past some depth every order of visual tokens is as good as none ("Information Horizon", arXiv 2512.07580), and a public
comparison (UniPruneBench, arXiv 2511.02650) finds most orders below a random one. So a table without this row says
little. Layer and share are FastV's, whose control it is.
"""

from __future__ import annotations

from ..cells import Keep
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import Layer, method
from .strength import fewer_tokens


@method
def random_tokens(model: Geometry | int, *, layer: Layer = 2, keep: float = 0.5) -> Plan:
    """Keep visual tokens drawn at random: what ranking has to beat."""
    return Plan.full(model).at([layer], keep=Keep(keep, rank="random"))


METHOD = Method(
    random_tokens,
    "2512.07580",
    "Random tokens, FastV's control",
    strength=fewer_tokens,
)
