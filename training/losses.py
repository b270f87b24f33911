"""What is minimised: dense labels read off the decoder's visual rows, and answers given behind an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lookless.runtime.mixers import is_delta

from .batches import UNREAD, Batch
from .delta import branches, mix
from .labels import FAR, IGNORED, LABELS, NEAR


class Reader(nn.Module):
    """Heads that read dense labels off visual rows; thrown away in the end."""

    def __init__(self, width: int, heads: dict[str, int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name.replace(" ", "_"): nn.Linear(width, size) for name, size in heads.items()})
        self.columns = [LABELS.index(name) for name in heads]

    def forward(self, rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the heads' losses; the share of right labels at patches that show something, head by head."""
        x = self.norm(rows)
        losses, right = [], []
        shown = (labels[..., 0] > 0).flatten()
        for column, head in zip(self.columns, self.heads.values(), strict=True):
            logits, label = head(x).float().flatten(0, 1), labels[..., column].flatten()
            weight = (0.1 + 0.9 * shown) * (label != IGNORED)
            losses.append((F.cross_entropy(logits, label, reduction="none") * weight).sum() / weight.sum())
            scored = shown & (label != IGNORED)
            right.append(((logits.argmax(-1) == label) & scored).sum() / scored.sum())
        return torch.stack(losses).sum(), torch.stack(right)


def readers(layers: int, width: int) -> nn.ModuleDict:
    """The heads by the number of layers they stand behind: what is near after a third, what is far after two."""
    return nn.ModuleDict({str(layers // 3): Reader(width, NEAR), str(2 * layers // 3): Reader(width, FAR)})


def visible(segments: torch.Tensor) -> torch.Tensor:
    """bool ``[batch, 1, query, key]``: the image sees itself, a question the image and itself."""
    key, query = segments[:, None, None, :], segments[:, None, :, None]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    of_image = (query == 0) & (key == UNREAD)
    seen = (key == 0) & (query != -1) | (key == query) & (key != -1) | of_image
    return causal & seen | torch.eye(length, dtype=torch.bool, device=segments.device)


def hidden_states(model, b: Batch, visual: list[torch.Tensor], layers: int | None = None) -> list[torch.Tensor]:
    """``[batch, sequence, width]`` before the first layer and behind each of the first ``layers``, before any norm."""
    decoder = model.model.language_model
    x = merged(embedded(decoder, b), b, visual[0])
    around, tree = surroundings(decoder, b, x), branches(b.segments, visible(b.segments))
    states = [x]
    for i, layer in enumerate(decoder.layers[:layers], start=1):
        if is_delta(layer):
            x = x + mix(layer.linear_attn, layer.input_layernorm(x), tree)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        else:
            x = layer(x, **around)
        if i < len(visual):  # DeepStack
            behind = x.shape[1] - b.visual_at - visual[i].shape[1]
            x = x + F.pad(visual[i].to(x.dtype), (0, 0, b.visual_at, behind))
        states.append(x)
    return states


def embedded(decoder, b: Batch) -> torch.Tensor:
    """Words, and placeholders where the image will be, ``[batch, sequence, width]``."""
    return decoder.embed_tokens(b.ids)


def merged(embeds: torch.Tensor, b: Batch, image: torch.Tensor) -> torch.Tensor:
    """``embeds`` with ``image`` in the placeholders' place."""
    before, behind = embeds[:, : b.visual_at], embeds[:, b.visual_at + image.shape[1] :]
    return torch.cat((before, image.to(embeds.dtype), behind), dim=1)


def surroundings(decoder, b: Batch, x: torch.Tensor) -> dict[str, Any]:
    """What each layer with attention is called with beside its rows ``x``."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    seen = visible(b.segments)
    mask = torch.zeros(seen.shape, dtype=dtype, device=x.device).masked_fill(~seen, -1e9)
    rotary = decoder.rotary_emb(x, b.positions if len(b.positions) > 1 else b.positions[0])
    return {"attention_mask": mask, "position_embeddings": rotary}


def visual_rows(b: Batch, x: torch.Tensor) -> torch.Tensor:
    return x[:, b.visual_at : b.visual_at + b.labels.shape[1]]


def dense_loss(heads: nn.ModuleDict, b: Batch, states: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the readers whose depth ``states`` reaches."""
    read = [reader(visual_rows(b, states[int(d)]), b.labels) for d, reader in heads.items() if int(d) < len(states)]
    losses, right = zip(*read, strict=True)
    return torch.stack(losses).sum(), torch.cat(right)


def seeing_loss(architecture, model, heads: nn.ModuleDict, b: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    states = hidden_states(model, b, architecture.visual(model, b.pixels), max(map(int, heads)))
    return dense_loss(heads, b, states)


def answer_loss(model, b: Batch, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answer tokens, and the share of them that is the argmax."""
    x = model.model.language_model.norm(last.gather(1, b.where[..., None].expand(-1, -1, last.shape[-1])))
    logits = model.lm_head(x).float().flatten(0, 1)
    target = b.targets.flatten()
    right = ((logits.argmax(-1) == target) & (target >= 0)).sum() / (target >= 0).sum()
    return F.cross_entropy(logits, target), right[None]


def talking_loss(architecture, model, heads: nn.ModuleDict, b: Batch, dense: float):
    """Answers, and dense labels at the weight ``dense``, so that the rows keep what they know."""
    states = hidden_states(model, b, architecture.visual(model, b.pixels))
    answers, right = answer_loss(model, b, states[-1])
    labels, known = dense_loss(heads, b, states)
    return answers + dense * labels, torch.cat((right, known))
