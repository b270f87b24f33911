"""Logit cosine: skip visual attention where that turns the output logits least.

The selection baseline CosSim of "Look Less, Reason More" (arXiv 2606.08511, Sec. 4.5.3), "calculated directly from
output logits": each layer in turn skips visual attention, and the cosine is taken between the full model's logits and
these. So it is V-Skip's own sweep with another distance; a divergence sees what the softmax sees, a cosine every logit
alike. ShortV's baseline of hidden states is :mod:`state_cosine <lookless.methods.state_cosine>`.

Scores are 1 - cos (the measure ``logit_cosine``), higher where skipping a layer turns the logits more. Where the paper
reads the logits it does not say; here as the information gain does, at the last prompt token by default.
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
def logit_cosine(scores: Annotated[Scores, "logit_cosine"], *, layers: Count) -> Plan:
    """Skip visual attention in the layers where that turns the output logits least: V-Skip's baseline."""
    return change_lowest(scores, layers, attention=Skip())


METHOD = Method(
    logit_cosine,
    "2606.08511",
    "CosSim, a selection baseline of V-Skip",
    paper_arguments={"layers": 19},
    published=each("layers", V_SKIP_LAYERS, "V-Skip"),
    strength=more_layers,
)
