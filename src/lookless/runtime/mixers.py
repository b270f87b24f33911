"""What mixes the rows of a layer: attention, a gated delta rule, or a short convolution."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

ATTENTION, DELTA, CONVOLUTION = "self_attn", "linear_attn", "conv"


def is_delta(layer: Any) -> bool:
    """Whether the rows of ``layer`` are mixed by a gated delta rule, and not by attention."""
    return DELTA in layer._modules  # many times faster than asking for an attribute that is not there


def is_convolution(layer: Any) -> bool:
    """Whether the rows of ``layer`` are mixed by a short convolution, and not by attention."""
    return CONVOLUTION in layer._modules


def has_state(layer: Any) -> bool:
    """Whether ``layer`` keeps a state of the sequence, and no key of any row."""
    return is_delta(layer) or is_convolution(layer)


def mixer_name(layer: Any) -> str:
    """The name in ``layer`` of the module that mixes its rows."""
    return next((name for name in (DELTA, CONVOLUTION) if name in layer._modules), ATTENTION)


def mixer_of(layer: Any) -> Any:
    """The module of ``layer`` that mixes its rows."""
    return getattr(layer, mixer_name(layer))


def added_by(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a mixer adds to the residual stream, of what its module returns: attention returns its weights, too."""
    return output if isinstance(output, Tensor) else output[0]


def argument_names(layer: Any) -> tuple[str, ...]:
    """What a layer is called with behind its hidden states: one that adds embeddings of its own gets them so."""
    return _parameters(type(layer).forward)[2:]


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def call_stock(layer: Any, normed: Tensor, mask: Any, rotary: Any, cache: Any, **rest: Any) -> Tensor:
    """What the layer's own mixer adds to all rows ``normed [batch, sequence, hidden]``, called as the layer does."""
    if is_delta(layer):
        rest.pop("position_ids", None)
        call = {"attention_mask": mask, "cache_params": cache}
    elif is_convolution(layer):
        rest.pop("position_ids", None)
        call = {"attention_mask": mask, "past_key_values": cache}
    else:
        call = {"attention_mask": mask, "position_embeddings": rotary, "past_key_values": cache}
    return added_by(mixer_of(layer)(hidden_states=normed, **call, **rest))
