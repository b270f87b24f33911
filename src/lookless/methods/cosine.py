"""Cosine: skip where visual states leave a layer as they entered it.

A selection baseline of V-Skip (arXiv 2606.08511) and of ShortV (arXiv 2504.00502, 59.5 on GQA against 60.9 by
contribution), known from pruning text models: the mean cosine between a layer's visual inputs and outputs. A layer
that turns them little is skipped, whether or not the answer sees the turn; operator skipping (arXiv 2606.31903) shows
that late updates are large and still silent.

Scores here are the cosine itself (``cosine_similarity``), and the *highest* are skipped: of all measures the only one
where higher matters less.
"""

from __future__ import annotations

from typing import Annotated

from ..cells import Skip
from ..plan import Plan
from ..scores import Scores
from .knobs import Count, method
from .selection import change_lowest


@method
def cosine(scores: Annotated[Scores, "cosine_similarity"], *, layers: Count) -> Plan:
    """Skip visual attention in the layers that turn visual states least."""
    turned = tuple(tuple(-value for value in sample) for sample in scores.per_sample)
    return change_lowest(scores.model_copy(update={"per_sample": turned}), layers, attention=Skip())
