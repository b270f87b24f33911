"""V-Skip*: one mask for every task.

"Look Less, Reason More" (arXiv 2606.08511), the universal mask of its ablation: the layers chosen on MME are skipped on
every benchmark, at 99.55 % of the full model's average. Here the mask is of as many tasks as there are scores of: given
one task's, it is the paper's.

With several the paper has no rule, so there are two of ours. ``mean`` averages the gains, so a task whose gains are ten
times another's has ten times its weight. ``rank`` averages each layer's rank in each task's order, so all tasks have
the same weight.
"""

from __future__ import annotations

from statistics import fmean
from typing import Annotated

from ..cells import Skip
from ..errors import PlanError, ScoresError
from ..plan import Plan
from ..scores import Scores
from .definition import Method
from .knobs import Count, method
from .published import V_SKIP_LAYERS, each
from .selection import change_lowest, ranking
from .strength import more_layers


@method
def v_skip_universal(*scores: Annotated[Scores, "visual_information_gain"], layers: Count, by: str = "mean") -> Plan:
    """Skip visual attention where it matters least to several tasks taken together (V-Skip*).

    Raises:
        PlanError: no scores, or of another measure, ``by`` is not one of mean, rank, or ``layers`` are more than the
            model has.
        ScoresError: several that were screened: of each task the lowest layers are known, and not of all together.
    """
    if not scores:
        raise PlanError("there are no scores: give those of at least one task.")
    if by not in ("mean", "rank"):
        raise PlanError(f"by is {by!r} and should be one of mean, rank.")
    if len(scores) > 1 and any(s.screened for s in scores):
        raise ScoresError(
            "of scores that were screened only the lowest layers are known, and here the scores of several tasks are "
            "averaged in every layer: calibrate without --screen."
        )
    tasks = [s.mean if by == "mean" else _places(s) for s in scores]
    together = tuple(fmean(layer) for layer in zip(*tasks, strict=True))
    return change_lowest(scores[0].model_copy(update={"per_sample": (together,)}), layers, attention=Skip())


def _places(scores: Scores) -> tuple[float, ...]:
    """Each layer's place in the order, 0 for the lowest; equal scores share the mean of their places."""
    order = [scores.mean[layer] for layer in ranking(scores)]
    return tuple(order.index(mean) + (order.count(mean) - 1) / 2 for mean in scores.mean)


METHOD = Method(
    v_skip_universal,
    "2606.08511",
    "V-Skip*, one mask for all tasks",
    paper_arguments={"layers": 19},
    ours=("by",),
    published=each("layers", V_SKIP_LAYERS),
    strength=more_layers,
)
