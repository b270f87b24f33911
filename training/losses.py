"""What is minimised: dense labels read off the tower, and answers given behind an image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from architecture import WIDTH
from batches import Batch
from labels import HEADS


class Reader(nn.Module):
    """Heads that read the dense labels off the tower; thrown away after its stage."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in HEADS.items()})

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


def visual_features(model, pixels: torch.Tensor) -> torch.Tensor:
    """``[batch, VISUAL, WIDTH]`` of the tower, class token dropped."""
    tower = model.model.vision_tower
    x = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers:
        x = layer(x, attention_mask=None)
    return x[:, 1:]


def decode_loss(model, embeds, positions, segments, where, targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answer tokens, and the share of them that is the argmax."""
    decoder = model.model.language_model
    length = embeds.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    key, query = segments[:, None, None, :], segments[:, None, :, None]
    mask = causal & ((key == 0) | (key == query)) & (key >= 0) | torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, -1e9)
    rotary = decoder.rotary_emb(embeds, positions)
    x = embeds
    for layer in decoder.layers:
        x = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    x = decoder.norm(x.gather(1, where[..., None].expand(-1, -1, x.shape[-1])))
    logits = model.lm_head(x).float().flatten(0, 1)
    target = targets.flatten()
    right = ((logits.argmax(-1) == target) & (target >= 0)).sum() / (target >= 0).sum()
    return F.cross_entropy(logits, target), right


def image_loss(model, b: Batch):
    with torch.no_grad():  # the tower stays as it is, as in LLaVA; Muon's steps are of one size and would wear it down
        features = visual_features(model, b.pixels)
    visual = model.model.multi_modal_projector(features)
    if b.shown is not None:
        visual = visual.gather(1, b.shown[..., None].expand(-1, -1, visual.shape[-1]))
    embeds = model.model.language_model.embed_tokens(b.ids)
    after = b.visual_at + visual.shape[1]
    embeds = torch.cat((embeds[:, : b.visual_at], visual.to(embeds.dtype), embeds[:, after:]), dim=1)
    return decode_loss(model, embeds, b.positions, b.segments, b.where, b.targets)
