"""A gated delta rule over one image and many questions: a state that branches where questions begin.

At test time a state runs through the image and one question. Here every question of a batch stands behind the same
image (``batches.py``), so each begins with the state and the convolution that the image left. Written out over all
pairs of rows, that is one triangular system for each head, as in the chunks of the kernels (arXiv 2412.06464), in which
a row knows those that it may see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import SHARED, UNREAD

REACH = 4  # rows that the convolution reads, the own one among them


@dataclass(frozen=True)
class Branches:
    """Who stands before whom.

    Attributes:
        seen: bool ``[batch, 1, query, key]``.
        earlier: int64 ``[batch, sequence, REACH]``: the row that many before it, as many rows as there are for none.
        begins, behind: int64 ``[batch, sequence]``: the first row of its branch, and the last of what all share.
    """

    seen: Tensor
    earlier: Tensor
    begins: Tensor
    behind: Tensor


def branches(segments: Tensor, seen: Tensor) -> Branches:
    """Of ``segments`` as in :class:`training.batches.Batch`, in which what all share comes first; patches that no
    question reads stand there, too."""
    segments = torch.where(segments == UNREAD, SHARED, segments)
    length = segments.shape[1]
    at = torch.arange(length, device=segments.device).expand_as(segments)
    is_new = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    begins = torch.where(is_new, at, 0).cummax(1).values
    shared = (segments == SHARED).sum(1, keepdim=True)
    back = torch.arange(REACH, device=segments.device)
    inside = at[..., None] - back
    across = shared[..., None] - (back - (at - begins)[..., None])
    earlier = torch.where(inside >= begins[..., None], inside, torch.where((segments > SHARED)[..., None], across, -1))
    return Branches(seen, earlier.where(earlier >= 0, length), begins, (shared - 1).expand_as(segments))


def mix(module, h: Tensor, tree: Branches) -> Tensor:
    """What the gated delta rule ``module`` adds to the normed rows ``h [batch, sequence, width]``."""
    return module.out_proj(read(module, h, tree))


def read(module, h: Tensor, tree: Branches) -> Tensor:
    """What each of the rows ``h`` reads, normed and gated, ``[batch, sequence, heads * head_dim]``."""
    batch, length, _ = h.shape
    rows = F.pad(module.in_proj_qkv(h), (0, 0, 0, 1))  # and one of zeros behind the last
    index = tree.earlier.flatten(1)[..., None].expand(-1, -1, rows.shape[-1])
    window = rows.gather(1, index).unflatten(1, (length, -1))
    mixed = F.silu((window * module.conv1d.weight[:, 0].flip(1).T).sum(2))
    rate = module.in_proj_b(h).sigmoid()
    decay = -module.A_log.exp() * F.softplus(module.in_proj_a(h).float() + module.dt_bias)
    gate = module.in_proj_z(h).unflatten(-1, (-1, module.head_v_dim))
    widths = (module.head_k_dim, module.head_k_dim, module.head_v_dim)
    parts = mixed.split([module.key_dim, module.key_dim, module.value_dim], -1)
    q, k, v = (t.float().unflatten(-1, (-1, width)).transpose(1, 2) for t, width in zip(parts, widths, strict=True))
    with torch.autocast(h.device.type, enabled=False):
        found = scan(q, k, v, decay.float().transpose(1, 2), rate.float().transpose(1, 2), tree)
    return module.norm(found.transpose(1, 2).to(gate.dtype), gate).reshape(batch, length, -1)


def scan(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, tree: Branches) -> Tensor:
    """What each row reads, ``[batch, heads, sequence, head_dim]``; ``decay``, ``rate`` ``[batch, heads, sequence]``."""
    q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    since = decay.cumsum(-1)
    begins, behind = (t[:, None].expand_as(since) for t in (tree.begins, tree.behind))
    branched = since - since.gather(-1, (begins - 1).clamp(min=0)) + since.gather(-1, behind)
    since = torch.where(begins > 0, branched, since)
    apart = (since[..., :, None] - since[..., None, :]).masked_fill(~tree.seen, -torch.inf).exp()
    known = (k @ k.transpose(-1, -2)) * apart * rate[..., None]
    written = torch.linalg.solve_triangular(known, v * rate[..., None], upper=False, unitriangular=True)
    return (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 * apart @ written
