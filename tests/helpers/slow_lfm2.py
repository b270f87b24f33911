"""The slow reference of what LFM2's layers have: a short convolution, row after row, and names of its own."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def read_rows(module, h):
    """The convolution's ``module`` on a whole sequence ``h [rows, hidden]``."""
    out = torch.zeros_like(h)
    first, gate, value = module.in_proj(h).tensor_split(3, dim=-1)
    kernel, size = module.conv.weight[:, 0], module.conv_kernel_size
    for t in range(len(h)):
        summed = 0 if module.conv.bias is None else module.conv.bias
        for back in range(min(size, t + 1)):
            summed = summed + kernel[:, size - 1 - back] * first[t - back] * value[t - back]
        out[t] = module.out_proj(gate[t] * summed)
    return out


def is_lfm2(layer):
    return hasattr(layer, "operator_norm")


def is_numbered(mlp):
    return hasattr(mlp, "w1")


def inner(mlp, h):
    return F.silu(mlp.w1(h)) * mlp.w3(h)


def ffn(layer):
    return layer.feed_forward if is_lfm2(layer) else layer.mlp


def output_projection(attention):
    return attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
