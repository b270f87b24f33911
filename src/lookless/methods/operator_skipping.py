"""Operator skipping: each layer attends, transforms, does both or neither, whatever risks least for the budget.

"Attend, Transform, or Silence" (arXiv 2606.31903). For each layer the risk of three interventions is measured: skip
visual attention, skip the visual FFN, skip both. Layers are labelled attention-dominant, FFN-dominant or silent, and
a budget picks those of low risk. The selection was not released, only its results (the presets
``operator-skipping/MODEL/BUDGET``); its definition here is a derivation, not the authors' text: minimise the summed
risk subject to the FLOPs saved, one choice a layer, a multiple-choice knapsack.

All layers are of one shape, and skipping both saves what skipping each does. So a budget is two counts, of attentions
and of FFNs skipped, and dynamic programming over the counts is exact: nothing is rounded to buckets of FLOPs.

Departures. Risks add up, as if layers were independent. Where both operators are skipped the authors' runtime freezes
the text before the image too; that text never sees the image, so we leave it alone, which saves less: preset 20 for
Qwen3-VL-8B at 700 visual tokens and 15 + 55 of text saves 33.7 % their way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from ..cells import Full, Skip
from ..errors import PlanError, PlanMismatchError
from ..flops import prefill
from ..plan import Plan
from ..scores import Scores
from .definition import Method
from .knobs import Tokens, check_measures, measures_of, method
from .published import Setting

Counts = tuple[int, int]  # attentions and FFNs skipped
Choice = tuple[float, tuple[Counts, ...]]  # summed risk, and what was skipped in each layer

LABELS = ("attention-dominant", "ffn-dominant", "silent")


@method
def operator_skipping(
    attention: Annotated[Scores, "visual_information_gain"],
    ffn: Annotated[Scores, "ffn_effect"],
    both: Annotated[Scores, "freeze_effect"],
    *,
    save: float,
    visual: Tokens = None,
    text: Tokens = None,
) -> Plan:
    """Skip attention, FFN or both where that risks least, until a share of a prompt's decoder FLOPs is saved.

    ``save`` is the share of the prefill's FLOPs to do without, for ``visual`` and ``text`` tokens: by default those of
    the prompts that the scores were measured on, and of scores that do not know them LLaVA-1.5's, 576 and 66.6.

    Raises:
        PlanError: ``save`` is more than freezing every layer saves, or the prompt has no tokens.
    """
    visual = (attention.visual or 576) if visual is None else visual
    text = (66.6 if attention.text is None else attention.text) if text is None else text
    plan = Plan.full(attention.geometry).made_by(knobs={"visual": visual, "text": text})
    dense, without_attention, without_ffn = (
        prefill(attention.geometry, visual=visual, text=text, plan=plan.at(range(len(plan.layers)), **cells)).total
        for cells in ({}, {"attention": Skip()}, {"ffn": Skip()})
    )
    if not dense:
        raise PlanError(
            f"a prompt of {visual} visual and {text} text tokens costs nothing, so that no share of it can be saved: "
            f"give the numbers of your prompts."
        )
    price = ((1 - without_attention / dense) / len(plan.layers), (1 - without_ffn / dense) / len(plan.layers))

    def saved(counts: Counts) -> float:
        return counts[0] * price[0] + counts[1] * price[1]

    risks = [
        {(0, 0): 0.0, (1, 0): a, (0, 1): f, (1, 1): b}
        for a, f, b in zip(attention.mean, ffn.mean, both.mean, strict=True)
    ]
    for layer, skipped in enumerate(_least_risk(risks, saved, save)):
        cells = {"attention": Skip() if skipped[0] else Full(), "ffn": Skip() if skipped[1] else Full()}
        plan = plan.at([layer], **cells)
    return plan


def _least_risk(risks: list[dict[Counts, float]], saved: Callable[[Counts], float], save: float) -> tuple[Counts, ...]:
    """What to skip in each layer so that ``save`` is reached at the least summed risk."""
    best: Mapping[Counts, Choice] = {(0, 0): (0.0, ())}
    for layer in risks:
        longer: dict[Counts, Choice] = {}
        for (a, f), (risk, skipped) in best.items():
            for step, more in layer.items():
                counts = (a + step[0], f + step[1])
                if counts not in longer or risk + more < longer[counts][0]:
                    longer[counts] = (risk + more, (*skipped, step))
        best = longer
    enough = [choice for counts, choice in best.items() if saved(counts) >= save - 1e-12]
    if not save >= 0 or not enough:
        most = max(map(saved, best))
        raise PlanError(f"save is {save:.1%} of the FLOPs, and freezing every layer saves {most:.1%}.")
    return min(enough)[1]


def labels(attention: Scores, ffn: Scores, both: Scores, *, tau: float) -> tuple[str, ...]:
    """What each layer lives by: nothing (silent) if skipping both risks at most ``tau``, else the riskier to skip.

    Raises:
        PlanMismatchError: the scores are of different models.
        PlanError: they are of other measures.
    """
    check_measures([attention, ffn, both], [*measures_of(operator_skipping).values()])
    if not attention.geometry == ffn.geometry == both.geometry:
        raise PlanMismatchError("the three risks are of different models: calibrate them on one.")
    named = []
    for a, f, b in zip(attention.mean, ffn.mean, both.mean, strict=True):
        named.append(LABELS[2] if b <= tau else LABELS[1] if a <= f else LABELS[0])
    return tuple(named)


METHOD = Method(
    operator_skipping,
    "2606.31903",
    "Attend, Transform, or Silence",
    paper_layers=36,
    paper_arguments={"save": 0.337},
    ours=("visual", "text"),
    published=(Setting("Qwen3-VL-8B", {"save": 0.337}),),
    strength=lambda layers, strength: {"save": 0.9 * strength},
    prompt_arguments=lambda visual, text: {"visual": visual, "text": text},
)
