"""ShortV: visual tokens are frozen in the layers that contribute least.

arXiv 2504.00502 (ICCV 2025). Layer contribution: the KL divergence between the model and the one whose visual
tokens neither attend nor are transformed in one layer. The released code computes KL(frozen || full), the reverse of
V-Skip's direction, at the last prompt position, over 40 samples by its README's command; ``layer_contribution`` is
that. 19 of 32 layers are frozen for 7B, 24 of 40 for 13B.

The released layer finds the image by a constant prompt prefix and passes no mask to layers it does not replace, so it
is right for one image, one template and batch 1; nothing of that is needed here. The layers it publishes are presets
(``shortv/LLaVA-1.5-7B`` and so on, :mod:`lookless.methods.presets`).
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
def shortv(scores: Annotated[Scores, "layer_contribution"], *, layers: Count) -> Plan:
    """Freeze visual tokens (neither attention nor FFN) in the layers that contribute least."""
    return change_lowest(scores, layers, attention=Skip(), ffn=Skip())


METHOD = Method(
    shortv,
    "2504.00502",
    "ShortV: freezing visual tokens in ineffective layers",
    paper_arguments={"layers": 19},
    published=SHORTV,
    strength=more_layers,
)
