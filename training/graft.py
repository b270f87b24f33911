"""A model begun from an earlier one, where there is no time to begin from nothing.

The earlier decoder can read and answer, and its deep tower did the seeing. The new model keeps the first layer of that
tower, frozen. The first layers of its decoder are new; they learn to do the rest and hand on what the earlier decoder
was given: of each word its embedding, untouched; of each thing, at the patch where it is counted, what the earlier
projector made of its middle; elsewhere what it made of an empty image. The rest of the new decoder is layers of the
earlier one, which reads such rows nearly as well (93 to 95 % of answer tokens against 99 %).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from lookless.reference.worlds import World

from .batches import MEAN, STD, Batch, sample_to_see, talk_batch
from .labels import VISUAL, items, patch
from .losses import dense_loss, hidden_states, visual_rows
from .tokens import Words


def graft(architecture, model, tokenizer: PreTrainedTokenizerFast, folder: Path) -> nn.Module:
    """The model in ``folder``, for its tower; its words, norm, and the layers to keep are now the end of ``model``."""
    earlier = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    same_words(model, earlier, tokenizer, folder)
    decoder, donor = model.model.language_model, earlier.model.language_model
    architecture.inherit(model, earlier)
    decoder.norm.load_state_dict(donor.norm.state_dict())
    new = len(decoder.layers) - len(architecture.kept)
    for layer, i in zip(decoder.layers[new:], architecture.kept, strict=True):
        layer.load_state_dict(donor.layers[i].state_dict())
    return earlier


@torch.no_grad()
def same_words(model, earlier, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The words that both have are in ``model`` as in the ``earlier`` one, which is in ``folder``."""
    old = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    both = [(new, old[token]) for token, new in tokenizer.get_vocab().items() if token in old]
    mine, its = (torch.tensor(ids) for ids in zip(*both, strict=True))
    model.model.language_model.embed_tokens.weight[mine] = earlier.model.language_model.embed_tokens.weight[its]
    model.lm_head.weight[mine] = earlier.lm_head.weight[its]


def handed_on(x: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Share of the variance of ``wanted`` that ``x`` misses; ``weight`` a row's."""
    weight = weight[..., None] / weight.sum()
    spread = ((wanted - (wanted * weight).sum((0, 1))) ** 2 * weight).sum()
    return F.mse_loss(x, wanted, reduction="none").mul(weight).sum() / spread


@dataclass
class Grafting:
    """``batch``; ``blank`` its images without the things in them; ``source`` int64 ``[batch, VISUAL]``: which patch of
    the earlier model's image is handed on at each patch, -1 where it is the blank image's own."""

    batch: Batch
    blank: torch.Tensor
    source: torch.Tensor

    def to(self, device: torch.device) -> Grafting:
        return Grafting(self.batch.to(device), self.blank.to(device), self.source.to(device))


def sources(world: World) -> torch.Tensor:
    source = torch.full((VISUAL,), -1)
    for item in items(world):
        source[patch(item.x, item.seen)] = patch(item.x, item.y)
    return source


def graft_batch(rng: random.Random, words: Words, size: int) -> Grafting:
    worlds = [sample_to_see(rng) for _ in range(size)]
    batch = talk_batch(rng, words, worlds, describing=0.0, facts=0.0, stating=0.5, room=32)
    background = torch.tensor([world.background for world in worlds]).float().sub(MEAN).div(STD)
    blank = background[:, :, None, None].expand_as(batch.pixels)
    return Grafting(batch, blank, torch.stack([sources(world) for world in worlds]))


def given(architecture, earlier, g: Grafting) -> torch.Tensor:
    """``[batch, VISUAL, width]``: what the new layers are to hand on of each patch."""
    image, blank = (architecture.visual(earlier, pixels)[0] for pixels in (g.batch.pixels, g.blank))
    moved = image.gather(1, g.source.clamp(min=0)[..., None].expand_as(image))
    return torch.where(g.source[..., None] >= 0, moved, blank)


def grafting_loss(architecture, model, earlier, heads: nn.ModuleDict, g: Grafting, new: int):
    """Behind the ``new`` first layers: what the earlier decoder was given, and the dense labels that are due there."""
    b = g.batch
    states = hidden_states(model, b, architecture.visual(model, b.pixels), new)
    with torch.no_grad():
        wanted = given(architecture, earlier, g)
    patches = handed_on(visual_rows(b, states[-1]), wanted, 0.1 + 0.9 * (g.source >= 0))
    words = torch.ones_like(b.segments, dtype=torch.float32)
    words[:, b.visual_at : b.visual_at + VISUAL] = 0
    words = handed_on(states[-1], states[0].detach(), words * (b.segments >= 0))
    labels, right = dense_loss(heads, b, states)
    shares = torch.stack((1 - patches.detach(), 1 - words.detach()))
    return 2 * patches + 2 * words + 0.3 * labels, torch.cat((shares, right))
