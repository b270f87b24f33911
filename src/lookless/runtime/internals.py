"""What the runtime uses of transformers beyond its documented interface, checked when a plan is applied.

A release that renames one of these would otherwise fail in the middle of a call, or run wrong. Only what every call
needs is checked, so wrapped, quantised, sharded and offloaded modules pass.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable
from typing import Any

import transformers
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from ..errors import ModelError
from .decoders import Block
from .inplace import is_mixture, is_plain, parts_of
from .mixers import is_convolution, is_delta, mixer_name

ATTENTION = ("q_proj", "scaling", "layer_idx", "head_dim")
KEYS = ("k_proj", "v_proj")
#: Of attention that shares keys.
SHARED = ("is_kv_shared_layer", "store_full_length_kv", "layer_type", "sliding_window")
DELTA = (
    *("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj", "norm", "conv1d", "A_log", "dt_bias"),
    *("conv_kernel_size", "activation", "layer_idx", "key_dim", "value_dim", "head_k_dim", "head_v_dim"),
    *("num_k_heads", "num_v_heads"),
)
CONVOLUTION = ("in_proj", "out_proj", "conv", "conv_kernel_size", "layer_idx")
KERNELS = ("torch_chunk_gated_delta_rule", "causal_conv1d_fn")
STATE = ("conv_states", "recurrent_states", "has_previous_state", "record_past", "update_conv_state")
#: What the inner model, a decoder layer and its attention are called with, by name.
MODEL_CALL = ("input_ids", "attention_mask", "past_key_values")
LAYER_CALL = ("attention_mask", "position_embeddings", "past_key_values")
CACHE = ("layers", "layer_class_to_replicate", "offloading")
CACHE_LAYER = ("is_compileable", "is_initialized", "lazy_initialization", "get_seq_length", "update", "crop", "reset")
BATCHES = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices")


def check_internals(inner: nn.Module, layers: Iterable[nn.Module], block: Block) -> None:
    """Check the module that merges image features into text, its decoder's layers, which are ``block``, and the cache.

    Raises:
        ModelError: something is not there any more; says what.
    """
    _check_cache()
    require_arguments(inner, *MODEL_CALL)
    for layer in layers:
        require(layer, mixer_name(layer), block.before_attention, block.ffn, *block.norms)
        require_arguments(layer, *LAYER_CALL)
        if is_delta(layer):
            _check_delta(layer.linear_attn)
        elif is_convolution(layer):
            require(layer.conv, *CONVOLUTION)
            require_arguments(layer.conv, "hidden_states", "attention_mask", "past_key_values")
            require(LinearAttentionLayer(), *STATE)
        else:
            keys = () if block.borrows(layer) else KEYS
            output = "out_proj" if hasattr(layer.self_attn, "out_proj") else "o_proj"
            require(layer.self_attn, *ATTENTION, output, *keys, *(SHARED if block.shares_keys else ()))
            require_arguments(layer.self_attn, "hidden_states", *LAYER_CALL)
        mlp = block.ffn_of(layer)
        if is_plain(mlp) and not is_mixture(mlp):  # another is called as it is
            require(mlp, *parts_of(mlp))


def _check_delta(module: nn.Module) -> None:
    require(module, *DELTA)
    require_arguments(module, "hidden_states", "cache_params", "attention_mask")
    require(sys.modules[type(module).__module__], *KERNELS)
    require(LinearAttentionLayer(), *STATE)


def require(thing: Any, *names: str) -> None:
    """Raises: ModelError: ``thing`` lacks one of these attributes."""
    for name in names:
        if not hasattr(thing, name):
            raise _missing(type(thing), name)


def require_arguments(module: nn.Module, *names: str) -> None:
    """Raises: ModelError: the class's ``forward`` does not take one of these arguments. One that names none of its
    arguments is a wrapper, which passes them on."""
    arguments = _arguments(type(module).forward)
    if not arguments:
        return
    for name in names:
        if name not in arguments:
            raise _missing(type(module), f"forward(..., {name}=...)")


@functools.cache
def _arguments(function: Any) -> frozenset[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind in named) - {"self"}


@functools.cache
def _check_cache() -> None:
    require(DynamicCache(), *CACHE)
    require(DynamicLayer(), *CACHE_LAYER, *BATCHES)


def _missing(kind: type, what: str) -> ModelError:
    return ModelError(
        f"{kind.__name__} of transformers {transformers.__version__} has no {what}, which a plan needs: install a "
        f"version of transformers that this version of lookless supports."
    )
