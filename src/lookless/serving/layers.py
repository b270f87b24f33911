"""A decoder layer of vLLM's under a plan, on rows of which text comes first: its own parts, each on a slice of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from vllm.utils.torch_utils import _encode_layer_name

from ..errors import ServingError
from ..layer_plan import LayerPlan
from .affine import AffineMap
from .projections import SplitProjection
from .settings import BACKENDS, is_blind

#: Parts of a layer that are called one by one, or looked for.
PARTS = ("mlp", "input_layernorm", "post_attention_layernorm")
ATTENTION_PARTS = ("qkv_proj", "o_proj", "rotary_emb", "attn")


class Split(NamedTuple):
    """How the rows of the step that runs now are laid out: see :class:`~lookless.serving.steps.Order`.

    Attributes:
        text: ``[text]``, of which the length alone is used, as a graph knows it.
        read: ``[text and rows that are answered from]``, likewise.
        rows, places: ``[rows]``, from the batch to the order and back.
    """

    text: Tensor
    read: Tensor
    rows: Tensor
    places: Tensor


class Running:
    """What all layers of a model look at.

    Attributes:
        split: how the rows of the step that runs now are split; None in a step whose layers run vLLM's own forward.
        ran: how many layers of the step with visual tokens have run under the plan.
    """

    def __init__(self) -> None:
        self.split: Split | None = None
        self.ran = 0


@dataclass(frozen=True)
class Operators:
    """Which rows run the operators of a layer: "all"; "text"; or "read", text and what is answered from, where visual
    rows are asked for and nothing but an answer reads them.

    Attributes:
        keys: "all" or "text", whose keys and values are made and cached.
    """

    attention: str
    ffn: str
    keys: str = "all"

    @classmethod
    def of(cls, planned: LayerPlan, live: LayerPlan, *, is_flat: bool) -> Operators:
        """For a layer's row as given and without dead work; ``is_flat`` for one whose attention runs all rows."""
        attention, ffn = (_rows(getattr(planned, o), getattr(live, o)) for o in ("attention", "ffn"))
        keys = "text" if is_blind(planned) else "all"
        return cls("all" if is_flat else attention, ffn, keys)


#: Of a layer whose visual tokens are withdrawn.
WITHDRAWN = Operators("text", "text", "text")


def _rows(planned: Any, live: Any) -> str:
    if planned.visual == "none":
        return "text"
    return "read" if live.visual == "none" else "all"


class PlannedLayer:
    """Mixed into a decoder layer's class (``x = x + attention(norm(x)); x = x + ffn(norm(x))``).

    The residual protocol is vLLM's: a layer takes and returns ``hidden_states`` and ``residual``, ``[tokens, hidden]``
    each, which the next layer adds.

    Visual rows run an operator all or not at all. Where they do not, its map, if it has one, takes its place.
    """

    lookless_running: Running
    lookless_operators: Operators
    lookless_attention: AffineMap | None
    lookless_ffn: AffineMap | None

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        split, operators = self.lookless_running.split, self.lookless_operators
        if split is not None:
            self.lookless_running.ran += 1
        is_flat = hasattr(self, "linear_attn")  # its state is of the sequence, in the order of the batch
        if split is None or (operators.attention == operators.ffn == "all" and not is_flat):
            return super().forward(  # type: ignore[misc]
                positions=positions, hidden_states=hidden_states, residual=residual, **kwargs
            )
        layer: Any = self
        if residual is None:
            x, normed = hidden_states, layer.input_layernorm(hidden_states)
        else:
            normed, x = layer.input_layernorm(hidden_states, residual)
        text = split.text.shape[0]
        if is_flat:
            update = layer.linear_attn(hidden_states=normed[split.places])[split.rows]
        elif operators.keys == "text":
            update = layer.self_attn(positions=positions[..., :text], hidden_states=normed[:text]) if text else x[:0]
            if layer.lookless_attention is not None:
                update = torch.cat((update, layer.lookless_attention(normed[text:])))
        elif operators.attention == "all":
            update = layer.self_attn(positions=positions, hidden_states=normed)
        else:
            update = _attend(layer.self_attn, _count(split, operators.attention), positions, normed)
            if layer.lookless_attention is not None:
                update = torch.cat((update, layer.lookless_attention(normed[text:])))
        if operators.ffn == "all":
            normed, x = layer.post_attention_layernorm(_padded(update, len(x)), x)
            return layer.mlp(normed), x
        x = _added(x, update)
        count = _count(split, operators.ffn)
        update = layer.mlp(layer.post_attention_layernorm(x[:count])) if count else x[:0]
        if layer.lookless_ffn is not None:
            update = torch.cat((update, layer.lookless_ffn(x[text:], layer.post_attention_layernorm)))
        return _padded(update, len(x)), x


def _count(split: Split, rows: str) -> int:
    return (split.text if rows == "text" else split.read).shape[0]


def _padded(update: Tensor, rows: int) -> Tensor:
    """``update`` of the first rows, with zeros for the others."""
    return F.pad(update, (0, 0, 0, rows - update.shape[0]))


def _added(x: Tensor, update: Tensor) -> Tensor:
    """``x [rows, hidden]`` with ``update`` of its first rows added."""
    count = update.shape[0]
    return torch.cat((x[:count] + update, x[count:]))


def _attend(attention: Any, count: int, positions: Tensor, normed: Tensor) -> Tensor:
    """The attention output of the first ``count`` rows, ``[count, hidden]``; caches keys and values of all rows."""
    key, value = attention.qkv_proj.keys_and_values(normed)
    key = _rotated(attention, "k_norm", positions, key).view(-1, attention.num_kv_heads, attention.head_dim)
    value = value.reshape(key.shape)
    inner = attention.attn
    name = _encode_layer_name(inner.layer_name)
    cached = torch.ops.vllm.unified_kv_cache_update(key, value, name)
    if not count:  # a chunk that is all image
        return normed[:0]
    query, gate = attention.qkv_proj.queries(normed[:count]), None
    if getattr(attention, "attn_output_gate", False):
        query, gate = query.view(count, -1, 2 * attention.head_dim).chunk(2, dim=-1)
        query, gate = query.reshape(count, -1), gate.reshape(count, -1)
    query = _rotated(attention, "q_norm", positions[..., :count], query).view(
        -1, attention.num_heads, attention.head_dim
    )
    out = torch.empty_like(query)
    torch.ops.vllm.unified_attention_with_output(query, key, value, out, name, kv_cache_dummy_dep=cached)
    out = out.view(count, -1)
    output, *_ = attention.o_proj(out if gate is None else out * gate.sigmoid())
    return output


def _rotated(attention: Any, norm: str, positions: Tensor, x: Tensor) -> Tensor:
    """``x [rows, heads * head_dim]``, normed if the model norms it, with rotary embedding at ``positions``."""
    x = x.contiguous()
    module = getattr(attention, norm, None)
    if module is not None:
        x = module(x.view(-1, attention.head_dim)).view(x.shape)
    unused = x.new_zeros(x.shape[0], attention.head_dim)  # vLLM rotates queries and keys of the same rows together
    rotated, _ = attention.rotary_emb(positions, x, unused)
    return rotated.view(x.shape)


def check_layer(layer: Any, index: int, operators: Operators) -> None:
    """Raises: ServingError: a layer lacks a part or has one that is not known here, or its backend is not known, or
    cannot do what is planned."""
    is_flat = hasattr(layer, "linear_attn")
    parts = PARTS if is_flat else (*PARTS, *(f"self_attn.{part}" for part in ATTENTION_PARTS))
    for part in parts:
        try:
            layer.get_submodule(part)
        except AttributeError as problem:
            raise ServingError(
                f"layer {index} is a {type(layer).__name__} without {part}: a lookless plan does not know it."
            ) from problem
    if getattr(layer, "layer_scale", False):
        raise ServingError(f"layer {index} scales its branches, which a lookless plan does not know.")
    if is_flat:
        return
    backend = layer.self_attn.attn.attn_backend.get_name()
    if backend not in BACKENDS:
        raise ServingError(
            f"a lookless plan does not know the attention backend {backend}: set --attention-backend to one of "
            f"{', '.join(BACKENDS)}."
        )
    window = layer.self_attn.attn.sliding_window
    if operators.keys == "text" and window is not None:
        raise ServingError(
            f"layer {index} attends through a window of {window} tokens, which a plan that leaves its visual keys out "
            f"would widen: leave keep and visible Full there."
        )


def split_projection(layer: Any) -> None:
    """Load the layer's queries apart from its keys and values: not every row that makes keys queries."""
    layer.self_attn.qkv_proj = SplitProjection(layer.self_attn.qkv_proj)
