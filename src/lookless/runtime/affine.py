"""An affine map of visual rows, in place of the operator that they do not run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cells import Affine
from ..errors import PlanMismatchError
from ..layer_plan import VISUAL
from ..plan import Plan
from ..weights import Weights
from .inplace import norm_into
from .prompts import Prompts
from .rows import Rows


def affine_of_visual(cell: Affine, norm: Any, prompts: Prompts, x: Tensor) -> tuple[Rows, Tensor]:
    """The living visual rows among the compact living rows ``x``, and what ``cell`` adds to each of them.

    ``norm`` is the module before the operator. A constant needs none of it.
    """
    rows = prompts.within(prompts.rows(VISUAL), prompts.live)
    constant, *matrices = on(cell.weights, x)
    if not matrices:
        return rows, constant.expand(x.shape[0], rows.compact_length, -1)
    down, up = matrices
    normed = norm_into(norm, rows.gather(x), prompts.buffers)
    return rows, F.linear(F.linear(normed, down), up, constant)


def on(weights: Weights, like: Tensor) -> tuple[Tensor, ...]:
    """The parts of ``weights``, of the type and on the device of ``like``; copied there once."""

    def copies() -> tuple[Tensor, ...]:
        with torch.inference_mode(False):  # later calls may need gradients
            return tuple(torch.from_numpy(part).to(like.device, like.dtype) for part in weights.parts.values())

    made: tuple[Tensor, ...] = weights.once((like.device, like.dtype), copies)
    return made


def check_weights(plan: Plan, width: int) -> None:
    """Raises: PlanMismatchError: the maps of ``plan`` are not of rows of ``width``. PlanError: they are not here."""
    for weights in plan.weights:
        if weights.width != width:
            raise PlanMismatchError(
                f"a fitted cell of the plan is for hidden states of width {weights.width}, and the model's are of "
                f"width {width}: use a plan fitted to this model."
            )
