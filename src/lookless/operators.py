"""One decoder layer under a plan: each operator on its own rows, and the rest of the layer as it was.

Stock (Llama, Mistral, Qwen2; ``norm`` is RMSNorm)::

    x = x + attention(norm(x))
    x = x + ffn(norm(x))

Here ``attention`` may be asked by text rows only and ``ffn`` run on text rows only; visual rows then pass by on the
residual stream. Work that is skipped is not done: no query, score, output projection or FFN of a spared row.
Projections are called as modules, so quantised linears, adapters and hooks on them stay in force.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .plan import LayerPlan, Skip
from .rows import RowSet


def run_layer(
    layer: nn.Module,
    cells: LayerPlan,
    rows: RowSet,
    x: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor],
    past_key_values: Any = None,
    **rest: Any,
) -> Tensor:
    """``layer`` on ``x`` ``[batch, sequence, hidden]`` with visual tokens spared as ``cells`` say.

    The arguments are those Hugging Face gives a decoder layer; ``rows`` are the text rows.
    """
    if cells.attention == Skip():
        x = _skip_attention(layer, rows, x, attention_mask, position_embeddings, past_key_values)
    else:
        update, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(x),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            **rest,
        )
        x = x + update
    if cells.ffn == Skip():
        return rows.add(x, layer.mlp(layer.post_attention_layernorm(rows.take(x)))) if rows.count else x
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _skip_attention(
    layer: nn.Module,
    rows: RowSet,
    x: Tensor,
    mask: Tensor | None,
    position_embeddings: tuple[Tensor, Tensor],
    cache: Any,
) -> Tensor:
    """Keys and values of every row, queries of text rows."""
    module: Any = layer.self_attn
    cos, sin = position_embeddings
    h = layer.input_layernorm(x)
    key = _heads(module.k_proj(h), module.head_dim)
    value = _heads(module.v_proj(h), module.head_dim).transpose(1, 2)
    key = _rotate(key, cos, sin).transpose(1, 2)
    if cache is not None:
        key, value = cache.update(key, value, module.layer_idx)
    if not rows.count:  # a chunk that is all image: its keys are cached, nobody asks
        return x
    query = _rotate(_heads(module.q_proj(rows.take(h)), module.head_dim), rows.take(cos), rows.take(sin))
    update = rows.attend(_attention_of(module), module, query, key, value, mask)
    return rows.add(x, module.o_proj(update))


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """``[..., heads * head_dim]`` to ``[..., heads, head_dim]``."""
    return x.unflatten(-1, (-1, head_dim))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``x`` ``[..., rows, heads, head_dim]`` by ``cos, sin`` ``[..., rows, head_dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(-2) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(-2)


def _attention_of(module: Any) -> Any:
    """The attention function the stock layer would call."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
