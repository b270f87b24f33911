"""A model begun from an earlier one, where there is no time to begin from nothing.

The earlier decoder can read and answer, and its deep tower did the seeing. The new model's first layers are new; they
learn to hand on what that decoder was given: of each visual token what the earlier projector made of it, of each word
its embedding, untouched. The rest of the new decoder is layers of the earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from batches import Batch
from losses import dense_loss, hidden_states, visual_rows

#: Layers of the earlier decoder that are kept; with these 8 of 12 the shipped LLaVA still had 0.89 of its answers, with
#: the first 8 it had 0.56, with every second from layer 2 on 0.85.
KEPT = (0, 1, 2, 5, 6, 7, 10, 11)


def graft(model, tokenizer: PreTrainedTokenizerFast, folder: Path, kept: Sequence[int] = KEPT) -> nn.Module:
    """The model in ``folder``, for its tower; its words, norm, and layers ``kept`` are now the end of ``model``."""
    earlier = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    old = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    both = [(new, old[token]) for token, new in tokenizer.get_vocab().items() if token in old]
    mine, its = (torch.tensor(ids) for ids in zip(*both, strict=True))
    decoder, donor = model.model.language_model, earlier.model.language_model
    with torch.no_grad():
        decoder.embed_tokens.weight[mine] = donor.embed_tokens.weight[its]
        model.lm_head.weight[mine] = earlier.lm_head.weight[its]
    for part in ("vision_tower", "multi_modal_projector"):  # as a start; what the tower has more layers is left out
        getattr(model.model, part).load_state_dict(getattr(earlier.model, part).state_dict(), strict=False)
    decoder.norm.load_state_dict(donor.norm.state_dict())
    new = len(decoder.layers) - len(kept)
    for layer, i in zip(decoder.layers[new:], kept, strict=True):
        layer.load_state_dict(donor.layers[i].state_dict())
    return earlier


def handed_on(x: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Share of the variance of ``wanted`` that ``x`` misses; ``weight`` a row's."""
    weight = weight[..., None] / weight.sum()
    spread = ((wanted - (wanted * weight).sum((0, 1))) ** 2 * weight).sum()
    return F.mse_loss(x, wanted, reduction="none").mul(weight).sum() / spread


def grafting_loss(architecture, model, earlier, heads: nn.ModuleDict, b: Batch, new: int):
    """Behind the ``new`` first layers: what the earlier decoder was given, and the dense labels that are due there."""
    states = hidden_states(model, b, architecture.visual(model, b.pixels), new)
    with torch.no_grad():
        [wanted] = architecture.visual(earlier, b.pixels)  # raises for DeepStack: nothing could hand that on
    shown = (b.labels[..., 0] > 0).float()
    patches = handed_on(visual_rows(b, states[-1]), wanted, 0.1 + 0.9 * shown)
    words = torch.ones_like(b.segments, dtype=torch.float32)
    words[:, b.visual_at : b.visual_at + shown.shape[1]] = 0
    words = handed_on(states[-1], states[0].detach(), words * (b.segments >= 0))
    labels, right = dense_loss(heads, b, states)
    shares = torch.stack((1 - patches.detach(), 1 - words.detach()))
    return 2 * patches + 2 * words + 0.3 * labels, torch.cat((shares, right))
