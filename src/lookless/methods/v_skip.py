"""V-Skip: visual tokens stop asking where their asking changes nothing.

"Look Less, Reason More" (arXiv 2606.08511). Eq. 3 measures, for each layer, the visual information gain: the
KL divergence from the full model's next-token distribution to that of the model whose visual tokens do not attend
in that one layer, averaged over some twenty samples of a task. Eq. 4 skips the N layers with the lowest gain;
it is a plain sort, so layers are taken as independent. The paper's N: 19 of 32 layers for LLaVA 7B, 24 of 40 for
13B, 7 of 28 for Qwen2.5-VL-7B, where it costs 5.8 points of retention (Table 11).

What a skipped layer computes, and why, is told at :class:`lookless.plan.Skip`.
"""

from __future__ import annotations

from ..cells import Skip
from ..errors import PlanError
from ..plan import Plan
from ..scores import Scores


def v_skip(scores: Scores, *, layers: int) -> Plan:
    """Skip visual attention in the ``layers`` layers with the lowest score.

    ``scores`` are the visual information gain (``lookless.calibrate``); any other layer score gives its own variant.

    Raises:
        PlanError: ``layers`` is negative or more than the model has.
    """
    if not 0 <= layers <= scores.geometry.layers:
        raise PlanError(f"v-skip was asked to skip {layers} layers and the model has {scores.geometry.layers}.")
    plan = Plan.full(scores.geometry).at(scores.lowest(layers), attention=Skip())
    return plan.made_by(
        method="v-skip",
        knobs={"layers": layers, "scores": scores.name},
        model=scores.model,
        revision=scores.revision,
        data=scores.data,
        data_hash=scores.data_hash,
        samples=scores.samples,
    )
