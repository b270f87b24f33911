"""ALVTS-like: each layer updates other visual tokens, and all stay readable.

arXiv 2606.14277 (CVPR 2026). Each layer chooses the visual tokens that go through it by mean visual-to-visual attention
times mean text-to-visual attention; the others pass through unchanged and may be chosen again. The paper computes both
with low-rank copies of the layer's projections, fitted on 256 samples, and released no code. Here the model's own
projections are used, with some visual queries, and the two attentions are added: the same in what it does to tokens,
but not in how it chooses them. The share is the same in all layers, which the authors name as a limit; 1/3 is their
mildest.
"""

from __future__ import annotations

from ..cells import Top
from ..geometry import Geometry
from ..plan import Plan
from .definition import Method
from .knobs import method
from .strength import smaller_ratio


@method
def alvts(model: Geometry | int, *, ratio: float = 1 / 3) -> Plan:
    """Let only the best-attended visual tokens attend and be transformed, chosen anew in every layer."""
    plan, best = Plan.full(model), Top(ratio, rank="mutual_attention")
    return plan.at(range(len(plan.layers)), attention=best, ffn=best)


METHOD = Method(
    alvts,
    "2606.14277",
    "ALVTS, like it",
    strength=smaller_ratio,
)
