"""State cosine: freeze visual tokens where they leave a layer as they entered it.

The selection baseline of ShortV (arXiv 2504.00502: 59.5 on GQA against 60.9 by contribution), known from pruning text
models: the mean cosine between a layer's visual inputs and outputs. A layer that turns them little is frozen, whether
or not the answer sees the turn; operator skipping (arXiv 2606.31903) shows that late updates are large and still
silent. V-Skip's baseline of the same name is of output logits: :mod:`logit_cosine <lookless.methods.logit_cosine>`.

Scores are 1 - cos (the measure ``state_cosine``), higher where a layer turns its visual tokens more.
"""

from __future__ import annotations

from typing import Annotated

from ..cells import Skip
from ..plan import Plan
from ..scores import Scores
from .definition import Method
from .knobs import Count, method
from .published import SHORTV
from .selection import change_lowest
from .strength import more_layers


@method
def state_cosine(scores: Annotated[Scores, "state_cosine"], *, layers: Count) -> Plan:
    """Freeze visual tokens in the layers that turn their states least: ShortV's baseline."""
    return change_lowest(scores, layers, attention=Skip(), ffn=Skip())


METHOD = Method(
    state_cosine,
    "2504.00502",
    "Cosine, a selection baseline of ShortV",
    paper_arguments={"layers": 19},
    published=SHORTV,
    strength=more_layers,
)
