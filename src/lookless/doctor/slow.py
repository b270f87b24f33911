"""A plan on the stock model by hooks alone: everything is computed, and what the plan spares is thrown away.

It shares nothing with the runtime but the plan and the places of the modules, so that both are wrong in the same way
only if the plan is. One unpadded prompt, and the cells whose meaning needs no rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..cells import Affine, Cell
from ..fitted import Linear, Mean
from ..plan import Plan
from ..runtime.families import Located
from ..runtime.mixers import has_state, mixer_of


def left_out(plan: Plan, located: Located) -> list[str]:
    """Cells of ``plan`` that cannot be had by hooks, in words."""
    found = []
    for index, (row, module) in enumerate(zip(plan.layers, located.layers, strict=True)):
        for column, cell in row.planned.items():
            hides = column in ("keep", "visible")
            is_known = column == "decode" or cell.skips or cell.withdraws or isinstance(cell, Mean | Linear)
            if not is_known or (hides and has_state(module)):
                found.append(f"{column} of layer {index} ({cell})")
    return found


@torch.no_grad()
def slow_logits(model: Any, located: Located, plan: Plan, inputs: Mapping[str, Any]) -> Tensor:
    """Logits of the last token, float32 ``[vocabulary]``, of one prompt, which is not padded and ends in text.

    No cell of ``plan`` may be :func:`left_out`.
    """
    visual = located.visual(inputs["input_ids"][0])
    with _thrown_away(plan, located, visual):
        logits: Tensor = model(**inputs, use_cache=False, logits_to_keep=1).logits
    return logits[0, -1].float()


@contextmanager
def _thrown_away(plan: Plan, located: Located, visual: Tensor) -> Iterator[None]:
    """``visual`` is bool, ``[sequence]``."""
    hooks, is_withdrawn, before = [], False, visual.cumsum(0) == 0
    for row, layer in zip(plan.layers, located.layers, strict=True):
        is_withdrawn = is_withdrawn or row.keep.withdraws
        frozen = before & (not row.before.is_full)
        hooks += [
            module.register_forward_hook(_instead(cell, visual, frozen), with_kwargs=True)
            for module, cell in ((mixer_of(layer), row.attention), (located.block.ffn_of(layer), row.ffn))
        ]
        if is_withdrawn or row.visible.skips:  # text does not attend to visual keys
            hooks.append(mixer_of(layer).register_forward_pre_hook(_masked(visual), with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _instead(cell: Cell, visual: Tensor, frozen: Tensor) -> Any:
    """A hook that puts in the place of what an operator adds to visual rows what ``cell`` adds, and nothing in that of
    what it adds to ``frozen`` rows."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if cell.is_full and not bool(frozen.any()):
            return None
        added = output if isinstance(output, Tensor) else output[0]
        changed = added.clone()
        changed[:, frozen] = 0
        if cell.is_full:
            pass
        elif isinstance(cell, Affine):
            entered = args[0] if args else kwargs["hidden_states"]
            changed[:, visual] = _mapped(cell, entered[:, visual]).to(added.dtype)
        else:
            changed[:, visual] = 0
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    return hook


def _mapped(cell: Affine, normed: Tensor) -> Tensor:
    """``constant + up @ down @ x`` of each row, in float32."""
    parts = {name: torch.from_numpy(part).to(normed.device) for name, part in cell.weights.parts.items()}
    constant = parts["constant"].expand(normed.shape)
    if "down" not in parts:
        return constant
    return constant + normed.float() @ parts["down"].T @ parts["up"].T


def _masked(visual: Tensor) -> Any:
    """A hook that hides visual keys from text. Visual rows attend as before: where they are withdrawn nobody reads
    them."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        length = x.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        allowed &= ~(visual[None, :] & ~visual[:, None])
        mask = torch.zeros(length, length, dtype=x.dtype, device=x.device)
        return args, {**kwargs, "attention_mask": mask.masked_fill(~allowed, torch.finfo(x.dtype).min)[None, None]}

    return hook
