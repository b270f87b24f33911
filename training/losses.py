"""What is minimised: dense labels read off the tower, and answers given behind an image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from batches import Batch
from labels import HEADS


class Reader(nn.Module):
    """Heads that read the dense labels off the tower; thrown away after its stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in HEADS.items()})

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(features)
        losses, right = [], []
        shown = (labels[..., 0] > 0).float()
        weight = (0.1 + 0.9 * shown).flatten()
        for i, head in enumerate(self.heads.values()):
            logits, label = head(x).float().flatten(0, 1), labels[..., i].flatten()
            losses.append((F.cross_entropy(logits, label, reduction="none") * weight).sum() / weight.sum())
            right.append(((logits.argmax(-1) == label).float() * shown.flatten()).sum() / shown.sum())
        return torch.stack(losses).sum(), torch.stack(right)


def hidden_states(model, b: Batch, visual: list[torch.Tensor]) -> torch.Tensor:
    """``[batch, sequence, width]`` behind the last layer, before its norm."""
    decoder = model.model.language_model
    before = b.visual_at
    if b.shown is not None:
        visual = [x.gather(1, b.shown[..., None].expand(-1, -1, x.shape[-1])) for x in visual]
    length = b.ids.shape[1]
    behind = length - before - visual[0].shape[1]
    embeds = decoder.embed_tokens(b.ids)
    embeds = torch.cat((embeds[:, :before], visual[0].to(embeds.dtype), embeds[:, length - behind :]), dim=1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    key, query = b.segments[:, None, None, :], b.segments[:, None, :, None]
    mask = causal & ((key == 0) | (key == query)) & (key >= 0) | torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, -1e9)
    positions = b.positions if len(b.positions) > 1 else b.positions[0]
    rotary = decoder.rotary_emb(embeds, positions)
    x = embeds
    for i, layer in enumerate(decoder.layers, start=1):
        x = layer(x, attention_mask=mask, position_embeddings=rotary)
        if i < len(visual):  # DeepStack
            x = x + F.pad(visual[i].to(x.dtype), (0, 0, before, behind))
    return x


def image_loss(architecture, model, b: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answer tokens, and the share of them that is the argmax."""
    x = hidden_states(model, b, architecture.visual(model, b.pixels))
    x = model.model.language_model.norm(x.gather(1, b.where[..., None].expand(-1, -1, x.shape[-1])))
    logits = model.lm_head(x).float().flatten(0, 1)
    target = b.targets.flatten()
    right = ((logits.argmax(-1) == target) & (target >= 0)).sum() / (target >= 0).sum()
    return F.cross_entropy(logits, target), right
