"""A fitted cell inside an engine: an affine map of visual rows, in place of the operator that they do not run.

As :mod:`lookless.runtime.affine`, on a flat batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cells import Affine


class AffineMap(nn.Module):
    """What a fitted cell adds to visual rows.

    Its numbers are buffers, so that what an engine does with all of a model (it puts weights to sleep, or loads others)
    keeps them; and not persistent, so that no loader looks for them in the checkpoint. Each rank of a tensor-parallel
    group holds them whole: a map is of whole hidden states, and its result is added after the ranks have summed theirs.

    Args:
        cell: with its numbers.
        dtype: of the model; they are rounded to it. Their device is torch's default one, as of all that vLLM builds.
    """

    constant: Tensor
    down: Tensor
    up: Tensor

    def __init__(self, cell: Affine, dtype: torch.dtype) -> None:
        super().__init__()
        self.rank = cell.weights.rank
        for part, numbers in cell.weights.parts.items():
            self.register_buffer(part, torch.tensor(numbers, dtype=dtype), persistent=False)

    def forward(self, x: Tensor, norm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What is added to the visual rows ``x [rows, hidden]``; ``[rows, hidden]``.

        ``norm`` is the module before the operator; without it ``x`` has passed it already. A constant needs none.
        """
        if not self.rank:
            return self.constant.expand(x.shape[0], -1)
        return F.linear(F.linear(x if norm is None else norm(x), self.down), self.up, self.constant)
