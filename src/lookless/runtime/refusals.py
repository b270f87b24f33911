"""What cannot be done under a plan, refused by name: settings of ``apply``, sharded models, and what calls ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from ..cells import Cell
from ..errors import LooklessError, ModelError
from ..layer_plan import COLUMNS
from ..plan import Plan
from .families import Located
from .prompts import is_packed

EARLY_EXIT = (
    "assistant_early_exit drafts with the first layers alone, and a plan is in force only where every layer runs: "
    "draft with prompt_lookup_num_tokens or an assistant_model, or generate without."
)
#: Transformers before 5.23 checkpoint a layer's whole call and repeat it in the backward pass, when the plan's forward
#: pass is over; later ones checkpoint the stock ``forward``, which a plan replaces.
RECOMPUTES_CALLS = Version(transformers.__version__) < Version("5.23")


def checked_break_even(break_even: object) -> int:
    """Raises: LooklessError: it is no number of visual tokens."""
    if isinstance(break_even, int) and not isinstance(break_even, bool) and break_even >= 0:
        return break_even
    raise LooklessError(f'break_even={break_even!r}: give a number of visual tokens, 0 or more, or "auto".')


def check_sharded(plan: Plan) -> None:
    """Raises: ModelError: under tensor parallelism each process would choose tokens or neurons by its own share."""
    for index, row in enumerate(plan.layers):
        choices = [cell.sharded_choice for cell in row.cells if cell.sharded_choice]
        if choices:
            raise ModelError(
                f"layer {index} of the plan {choices[0]}, and under tensor parallelism each process would choose by "
                f"its own heads or neurons, and differently: load the model without tp_plan, or rank by diversity or "
                f"random."
            )


def check_call(located: Located, plan: Plan, given: Mapping[str, Any]) -> None:
    """Raises: ModelError: the call wants what it cannot get under the plan."""
    if hands_out(located, "attentions", given):
        raise ModelError(
            "output_attentions=True asks for the attention map of every layer, and under a plan none is computed: "
            "call without it, or on the stock model."
        )
    if hands_out(located, "router_logits", given):
        raise ModelError(
            "output_router_logits=True asks where every token was routed in every layer, and under a plan some "
            "pass no expert: call without it, or on the stock model."
        )
    if given.get("return_shared_kv_states"):
        raise ModelError(
            "return_shared_kv_states=True asks for the keys that layers share, of every token, and under a plan "
            "some are left out: call without it (a draft model that reads them needs the stock model)."
        )
    if RECOMPUTES_CALLS and torch.is_grad_enabled() and any(map(_is_checkpointed, located.layers)):
        raise ModelError(
            "gradient checkpointing runs layers a second time in the backward pass, with transformers before 5.23 "
            "without the plan: call model.gradient_checkpointing_disable(), or install transformers 5.23."
        )
    if given.get("attention_mask") is None and is_packed(given):
        cell = _first_cell(plan, lambda column, cell: cell.compares)
        if cell is not None:
            raise ModelError(
                f"position_ids that restart pack several prompts into one row, and {cell} goes over all visual "
                f"tokens of a row as those of one prompt: pass one prompt a row, padded."
            )


def hands_out(located: Located, what: str, given: Mapping[str, Any]) -> bool:
    """Whether the call returns ``what`` (``hidden_states``, ``attentions``, ``router_logits``) of every layer."""
    wanted = given.get(f"output_{what}")
    configs = (located.inner.config, located.decoder.config)
    return bool(wanted if wanted is not None else any(getattr(c, f"output_{what}", False) for c in configs))


def check_chunks(located: Located, plan: Plan, ids: Tensor, size: int) -> None:
    """Raises: ModelError: some cell needs a prompt whole, and ``size`` tokens at a time are prefilled."""

    def needs_it_whole(column: str, cell: Cell) -> bool:
        is_left_out = column in ("visible", "decode", "before") and not cell.is_full
        # One token is taken for a decode step, and what was visual in earlier chunks is not written down.
        return cell.compares or is_left_out or (size == 1 and cell.window is not None)

    cell = _first_cell(plan, needs_it_whole)
    if cell is not None and bool(located.visual(ids).any()):
        raise ModelError(
            f"prefill_chunk_size={size} cuts this prompt of {ids.shape[1]} tokens into several calls, and {cell} "
            f"needs it whole: generate without prefill_chunk_size."
        )


def _is_checkpointed(layer: nn.Module) -> bool:
    return layer.training and bool(getattr(layer, "gradient_checkpointing", False))


def _first_cell(plan: Plan, wanted: Callable[[str, Cell], bool]) -> str | None:
    """The first cell of ``plan`` that is ``wanted``, in words."""
    for layer, row in enumerate(plan.layers):
        for column in COLUMNS:
            cell = getattr(row, column)
            if wanted(column, cell):
                return f"{column} of layer {layer} ({cell})"
    return None
