"""A layer's matrix products and what is between them (norm, rotary embedding, gate), in memory that is used again.

Norm, rotary embedding and gate are a percent of a 7B layer's FLOPs, and as transformers writes them up to a tenth of
its prefill on a CPU: each of their many passes makes a fresh tensor of tens of megabytes, and the system maps its pages
anew, 1 us for 4 KB. Here they run in place and by blocks, and what no layer hands on lies in buffers that all layers of
a pass share. Values are the modules', the norm's to the bit.

A norm of few numbers gains nothing, and every step costs microseconds: there the module is called as it is. So are all
modules that may not be taken apart: those that are hooked, replaced or wrapped, or have quantised or sharded weights.
The same holds where gradients are needed, under autocast or a compiler, and on a GPU, whose allocator keeps its pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import SiLUActivation

from ..geometry import GATED
from .counting import is_hooked, report

Rotary = tuple[Tensor, Tensor]  # cos and sin of whole sequences, [batch or 1, sequence, width]

BLOCK = 1 << 18  # numbers for each thread at once: a megabyte in float32, which stays in a core's cache
FEW = 1 << 15  # numbers that PyTorch gives to one thread, and that fit into its cache
SILU = (nn.SiLU, SiLUActivation)
_SILU = nn.SiLU()
#: The parts of a gated FFN: with one matrix for gate and up, or with two.
FUSED, SPLIT = ("activation_fn", "gate_up_proj", "down_proj"), ("act_fn", "gate_proj", "up_proj", "down_proj")
NUMBERED = ("w1", "w3", "w2")  #: as LFM2 calls gate, up and down, with SiLU and no module between them
#: Decoders whose rotary embedding turns each number of a head with its neighbour, and not with that of the other half.
NEIGHBOURS = ("glm4v_text", "glm_ocr_text")


class Buffers:
    """Memory that every layer of one pass uses again, by name. What is in it lasts until the name is taken again."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of ``shape``, of ``like``'s type and device."""
        size, held = prod(shape), self._held.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype or held.device != like.device:
            held = self._held[name] = like.new_empty(size)
        return held[:size].view(shape)

    def release(self) -> None:
        """Give the memory back."""
        self._held.clear()


def linear(module: Any, x: Tensor, buffers: Buffers | None = None, name: str = "") -> Tensor:
    """``module``, a projection, on ``x [..., width]``; its result lies in the buffer ``name`` if that is allowed, and
    neither of them is small."""
    if not is_own(module):
        made: Tensor = module(x)
        return made
    report(module, x)
    shape = (*x.shape[:-1], module.out_features)
    is_little = is_small(x) or prod(shape) < FEW
    if buffers is None or is_little or not may_write(x) or x.dtype != module.weight.dtype:
        return F.linear(x, module.weight, module.bias)
    out = buffers.take(name, shape, x)
    flat, into = x.flatten(0, -2), out.view(-1, module.out_features)
    if module.bias is None:
        torch.mm(flat, module.weight.t(), out=into)
    else:
        torch.addmm(module.bias, flat, module.weight.t(), out=into)
    return out


def rms_norm(module: Any, x: Tensor, into: Tensor | None = None) -> Tensor:
    """``module``, an RMSNorm, on ``x [..., width]``; ``into`` is contiguous memory for the result, and may be ``x``.

    On a CPU by blocks of rows, with the module's own steps: 642 rows of 4096 in bfloat16 take one core 1.6 ms, and all
    at once 2.4 to 13; 2176 rows 5 ms and not 22 to 50.
    """
    weight = getattr(module, "weight", None)
    is_other = not is_plain(module) or not hasattr(module, "variance_epsilon")
    if is_other or weight is None or weight.dtype != x.dtype or (into is None and is_small(x)):
        out: Tensor = module(x)
        return out
    if not may_write(x):
        return F.rms_norm(x, weight.shape, weight, module.variance_epsilon)
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if into is None else into
    flat, place, rows = x.flatten(0, -2), out.view(-1, x.shape[-1]), _rows_at_once(x.shape[-1])
    if x.dtype != torch.float32:  # at most a quarter, or what is made on the way is more than what the stock FFN makes
        rows = min(rows, max(16, len(flat) // 4))
    if len(flat) <= rows:
        _norm_rows(flat, weight, module.variance_epsilon, place)
    else:
        for part, mine in zip(flat.split(rows), place.split(rows), strict=True):
            _norm_rows(part, weight, module.variance_epsilon, mine)
    return out


def _norm_rows(x: Tensor, weight: Tensor, epsilon: float, into: Tensor) -> None:
    """The norm of ``x [rows, width]`` into memory at hand, by the module's own steps."""
    if x.dtype != torch.float32:
        wide = x.float()
        scale = (wide * wide).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        into.copy_(wide.mul_(scale)).mul_(weight)
        return
    squares = x * x if into.data_ptr() == x.data_ptr() else torch.mul(x, x, out=into)
    torch.mul(x, squares.mean(-1, keepdim=True).add_(epsilon).rsqrt_(), out=into).mul_(weight)


@dataclass(frozen=True)
class Turn:
    """The rotary embedding of some rows, for all layers: ``cos`` and ``sin [..., rows, width]``."""

    cos: Tensor
    sin: Tensor

    @property
    def width(self) -> int:
        """How many of a head's numbers turn, from the first on."""
        return self.cos.shape[-1]

    @cached_property
    def of_heads(self) -> tuple[Tensor, Tensor]:
        """``[..., rows, 1, width]``: cos, and sin as it multiplies the other half of a head, its sign included."""
        first, second = self.sin.chunk(2, dim=-1)
        return self.cos.unsqueeze(-2), torch.cat((-first, second), dim=-1).unsqueeze(-2)


def rotate(x: Tensor, turn: Turn, *, in_place: bool = False, neighbours: bool = False) -> Tensor:
    """Rotary embedding of ``x [..., rows, heads, head_dim]``; where the turn is narrower, of the first of a head's
    numbers alone. A number turns with that of the other half, or its neighbour."""
    if turn.width < x.shape[-1]:
        turned = rotate(x[..., : turn.width], turn, in_place=in_place, neighbours=neighbours)
        return x if in_place else torch.cat((turned, x[..., turn.width :]), dim=-1)
    if not (in_place or neighbours):
        cos, signed = turn.of_heads
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), signed)
    cos, sin, half = turn.cos.unsqueeze(-2), turn.sin.unsqueeze(-2), x.shape[-1] // 2
    one, other = (slice(0, None, 2), slice(1, None, 2)) if neighbours else (slice(half), slice(half, None))
    if not in_place:
        out = x * cos
        out[..., one].addcmul_(x[..., other], sin[..., one], value=-1)
        out[..., other].addcmul_(x[..., one], sin[..., other])
        return out
    rows = _rows_at_once(prod(x.shape[:-3]) * prod(x.shape[-2:]))
    for a, c, s in zip(x.split(rows, -3), cos.split(rows, -3), sin.split(rows, -3), strict=True):
        turned = torch.empty_like(a)
        torch.neg(a[..., other], out=turned[..., one])
        turned[..., other] = a[..., one]
        a.mul_(c).add_(turned.mul_(s))
    return x


def project(module: Any, which: str, normed: Tensor, turn: Turn | None, buffers: Buffers | None = None) -> Tensor:
    """Queries (``q``) or keys (``k``) ``[groups, rows, heads, head_dim]``, normed where the model does, and rotated.

    With ``buffers`` they lie in the memory of the FFN's gate.
    """
    return project_gated(module, which, normed, turn, buffers)[0]


def project_gated(
    module: Any, which: str, normed: Tensor, turn: Turn | None, buffers: Buffers | None = None
) -> tuple[Tensor, Tensor | None]:
    """As :func:`project`, and beside queries the gate of what their heads read, ``[groups, rows, heads * head_dim]``;
    None of an attention without one."""
    projection, gate, kind = module._modules[f"{which}_proj"], None, type(module.config).model_type
    is_gated = which == "q" and kind in GATED
    x = heads(linear(projection, normed, buffers, "gate"), module.head_dim * (1 + is_gated))
    if is_gated:
        x, gate = x.chunk(2, dim=-1)
        gate = gate.flatten(-2)
    may_overwrite = is_own(projection) and may_write(x)
    norm = module._modules.get(f"{which}_norm") or module._modules.get(f"{which}_layernorm")
    x = x if norm is None else rms_norm(norm, x, x if may_overwrite else None)
    if turn is None:
        return x, gate
    return rotate(x, turn, in_place=may_overwrite and not is_small(x), neighbours=kind in NEIGHBOURS), gate


def project_normed(module: Any, normed: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
    """Keys, normed and rotated, and normed values, both ``[groups, rows, kv_heads, head_dim]``; where values have no
    projection of their own, they are the keys before their norm."""
    raw = heads(module.k_proj(normed), module.head_dim)
    value = raw if module.v_proj is None else heads(module.v_proj(normed), module.head_dim)
    return rotate(module.k_norm(raw), turn), module.v_norm(value)


def norm_into(module: Any, x: Tensor, buffers: Buffers | None) -> Tensor:
    """``module``, an RMSNorm, on ``x``; with ``buffers`` the result lies there, unless it is small."""
    into = None if buffers is None or is_small(x) else buffers.take("normed", tuple(x.shape), x)
    return rms_norm(module, x, into)


def heads(x: Tensor, head_dim: int) -> Tensor:
    """``[..., heads * head_dim]`` to ``[..., heads, head_dim]``."""
    return x.unflatten(-1, (-1, head_dim))


def is_mixture(mlp: Any) -> bool:
    """Whether an FFN is a mixture of experts."""
    return "experts" in mlp._modules


def is_fused(mlp: Any) -> bool:
    """Whether one matrix makes gate and up of a gated FFN."""
    return "gate_up_proj" in mlp._modules


def is_numbered(mlp: Any) -> bool:
    """Whether the matrices of a gated FFN are :data:`NUMBERED`."""
    return NUMBERED[0] in mlp._modules


def activation(mlp: Any) -> Any:
    """The module between the matrices of a gated FFN."""
    if is_numbered(mlp):
        return _SILU
    return mlp.activation_fn if is_fused(mlp) else mlp.act_fn


def projections(mlp: Any) -> tuple[Any, ...]:
    """The modules of a gated FFN's matrices, down last."""
    if is_numbered(mlp):
        return tuple(getattr(mlp, name) for name in NUMBERED)
    return (mlp.gate_up_proj, mlp.down_proj) if is_fused(mlp) else (mlp.gate_proj, mlp.up_proj, mlp.down_proj)


def parts_of(mlp: Any) -> tuple[str, ...]:
    """What a gated FFN has to have, by name."""
    return NUMBERED if is_numbered(mlp) else FUSED if is_fused(mlp) else SPLIT


def output_projection(attention: Any) -> Any:
    """What puts the heads of ``attention`` together."""
    return attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj


def matrices(mlp: Any) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """Weight and bias of gate, up and down of a gated FFN whose projections are plain."""
    *wide, down = projections(mlp)
    parts = [(linear.weight, linear.bias) for linear in wide]
    if len(parts) == 1:
        [(weight, bias)] = parts
        parts = [*zip(weight.chunk(2), (None, None) if bias is None else bias.chunk(2), strict=True)]
    return (*parts, (down.weight, down.bias))


def gated(mlp: Any, x: Tensor) -> Tensor:
    """What a gated FFN whose projections are plain makes of ``x [..., hidden]`` before its last matrix."""
    (gate, gate_bias), (up, up_bias), _ = matrices(mlp)
    made: Tensor = activation(mlp)(F.linear(x, gate, gate_bias)) * F.linear(x, up, up_bias)
    return made


def gated_ffn(mlp: Any, x: Tensor, buffers: Buffers) -> Tensor:
    """``mlp``, a gated FFN (``down(act(gate(x)) * up(x))``), on ``x [..., hidden]``."""
    act, (first, *others) = activation(mlp), projections(mlp)
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or not (is_plain(mlp) and is_plain(act) and is_own(first))
    ):
        out: Tensor = mlp(x)
        return out
    report(mlp, x)
    gate = linear(first, x, buffers, "gate")
    if is_fused(mlp):
        gate, up = gate.chunk(2, dim=-1)
        gate = (F.silu(gate, inplace=True) if isinstance(act, SILU) else act(gate)).mul_(up)
        return linear(others[-1], gate, buffers, "up")
    gate = F.silu(gate, inplace=True) if isinstance(act, SILU) else act(gate)
    gate.mul_(linear(others[0], x, buffers, "up"))
    return linear(others[-1], gate, buffers, "up")  # what was there has been read


def _rows_at_once(width: int) -> int:
    """Rows of ``width`` numbers that stay in the cores' caches."""
    threads: int = torch.get_num_threads()
    return max(1, BLOCK * threads // max(1, width))


def may_write(x: Tensor) -> bool:
    """Whether results of work on ``x`` may be written into memory at hand, and it pays."""
    return x.device.type == "cpu" and not (
        torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    )


def is_small(x: Tensor) -> bool:
    """Whether steps on ``x`` cost more than its numbers."""
    return bool(x.numel() < FEW and x.device.type == "cpu")


def is_own(module: Any) -> bool:
    """A plain projection with plain weights: what it returns is the caller's alone."""
    return type(module) is nn.Linear and type(module._parameters["weight"]) is nn.Parameter and is_plain(module)


def is_plain(module: Any) -> bool:
    """Nobody has replaced this module's ``forward`` or hooked it."""
    return "forward" not in module.__dict__ and not is_hooked(module)
