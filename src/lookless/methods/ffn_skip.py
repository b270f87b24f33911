"""FFN-Skip: visual tokens are not transformed where that changes nothing.

The ablation of "Look Less, Reason More" (arXiv 2606.08511, Table 8) that skips the visual FFN in as many layers as
V-Skip skips attention: 99.16 % retained at 19 of 32 layers, 92.14 % at 28, 71.59 % at 32. At equal N it is not
compute-matched, as the paper reads it: on LLaVA-1.5-7B an FFN saves 3.5 times what attention saves. Each operator has
its own scores here (``ffn_effect``); that the paper re-measured for the FFN is our reading.
"""

from __future__ import annotations

from typing import Annotated

from ..cells import Skip
from ..plan import Plan
from ..scores import Scores
from .definition import Method
from .knobs import Count, method
from .published import V_SKIP_LAYERS, each
from .selection import change_lowest
from .strength import more_layers


@method
def ffn_skip(scores: Annotated[Scores, "ffn_effect"], *, layers: Count) -> Plan:
    """Skip the visual feed-forward network in the layers where it matters least."""
    return change_lowest(scores, layers, ffn=Skip())


METHOD = Method(
    ffn_skip,
    "2606.08511",
    "FFN-Skip, V-Skip's ablation",
    paper_arguments={"layers": 19},
    published=each("layers", V_SKIP_LAYERS, "V-Skip"),
    strength=more_layers,
)
