"""A model of vLLM's under a plan: its own classes, without the work that the plan skips.

Only steps with visual tokens take another path, eagerly. All other steps, decode steps above all, run vLLM's own
forward, compiled where vLLM compiles it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.attention.attention import unified_kv_cache_update
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear

from ..errors import ModelError, ServingError
from ..layer_plan import LayerPlan
from .affine import AffineMap
from .counters import KINDS, OPERATORS, Counter, ensure_folder
from .metadata import text_metadata
from .settings import BACKENDS, KEY, Settings, live_rows
from .steps import TextRuns, check_ran, ends_in_text, text_runs


@dataclass(eq=False)
class Step:
    """One step in which some tokens are visual: what its layers share.

    Attributes:
        cells: the plan's row of each layer.
        runs: the runs of text in the flat batch.
        text, visual: indices of the text rows and of the visual rows in the flat batch, on the device, ``[rows]``.
        metadata: the backend's metadata for text rows alone, by the ``id`` of the object it was made from.
        ran: the layers that have run under the plan so far.
    """

    cells: tuple[LayerPlan, ...]
    runs: TextRuns
    text: Tensor
    visual: Tensor
    metadata: dict[int, Any]
    ran: list[int] = field(default_factory=list)

    def attention_metadata(self, attention: Any) -> Any:
        """The backend's metadata in which only text rows query."""
        whole = get_forward_context().attn_metadata[attention.layer_name]  # type: ignore[call-overload]
        if id(whole) not in self.metadata:
            self.metadata[id(whole)] = text_metadata(whole, self.runs, attention)
        return self.metadata[id(whole)]


def current_step() -> Step | None:
    """The step that runs now, if some of its tokens are visual; None otherwise, and while torch compiles."""
    if torch.compiler.is_compiling() or not is_forward_context_available():
        return None
    return get_forward_context().additional_kwargs.get(KEY)


def install_plan(model: nn.Module, settings: Settings, vllm_config: Any) -> None:
    """Make ``model`` run the plan; vLLM has built it and not yet loaded its weights.

    Raises:
        ModelError: the decoder layers are not where vLLM's supported models have them.
        PlanError: the numbers of its fitted cells are not those that were saved.
        ServingError: their number is not the plan's, a layer lacks a part, or its attention backend is not known here.
    """
    layers, whole = _layers(model), settings.bound_plan()
    if len(layers) != len(whole.layers):
        raise ServingError(f"the plan has {len(whole.layers)} layers and vLLM built {len(layers)}.")
    plan, live = whole.layers, live_rows(whole, vllm_config)
    for index, (layer, row) in enumerate(zip(layers, live, strict=True)):
        _check_layer(layer, index)
        # By the plan itself, or because nothing reads the attention output of visual rows.
        if row.attention.visual == "none":
            attention = layer.self_attn
            attention.qkv_proj = SplitProjection(attention.qkv_proj)
        _mix_in(layer, PlannedLayer)
        layer.lookless_index = index
        for operator in OPERATORS:
            cell = getattr(plan[index], operator).affine
            made = None if cell is None else AffineMap(cell, vllm_config.model_config.dtype)
            layer.add_module(f"lookless_{operator}", made)
    _mix_in(model, PlannedModel)
    is_first = vllm_config.parallel_config.rank % vllm_config.parallel_config.tensor_parallel_size == 0
    object.__setattr__(model, "lookless", _State(plan, live, Counter(ensure_folder()) if is_first else None))


def _layers(model: Any) -> list[Any]:
    try:
        return list(model.get_language_model().model.layers)
    except AttributeError as problem:
        raise ModelError(
            f"vLLM's {type(model).__name__} keeps its decoder layers where a plan does not find them."
        ) from problem


def _check_layer(layer: Any, index: int) -> None:
    parts = ("self_attn.qkv_proj", "self_attn.o_proj", "self_attn.rotary_emb", "self_attn.attn", "mlp")
    for part in (*parts, "input_layernorm", "post_attention_layernorm"):
        try:
            layer.get_submodule(part)
        except AttributeError as problem:
            raise ServingError(
                f"layer {index} is a {type(layer).__name__} without {part}: a lookless plan does not know it."
            ) from problem
    backend = layer.self_attn.attn.attn_backend.get_name()
    if backend not in BACKENDS:
        raise ServingError(
            f"a lookless plan does not know the attention backend {backend}: set --attention-backend to one of "
            f"{', '.join(BACKENDS)}."
        )


def _mix_in(module: nn.Module, part: type) -> None:
    """Give ``module`` a class of its own, which inherits from ``part`` and then from its stock class."""
    stock = type(module)
    module.__class__ = type(f"Lookless{stock.__name__}", (part, stock), {"__module__": stock.__module__})


class _State:
    """What a planned model keeps between the embedding of a step's tokens and its forward.

    Attributes:
        plan, live: the plan's row of each layer, as given and without dead work.
        counter: where rows are counted; None in all but one worker of a tensor-parallel group.
        visual: which tokens of the coming step are visual, ``[tokens]``; None if none is.
    """

    def __init__(self, plan: tuple[LayerPlan, ...], live: tuple[LayerPlan, ...], counter: Counter | None) -> None:
        self.plan, self.live, self.counter = plan, live, counter
        self.visual: Tensor | None = None

    def step(self) -> Step | None:
        """The coming step; None if no token is visual, and in warm-up runs, which have no metadata."""
        visual, self.visual = self.visual, None
        context = get_forward_context()
        if visual is None or not context.attn_metadata:
            return None
        metadata = next(iter(context.attn_metadata.values()))  # type: ignore[union-attr]
        starts, lengths = (
            getattr(metadata, name).cpu().numpy().astype(np.int64) for name in ("query_start_loc", "seq_lens")
        )
        starts = starts[: len(lengths) + 1]
        mask = visual.cpu().numpy()
        runs = text_runs(mask, starts, lengths)
        cells = self.live if ends_in_text(mask, starts) else self.plan
        self._count(cells, int(mask.sum()))
        text, visual_rows = (
            torch.from_numpy(rows).to(metadata.query_start_loc.device)
            for rows in (runs.rows, mask[: starts[-1]].nonzero()[0])
        )
        return Step(cells, runs, text, visual_rows, {})

    def _count(self, cells: tuple[LayerPlan, ...], visual: int) -> None:
        if self.counter is None:
            return
        layers = {o: sum(getattr(row, o).visual == "none" for row in cells) for o in OPERATORS}
        each = {o: (visual * layers[o], visual * (len(cells) - layers[o])) for o in OPERATORS}
        self.counter.add({o: dict(zip(KINDS, rows, strict=True)) for o, rows in each.items()})


class PlannedModel:
    """Mixed into a multimodal model's class."""

    lookless: _State

    def embed_input_ids(
        self, input_ids: Tensor, *args: Any, is_multimodal: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Remember the mask of visual tokens; the runner calls this just before each forward."""
        self.lookless.visual = is_multimodal if is_multimodal is not None and bool(is_multimodal.any()) else None
        return super().embed_input_ids(input_ids, *args, is_multimodal=is_multimodal, **kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        step = self.lookless.step()
        if step is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        context = get_forward_context()
        context.additional_kwargs[KEY], context.skip_compiled = step, True
        made = super().forward(*args, **kwargs)  # type: ignore[misc]
        check_ran(step.ran, len(step.cells))
        return made


class PlannedLayer:
    """Mixed into a decoder layer's class (``x = x + attention(norm(x)); x = x + ffn(norm(x))``).

    The residual protocol is vLLM's: a layer takes and returns ``hidden_states`` and ``residual``, ``[tokens, hidden]``
    each, which the next layer adds.

    Visual rows run an operator all or not at all. Where they do not, its map, if it has one, takes its place.
    """

    lookless_index: int
    lookless_attention: AffineMap | None
    lookless_ffn: AffineMap | None

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        step = current_step()
        cells = None if step is None else step.cells[self.lookless_index]
        if step is not None:
            step.ran.append(self.lookless_index)
        if step is None or cells is None or cells.attention.visual == cells.ffn.visual == "all":
            return super().forward(positions, hidden_states, residual, *args, **kwargs)  # type: ignore[misc]
        layer: Any = self
        x = hidden_states if residual is None else hidden_states + residual
        normed = layer.input_layernorm(x)
        if cells.attention.visual == "all":
            x = x + layer.self_attn(positions=positions, hidden_states=normed)
        else:
            x = _attend_from_text(layer.self_attn, step, positions, normed, x)
            if cells.attention.affine is not None:
                x = x.index_add(0, step.visual, layer.lookless_attention(normed, step.visual))
        if cells.ffn.visual == "all":
            return layer.mlp(layer.post_attention_layernorm(x)), x
        update = torch.zeros_like(x)
        if len(step.text):
            update[step.text] = layer.mlp(layer.post_attention_layernorm(x[step.text]))
        if cells.ffn.affine is not None:
            update[step.visual] = layer.lookless_ffn(x, step.visual, layer.post_attention_layernorm)
        return update, x


def _attend_from_text(attention: Any, step: Step, positions: Tensor, normed: Tensor, x: Tensor) -> Tensor:
    """Add the attention output of text rows to ``x [tokens, hidden]``; cache the keys and values of all rows."""
    key, value = attention.qkv_proj.keys_and_values(normed)
    key = _rotated(attention, "k_norm", positions, key)
    unified_kv_cache_update(
        key.view(-1, attention.num_kv_heads, attention.head_dim),
        value.view(-1, attention.num_kv_heads, attention.head_dim),
        attention.attn.layer_name,
    )
    if not len(step.text):  # a chunk that is all image
        return x
    query = attention.qkv_proj.queries(normed[step.text])
    query = _rotated(attention, "q_norm", positions[..., step.text], query)
    query = query.view(-1, attention.num_heads, attention.head_dim)
    out = torch.empty_like(query)
    inner = attention.attn
    inner.impl.forward(inner, query, None, None, inner.kv_cache, step.attention_metadata(inner), output=out)
    update, *_ = attention.o_proj(out.flatten(1))
    return x.index_add(0, step.text, update)


def _rotated(attention: Any, norm: str, positions: Tensor, x: Tensor) -> Tensor:
    """``x [rows, heads * head_dim]``, normed if the model norms it, with rotary embedding at ``positions``."""
    x = x.contiguous()
    module = getattr(attention, norm, None)
    if module is not None:
        x = module(x.view(-1, attention.head_dim)).view(x.shape)
    unused = x.new_zeros(len(x), attention.head_dim)  # vLLM rotates queries and keys of the same rows together
    rotated, _ = attention.rotary_emb(positions, x, unused)
    return rotated.view(x.shape)


class SplitProjection(nn.Module):
    """vLLM's fused projection of queries, keys and values, in two: not every key row is a query row."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        options = {
            "bias": fused.bias is not None,
            "quant_config": fused.quant_config,
            "params_dtype": fused.params_dtype,
        }
        size, prefix = fused.head_size, fused.prefix
        self.query = ColumnParallelLinear(
            fused.hidden_size, fused.total_num_heads * size, prefix=f"{prefix}.query", **options
        )
        self.key_value = QKVParallelLinear(
            fused.hidden_size, size, 0, fused.total_num_kv_heads, prefix=f"{prefix}.key_value", **options
        )

    def queries(self, x: Tensor) -> Tensor:
        """``[rows, hidden]`` to ``[rows, heads * head_dim]``."""
        query, _ = self.query(x)
        return query

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[rows, hidden]`` to twice ``[rows, kv_heads * head_dim]``."""
        both, _ = self.key_value(x)
        key, value = both.chunk(2, dim=-1)
        return key, value

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """As the fused one: ``[rows, hidden]`` to ``[rows, (heads + 2 * kv_heads) * head_dim]``."""
        both, _ = self.key_value(x)
        return torch.cat((self.queries(x), both), dim=-1), None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Iterable[str]:
        """Load what the checkpoint has of the fused projection; vLLM's loader sets ``shard_id``: q, k or v."""
        for name, weight in weights:
            shard = weight.shard_id  # type: ignore[attr-defined]
            part = "query" if shard == "q" else "key_value"
            parameter = getattr(self.get_submodule(part), name)
            if shard == "q":
                parameter.weight_loader(parameter, weight)
            else:
                parameter.weight_loader(parameter, weight, shard)
            yield f"{part}.{name}"
