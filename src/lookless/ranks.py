"""The ranks that a plan can name: orders of visual tokens, computed inside the forward pass.

A rank is declared here, without torch, and computed by the function of the same name in :mod:`lookless.runtime.ranks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rank:
    """An order of visual tokens, best first.

    Attributes:
        what: highest first, in words.
        reads: what it is computed from: the ``previous`` layer, ``this`` layer's input, the vision ``tower``, or
            ``nothing``.
        question: whether it depends on text after the image; a plan that uses it is not safe under prefix caching.
        heads: whether it reads single heads, of which each process has its own under tensor parallelism.
    """

    what: str
    reads: Literal["previous", "this", "tower", "nothing"]
    question: bool
    heads: bool = False


RANKS: dict[str, Rank] = {
    "last_query_attention": Rank("attention of the last prompt token a layer before (FastV)", "previous", True, True),
    "instruction_attention": Rank("attention the last prompt token will pay here (PDrop)", "this", True, True),
    "text_raters": Rank("attention of the text tokens most like the image (SparseVLM)", "previous", True, True),
    "value_aware": Rank("length of attention x value, of the last prompt token (VisiPruner)", "previous", True, True),
    "mutual_attention": Rank(
        "attention of visual tokens plus that of text tokens, in this layer (ALVTS)", "this", True, True
    ),
    "key_norm": Rank("shortest key in the layer before", "previous", False, True),
    "attention_norm": Rank("longest attention update in the layer before (DASH)", "previous", False),
    "update_norm": Rank("longest update of the whole layer before (V2Drop)", "previous", False),
    "diversity": Rank("farthest from those already kept, greedy max-min cosine (DivPrune)", "this", False),
    "attention_then_diversity": Rank(
        "15 % by rope-free attention, the rest farthest from them (HalfV)", "this", True, True
    ),
    "tower_attention": Rank("attention of the tower's class token, or of all its patches (VisionZip)", "tower", False),
    "tower_attention_then_diversity": Rank("half by tower attention, half least alike (VisPruner)", "tower", False),
    "random": Rank("the same random order for every prompt: the control", "nothing", False),
}
