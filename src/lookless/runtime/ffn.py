"""The FFN of one layer: whole on its rows, and on other visual rows by a part of its neurons or a map in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cells import Neurons
from ..errors import ModelError
from ..layer_plan import VISUAL, LayerWork
from .affine import affine_of_visual
from .inplace import Buffers, activation, gated, gated_ffn, is_mixture, matrices, may_write, norm_into, projections
from .prompts import Prompts
from .rows import Rows


def run_ffn(layer: Any, work: LayerWork, prompts: Prompts, x: Tensor, *, owns_x: bool) -> Tensor:
    """The compact living rows ``x`` with the FFN's output added; in place where the caller ``owns_x``."""
    live, rows = prompts.live, prompts.rows(work.ffn)
    outputs: list[tuple[Rows, Tensor]] = []
    if rows.count:
        inner = prompts.within(rows, live)
        outputs.append((inner, whole_ffn(layer, prompts, inner.gather(x))))
    if work.neurons is not None and prompts.rows(VISUAL).count:
        inner = prompts.within(prompts.rows(VISUAL), live)
        normed = norm_into(getattr(layer, prompts.block.before_ffn), inner.gather(x), prompts.buffers)
        after = prompts.block.of_ffn(layer)
        made = _neurons(prompts.block.ffn_of(layer), normed, work.neurons, prompts)
        outputs.append((inner, made if after is None else after(made)))
    if work.ffn_affine is not None and prompts.rows(VISUAL).count:
        outputs.append(affine_of_visual(work.ffn_affine, getattr(layer, prompts.block.before_ffn), prompts, x))
    for inner, output in outputs:
        x = inner.add(x, output, owns_x=owns_x)
    return x


def whole_ffn(layer: Any, prompts: Prompts, x: Tensor) -> Tensor:
    """What the FFN of ``layer`` adds to the compact rows ``x [groups, rows, hidden]``. A mixture of experts routes each
    row by itself, so a part of the rows is to it like a shorter prompt."""
    block = prompts.block
    mlp = block.ffn_of(layer)
    normed = norm_into(getattr(layer, block.before_ffn), x, prompts.buffers)
    made: Tensor = mlp(normed.contiguous()) if is_mixture(mlp) else gated_ffn(mlp, normed, prompts.buffers)
    made = made if block.beside_ffn is None else block.beside_ffn(layer, made, x)
    if block.after_ffn is None:
        return made
    normed_after: Tensor = getattr(layer, block.after_ffn)(made)
    return normed_after


def _neurons(mlp: Any, h: Tensor, cell: Neurons, prompts: Prompts) -> Tensor:
    """The FFN of visual tokens, normed, by the channels that probe tokens of their own prompt excite most."""
    for projection in projections(mlp):
        if type(projection) is not nn.Linear:
            raise ModelError(
                f"a subset of neurons needs the plain weights of an FFN, and this one has a "
                f"{type(projection).__name__}: merge adapters, load unquantised, or use a plan without Neurons."
            )
    rows = prompts.rows(VISUAL)
    updates = []
    for b, mine in enumerate(prompts.alive):
        start = sum(map(len, prompts.alive[:b])) if rows.packed else 0
        own = h[:, start : start + len(mine)] if rows.packed else h[b : b + 1]
        updates.append(_own_neurons(mlp, cell, own, prompts.buffers) if len(mine) else own)
    return torch.cat(updates, dim=1 if rows.packed else 0)


def _own_neurons(mlp: Any, cell: Neurons, h: Tensor, buffers: Buffers) -> Tensor:
    count = h.shape[1]
    probes = torch.linspace(0, count - 1, int(cell.probes(count))).round().long()
    magnitude = gated(mlp, h[:, probes]).abs().float().mean((0, 1))
    chosen = magnitude.topk(cell.channels(magnitude.numel())).indices.sort().values

    def inner(weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(h, _chosen(weight, 0, chosen, buffers), None if bias is None else bias[chosen])

    gate, up, (down, bias) = matrices(mlp)
    made = activation(mlp)(inner(*gate)) * inner(*up)
    return F.linear(made, _chosen(down, 1, chosen, buffers), bias)


def _chosen(weight: Tensor, dim: int, chosen: Tensor, buffers: Buffers) -> Tensor:
    """The ``chosen`` rows or columns of ``weight``, until the next are.

    One core takes 3 ms for 2,202 rows of 4096 in bfloat16 into memory at hand, 30 into new pages, and 92 by indexing;
    for as many columns 35, and 65 by indexing.
    """
    if not may_write(weight):
        return weight.index_select(dim, chosen)
    shape = (len(chosen), weight.shape[1]) if dim == 0 else (weight.shape[0], len(chosen))
    return torch.index_select(weight, dim, chosen, out=buffers.take("chosen", shape, weight))
