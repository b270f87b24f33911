"""The mixer of a layer with a gated delta rule (Qwen3.5): each row writes into a state, and reads from it.

Stock, of a row t with query, key and value from a short convolution over rows t-3 to t, and per head a decay and a
learning rate (arXiv 2412.06464)::

    state = decay(t) * state + outer(key(t), rate(t) * (value(t) - key(t) @ decay(t) * state))
    out   = out_proj(norm(query(t) @ state) * silu(z(t)))

Key rows are those that write, query rows those that read. A row that does not read has no ``z``, norm and output
projection, and no query either, unless the convolution brings it to one that reads, of this call or the next. Rows that
write nothing that is read leave the sequence: neither the state nor the convolution knows them. So text that may not
see an image mixes as if the image were not there, in a scan of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ModelError
from ..layer_plan import LayerWork
from .cache import layer_of
from .counting import report
from .inplace import heads, is_own
from .internals import KERNELS
from .prompts import Prompts
from .record import LayerRecord
from .rows import Rows


@dataclass(frozen=True)
class State:
    """What a layer remembers of a sequence.

    Attributes:
        conv: the last rows before the convolution, ``[batch, channels, kernel]``.
        recurrent: ``[batch, value_heads, key_dim, value_dim]``.
    """

    conv: Tensor
    recurrent: Tensor


@dataclass(frozen=True)
class Written:
    """What key rows write, compact ``[groups, rows, ...]``: before the convolution, the decay and the rate."""

    mixed: Tensor
    decay: Tensor
    rate: Tensor

    def of(self, inner: Rows) -> Written:
        return Written(*(inner.gather(x) for x in (self.mixed, self.decay, self.rate)))


def run_delta(
    work: LayerWork, prompts: Prompts, record: LayerRecord, x: Tensor, cache: Any, *, owns_x: bool, keeps_record: bool
) -> Tensor:
    """The compact living rows ``x`` with the mixer's output added; in place where the caller ``owns_x``.

    ``keeps_record`` is of no matter: nothing of the record is written into.
    """
    module, live = record.module, prompts.live
    _check_here(module)
    before, kept = _before(module, cache), prompts.rows(work.cached)
    asked = asked_rows(work, prompts, module.conv_kernel_size)
    written, after = _written(module, record.normed, prompts.within(asked, record.rows)), None
    may_add = owns_x and not torch.is_grad_enabled()
    for part in work.attention:
        query_rows, key_rows = prompts.rows(part.query), prompts.rows(part.key)
        is_kept = cache is not None and key_rows is kept
        if not key_rows.count or not (query_rows.count or is_kept):
            continue
        mine = written.of(prompts.within(key_rows, record.rows))
        read, state = _scan(module, key_rows, mine, before, keeps_state=is_kept)
        after = state if is_kept else after
        if not query_rows.count:
            continue
        normed = prompts.within(query_rows, record.rows).gather(record.normed)
        output = _output(module, prompts.within(query_rows, key_rows).gather(read), normed)
        inner = prompts.within(query_rows, live)
        x, may_add = inner.scatter_add_(x, output) if may_add else inner.scatter_add(x, output), True
    if after is not None:  # not before all parts have read what was there: a cache copies in place
        cache.update_conv_state(after.conv, module.layer_idx, conv_kernel_size=module.conv_kernel_size)
        cache.update_recurrent_state(after.recurrent, module.layer_idx)
    return x


def _check_here(module: Any) -> None:
    """Raises: ModelError: parameters that are used without their module's ``forward`` are elsewhere."""
    if module.A_log.is_meta or module.conv1d.weight.is_meta:
        raise ModelError(
            f"layer {module.layer_idx} has a gated delta rule whose weights are offloaded, and a plan uses them where "
            f"they lie: load the model without offloading."
        )


def _before(module: Any, cache: Any) -> State | None:
    """What earlier calls left; None at the beginning of a sequence."""
    held = earlier_layer(cache, module.layer_idx)
    return None if held is None else State(held.conv_states[0], held.recurrent_states[0])


def earlier_layer(cache: Any, index: int) -> Any:
    """The cache's layer ``index``, which holds a state; None at the beginning of a sequence.

    Raises:
        ModelError: the cache has no place for a state, or is to be cropped.
    """
    if cache is None:
        return None
    held = layer_of(cache, index)
    if not hasattr(held, "recurrent_states"):
        raise ModelError(
            f"layer {index} keeps a state, and this cache has no place for one: make it with the model's "
            f"configuration, DynamicCache(config=model.config)."
        )
    if held.record_past:
        raise ModelError(
            "this cache records every row of a state so that it can be cropped, which a plan does not do: decode "
            "without a draft."
        )
    return held if held.has_previous_state[0] else None


def asked_rows(work: LayerWork, prompts: Prompts, kernel: int) -> Rows:
    """Rows whose queries are made: the convolution, which reads the ``kernel - 1`` rows before each, brings them to one
    that reads, or keeps them for the next call, the last ``kernel`` of each prompt. All key rows where a rank scatters
    those that read, as there are few whose neighbours are not wanted."""
    if any(part.query.choice for part in work.attention):
        return prompts.rows(work.key)
    rows: Rows = prompts.once(("asked", work.attention, kernel), lambda: _asked(work, prompts, kernel))
    return rows


def _asked(work: LayerWork, prompts: Prompts, kernel: int) -> Rows:
    """As :func:`asked_rows`, where rows that read are runs."""
    found: list[set[int]] = [set() for _ in prompts.text]
    for part in work.attention:
        query, key = prompts.rows(part.query), prompts.rows(part.key)
        for mine, reading, there in zip(found, query.prompts, key.prompts, strict=True):
            places = torch.searchsorted(there, reading)[:, None] - torch.arange(kernel)
            tail = torch.arange(max(0, len(there) - kernel), len(there))
            mine |= {*there[torch.cat((places[places >= 0], tail))].tolist()}
    rows = tuple(torch.tensor(sorted(mine), dtype=torch.int64) for mine in found)
    return Rows(rows, prompts.length, prompts.live.packed, prompts.device)


def _written(module: Any, normed: Tensor, asked: Rows) -> Written:
    """What the rows ``normed [groups, rows, hidden]`` write; queries of those ``asked``, and zeros for the others."""
    rate = module.in_proj_b(normed).sigmoid()
    speed = F.softplus(module.in_proj_a(normed).float() + module.dt_bias)
    return Written(_mixed(module, normed, asked), -module.A_log.float().exp() * speed, rate)


def _mixed(module: Any, normed: Tensor, asked: Rows) -> Tensor:
    """Queries, keys and values side by side, of one projection that is taken apart where it may be."""
    projection, width = module.in_proj_qkv, module.key_dim
    if asked.is_whole or torch.is_grad_enabled() or not is_own(projection) or projection.bias is not None:
        whole: Tensor = projection(normed)
        return whole
    report(projection, normed)
    weight = projection.weight
    query, other = F.linear(asked.gather(normed), weight[:width]), F.linear(normed, weight[width:])
    mixed = other.new_zeros(*normed.shape[:2], len(weight))
    mixed[..., width:] = other
    mixed[..., :width] = asked.scatter(mixed[..., :width], query)
    return mixed


def _scan(
    module: Any, rows: Rows, written: Written, before: State | None, *, keeps_state: bool
) -> tuple[Tensor, State | None]:
    """What each of ``rows`` reads, compact ``[groups, rows, value_heads, value_dim]``, and the state after the last."""
    rule, convolve = (_kernel(module, name) for name in KERNELS)
    mixed, decay, rate = (rows.pad(x) for x in (written.mixed, written.decay, written.rate))
    if rows.packed:  # fillers, after each prompt's last row, write nothing and let nothing decay
        real = (rows.positions >= 0)[..., None]
        mixed, decay, rate = mixed * real, decay * real, rate * real
    length, mixed = mixed.shape[1], mixed.transpose(1, 2)
    wide = mixed if before is None else torch.cat((before.conv.to(mixed.dtype), mixed), dim=-1)
    turned = convolve(wide, module.conv1d.weight.squeeze(1), module.conv1d.bias, activation=module.activation)
    widths = [module.key_dim, module.key_dim, module.value_dim]
    query, key, value = turned[..., -length:].transpose(1, 2).split(widths, dim=-1)
    query, key = (heads(t, module.head_k_dim) for t in (query, key))
    groups = module.num_v_heads // module.num_k_heads
    if groups > 1:
        query, key = (t.repeat_interleave(groups, dim=2) for t in (query, key))
    read, recurrent = rule(
        query,
        key,
        heads(value, module.head_v_dim).contiguous(),
        g=decay,
        beta=rate,
        initial_state=None if before is None else before.recurrent,
        output_final_state=keeps_state,
        use_qk_l2norm_in_kernel=True,
    )
    state = State(tail_of(wide, rows, module.conv_kernel_size), recurrent) if keeps_state else None
    return rows.unpad(read), state


def tail_of(wide: Tensor, rows: Rows, size: int) -> Tensor:
    """The last ``size`` columns of each prompt in ``wide [batch, channels, earlier and padded rows]``, zeros before
    the first."""
    most = max(map(len, rows.prompts))
    wide = F.pad(wide, (size, 0))
    last = [wide.shape[-1] - most + len(mine) for mine in rows.prompts]
    if not rows.packed:
        return wide[..., -size:]
    columns = torch.tensor(last)[:, None] + torch.arange(-size, 0)
    index = columns.to(wide.device)[:, None].expand(-1, wide.shape[1], -1)
    return wide.gather(2, index)


def _output(module: Any, read: Tensor, normed: Tensor) -> Tensor:
    """What readers add to the residual stream: ``read [groups, rows, value_heads, value_dim]``, normed and gated."""
    gate = heads(module.in_proj_z(normed), module.head_v_dim)
    flat = module.norm(read.flatten(0, 2), gate.flatten(0, 2))
    output: Tensor = module.out_proj(flat.view(*read.shape[:2], -1))
    return output


def _kernel(module: Any, name: str) -> Any:
    """The function by which the module's own ``forward`` does it: fla's where it is installed."""
    return getattr(module, name, None) or getattr(sys.modules[type(module).__module__], name)
