"""V-Skip: visual tokens issue no queries in layers where their attention changes nothing.

"Look Less, Reason More" (arXiv 2606.08511). Eq. 3 measures, for each layer, the visual information gain: the
KL divergence from the full model's next-token distribution to that of the model whose visual tokens do not attend
in that one layer, averaged over some twenty samples of a task. Eq. 4 skips the N layers with the lowest gain;
it is a plain sort, so layers are taken as independent. The paper's N: 19 of 32 layers for LLaVA 7B, 24 of 40 for
13B, 7 of 28 for Qwen2.5-VL-7B, where it costs 5.8 points of retention (Table 11).

What a skipped layer computes, and why: :class:`lookless.cells.Skip`.
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
def v_skip(scores: Annotated[Scores, "visual_information_gain"], *, layers: Count) -> Plan:
    """Skip visual attention in the layers where it matters least.

    ``scores`` are the visual information gain (``lookless.calibrate``); any other layer score gives a variant of your
    own, and has to say so: ``scores.use_as("visual_information_gain")``.

        >>> from lookless import Geometry, Scores
        >>> four = Geometry.preset("LLaVA-1.5-7B").model_copy(update={"layers": 4})
        >>> scores = Scores(name="visual_information_gain", per_sample=((0.6, 0.1, 0.2, 0.0),), geometry=four)
        >>> plan = v_skip(scores, layers=2)
        >>> plan.skipped("attention")
        (1, 3)

    Raises:
        PlanError: ``scores`` are of another measure, or ``layers`` is negative or more than the model has.
    """
    return change_lowest(scores, layers, attention=Skip())


METHOD = Method(
    v_skip,
    "2606.08511",
    "Look Less, Reason More (V-Skip)",
    paper_arguments={"layers": 19},
    published=each("layers", V_SKIP_LAYERS),
    strength=more_layers,
)
