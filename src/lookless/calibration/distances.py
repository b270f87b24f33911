"""How far apart two next-token distributions are: one number per row of logits."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

#: From the full model's logits to the changed model's, both float32 ``[rows, vocabulary]``: one number per row.
Distance = Callable[[Tensor, Tensor], Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats, of logits or log-probabilities ``[..., vocabulary]``; a number per row, never below zero."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p): the direction of ShortV and VTW, whose code puts the changed model first."""
    return kl(q, p)


def turn(p: Tensor, q: Tensor) -> Tensor:
    """1 - cos between two vectors ``[..., width]``; one number per row. In float64: near 1 a cosine has few digits."""
    return (1 - F.cosine_similarity(p.double(), q.double(), dim=-1)).clamp_min(0.0)
