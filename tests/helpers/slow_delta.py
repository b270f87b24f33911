"""The slow reference of layers with a state, and of a gated delta rule: one row after another, and what a plan takes
away left out of the sequence.

Shares nothing with the runtime, nor with the kernels of transformers, but the module's own weights.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from helpers.slow_lfm2 import output_projection, read_rows
from lookless import Skip


def slow_state(module, h, row, calls, call, visual, real, alive):
    """What the mixer adds to each of ``h [n, hidden]``, if all of them read; rows of a later call do not see what the
    plan left out of the state in earlier ones."""
    out = torch.zeros_like(h)
    text, shown = real & ~visual, real & (~visual | alive)
    written = text if isinstance(row.visible, Skip) else shown
    for c in calls:
        earlier = written & (call < c)
        for readers, rows in ((text, written), (shown & visual, shown)):
            mine = (earlier | (rows & (call == c))).nonzero().flatten()
            read = read_rows(module, h[mine]) if hasattr(module, "conv") else _read(module, h[mine])
            wanted = (readers & (call == c))[mine]
            out[mine[wanted]] = read[wanted]
    return out


def _read(module, h):
    """The module on a whole sequence ``h [rows, hidden]``."""
    size, mixed = module.conv_kernel_size, module.in_proj_qkv(h)
    kernel = module.conv1d.weight[:, 0]
    padded = torch.cat((mixed.new_zeros(size - 1, mixed.shape[1]), mixed))
    mixed = torch.stack([F.silu((padded[t : t + size] * kernel.T).sum(0)) for t in range(len(h))]) if len(h) else mixed
    q, k, v = mixed.split([module.key_dim, module.key_dim, module.value_dim], -1)
    q, k = (unit(x.view(len(h), -1, module.head_k_dim)) for x in (q, k))
    groups = module.num_v_heads // module.num_k_heads
    q, k = (x.repeat_interleave(groups, 1) for x in (q, k))
    v = v.view(len(h), -1, module.head_v_dim)
    rate = torch.sigmoid(module.in_proj_b(h))
    decay = torch.exp(-torch.exp(module.A_log) * F.softplus(module.in_proj_a(h) + module.dt_bias))
    state = h.new_zeros(module.num_v_heads, module.head_k_dim, module.head_v_dim)
    read = []
    for t in range(len(h)):
        state = state * decay[t][:, None, None]
        known = torch.einsum("hkv,hk->hv", state, k[t])
        state = state + torch.einsum("hk,hv->hkv", k[t], (v[t] - known) * rate[t][:, None])
        read.append(torch.einsum("hkv,hk->hv", state, q[t]) * module.head_k_dim**-0.5)
    if not read:
        return h
    read = torch.stack(read)
    scale = torch.rsqrt(read.pow(2).mean(-1, keepdim=True) + module.norm.variance_epsilon)
    z = module.in_proj_z(h).view_as(read)
    return module.out_proj((module.norm.weight * read * scale * F.silu(z)).flatten(1))


def unit(x):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def is_gated(attention):
    """Whether each query has a gate behind it."""
    return attention.q_proj.weight.shape[0] == 2 * output_projection(attention).weight.shape[1]
