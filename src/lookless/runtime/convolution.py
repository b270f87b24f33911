"""The mixer of a layer with a short convolution (LFM2): each row reads the few rows before it, and nothing else.

Stock, of a row t, whose ``in_proj`` makes two gates and a value (transformers' ``Lfm2ShortConv``)::

    wide(t) = B(t) * x(t)
    out     = out_proj(C(t) * sum of weight(j) * wide(t - j) over j < kernel)

Query rows are those that read. Only rows that the convolution brings to one of them, in this call or the next, have
``B`` and ``x``, and only query rows ``C`` and the output projection. Rows that nobody may read leave the sequence, as
they do in a gated delta rule: text that may not see an image is convolved as if the image were not there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ModelError
from ..layer_plan import LayerWork
from .counting import report
from .delta import asked_rows, earlier_layer, tail_of
from .inplace import is_own
from .prompts import Prompts
from .record import LayerRecord
from .rows import Rows


def run_convolution(
    work: LayerWork, prompts: Prompts, record: LayerRecord, x: Tensor, cache: Any, *, owns_x: bool, keeps_record: bool
) -> Tensor:
    """The compact living rows ``x`` with the mixer's output added; in place where the caller ``owns_x``.

    ``keeps_record`` is of no matter: nothing of the record is written into.
    """
    module, live, kept = record.module, prompts.live, prompts.rows(work.cached)
    _check_here(module)
    _check_padding(module, prompts)
    held = earlier_layer(cache, module.layer_idx)
    before = None if held is None else held.conv_states[0]
    asked = asked_rows(work, prompts, module.conv_kernel_size)
    wide, gates = _made(module, record.normed, prompts.within(asked, record.rows))
    after, may_add = None, owns_x and not torch.is_grad_enabled()
    for part in work.attention:
        query_rows, key_rows = prompts.rows(part.query), prompts.rows(part.key)
        is_kept = cache is not None and key_rows is kept
        if not key_rows.count or not (query_rows.count or is_kept):
            continue
        sequence = key_rows.pad(prompts.within(key_rows, record.rows).gather(wide)).transpose(1, 2)
        length = sequence.shape[-1]
        sequence = sequence if before is None else torch.cat((before.to(sequence.dtype), sequence), dim=-1)
        after = tail_of(sequence, key_rows, module.conv_kernel_size) if is_kept else after
        if not query_rows.count:
            continue
        read = key_rows.unpad(_convolved(module, sequence)[..., -length:].transpose(1, 2))
        read = prompts.within(query_rows, key_rows).gather(read)
        mine = prompts.within(query_rows, record.rows)
        gate = _part(module.in_proj, mine.gather(record.normed), 1) if gates is None else mine.gather(gates)
        output = module.out_proj(gate * read)
        inner = prompts.within(query_rows, live)
        x, may_add = inner.scatter_add_(x, output) if may_add else inner.scatter_add(x, output), True
    if after is not None:  # not before all parts have read what was there: a cache copies in place
        cache.update_conv_state(after, module.layer_idx, conv_kernel_size=module.conv_kernel_size)
    return x


def _check_here(module: Any) -> None:
    """Raises: ModelError: weights that are used without their module's ``forward`` are elsewhere."""
    if module.conv.weight.is_meta:
        raise ModelError(
            f"layer {module.layer_idx} has a short convolution whose weights are offloaded, and a plan uses them where "
            f"they lie: load the model without offloading."
        )


def _check_padding(module: Any, prompts: Prompts) -> None:
    """Raises: ModelError: stock's padding would leak into a prompt, and a plan leaves padding out."""
    if prompts.is_padded and module.in_proj.bias is not None:
        raise ModelError(
            f"layer {module.layer_idx} has a short convolution with a bias, so that stock's answer to a padded prompt "
            f"is not its answer to the prompt alone, and a plan leaves padding out: give prompts of one length, or one "
            f"at a time."
        )


def _made(module: Any, normed: Tensor, asked: Rows) -> tuple[Tensor, Tensor | None]:
    """What is convolved, of the rows ``normed [groups, rows, hidden]``, zeros for those that are not ``asked``; and the
    gate of what they read, where the one matrix that makes them may not be taken apart."""
    mine, gate = asked.gather(normed), None
    if torch.is_grad_enabled() or not is_own(module.in_proj):
        first, gate, value = module.in_proj(mine).chunk(3, dim=-1)
        wide = first * value
    else:
        report(module.in_proj, mine)
        wide = _part(module.in_proj, mine, 0) * _part(module.in_proj, mine, 2)
    if asked.is_whole:
        return wide, gate
    empty = normed.new_zeros(*normed.shape[:2], wide.shape[-1])
    return asked.scatter(empty, wide.to(empty.dtype)), None if gate is None else asked.scatter(empty, gate)


def _part(projection: Any, x: Tensor, index: int) -> Tensor:
    """The first gate (0), the second (1) or the value (2) of the rows ``x [groups, rows, hidden]``."""
    bias = projection.bias
    return F.linear(x, projection.weight.chunk(3)[index], None if bias is None else bias.chunk(3)[index])


def _convolved(module: Any, sequence: Tensor) -> Tensor:
    """Of ``sequence [batch, hidden, rows]`` each row with those before it."""
    size = module.conv_kernel_size
    made: Tensor = F.conv1d(
        F.pad(sequence, (size - 1, 0)), module.conv.weight, module.conv.bias, groups=sequence.shape[1]
    )
    return made
