"""A model of vLLM's under a plan: the decoder's steps with visual tokens, in an order in which text comes first.

Only these steps take another path. All others, decode steps above all, run vLLM's own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import ForwardContext, get_forward_context, override_forward_context

from ..errors import ModelError, ServingError
from .affine import AffineMap
from .compiled import CompiledSteps, reordered
from .counters import OPERATORS, Counter, ensure_folder
from .layers import WITHDRAWN, Operators, PlannedLayer, Running, check_layer, split_projection
from .metadata import ReorderedStep
from .settings import Settings, keeps_text_apart, live_rows, withdrawn_from
from .steps import Order, VisualPast, check_ran


def install_plan(model: nn.Module, settings: Settings, vllm_config: Any) -> None:
    """Make ``model`` run the plan; vLLM has built it and not yet loaded its weights.

    Raises:
        ModelError: the decoder layers are not where vLLM's supported models have them.
        PlanError: the numbers of its fitted cells are not those that were saved.
        ServingError: their number is not the plan's, or a layer is of another kind than those that are known here.
    """
    decoder, whole = _decoder(model), settings.bound_plan()
    layers: list[Any] = list(decoder.layers)
    if len(layers) != len(whole.layers):
        raise ServingError(f"the plan has {len(whole.layers)} layers and vLLM built {len(layers)}.")
    running, operators = Running(), []
    for index, (layer, planned, live) in enumerate(
        zip(layers, whole.layers, live_rows(whole, vllm_config), strict=True)
    ):
        alive = index < withdrawn_from(whole)
        own = Operators.of(planned, live, is_flat=hasattr(layer, "linear_attn")) if alive else WITHDRAWN
        operators.append(own)
        check_layer(layer, index, own)
        if own.attention != "all" and own.keys == "all":
            split_projection(layer)
        _mix_in(layer, PlannedLayer)
        layer.lookless_operators = own
        object.__setattr__(layer, "lookless_running", running)
        for operator in OPERATORS:
            cell = getattr(planned, operator).affine if alive else None
            made = None if cell is None else AffineMap(cell, vllm_config.model_config.dtype)
            layer.add_module(f"lookless_{operator}", made)
    is_first = vllm_config.parallel_config.rank % vllm_config.parallel_config.tensor_parallel_size == 0
    counter = Counter(ensure_folder()) if is_first else None
    past = VisualPast() if keeps_text_apart(whole) else None
    state = _State(layers, operators, running, counter, CompiledSteps(decoder, running, vllm_config), past)
    for module, part in ((model, PlannedModel), (decoder, PlannedDecoder)):
        _mix_in(module, part)
        object.__setattr__(module, "lookless", state)


def _decoder(model: Any) -> Any:
    try:
        decoder = model.get_language_model().model
        list(decoder.layers)
    except AttributeError as problem:
        raise ModelError(
            f"vLLM's {type(model).__name__} keeps its decoder layers where a plan does not find them."
        ) from problem
    return decoder


def _mix_in(module: nn.Module, part: type) -> None:
    """Give ``module`` a class of its own, which inherits from ``part`` and then from its stock class."""
    stock = type(module)
    module.__class__ = type(f"Lookless{stock.__name__}", (part, stock), {"__module__": stock.__module__})


class _State:
    """What a planned model keeps between the embedding of a step's tokens and its decoder.

    Attributes:
        attention: the attention of each layer that has keys, and which rows run in it.
        operators: which rows run the operators of each layer.
        running: what the layers look at.
        counter: where rows are counted; None in all but one worker of a tensor-parallel group.
        compiled: runs steps that a graph can run.
        past: visual tokens of requests, where the cache of some layer holds text alone; None elsewhere.
        visual: which tokens of the coming step are visual, ``[tokens]``; None if none is.
    """

    def __init__(
        self,
        layers: list[Any],
        operators: list[Operators],
        running: Running,
        counter: Counter | None,
        compiled: CompiledSteps,
        past: VisualPast | None,
    ) -> None:
        pairs = zip(layers, operators, strict=True)
        self.attention = [(each.self_attn.attn, o) for each, o in pairs if hasattr(each, "self_attn")]
        self.operators, self.running, self.counter, self.compiled = operators, running, counter, compiled
        self.past = past
        self.visual: Tensor | None = None

    def run(self, visual: Tensor, context: ForwardContext, inputs: dict[str, Any]) -> Tensor:
        """The decoder's output ``[tokens, hidden]`` for ``inputs``, computed in another order."""
        step = self._step(visual, inputs, context)
        with override_forward_context(step.context(self.attention)):
            out, how = self.compiled.run(step.split, reordered(inputs, step.split.rows))
        check_ran(self.running.ran, len(self.operators))
        self._count(step.order, how)
        return out[step.split.places]

    def text_context(self, context: ForwardContext, inputs: dict[str, Any]) -> ForwardContext:
        """The context of a step without visual tokens, which runs vLLM's own forward."""
        nothing = torch.zeros(inputs["positions"].shape[-1], dtype=torch.bool)
        return self._step(nothing, inputs, context).text_context(self.attention) or context

    def _step(self, visual: Tensor, inputs: dict[str, Any], context: ForwardContext) -> ReorderedStep:
        rows = inputs["positions"].shape[-1]
        return ReorderedStep.of(visual, rows, context, self.attention[0][0].layer_name, self.past)

    def _count(self, order: Order, how: str) -> None:
        """Count a step, and its visual rows by operator and by what became of them."""
        if self.counter is None:
            return
        visual = order.tokens - order.text
        computed = {"all": visual, "read": order.read - order.text, "text": 0}
        ran = {name: sum(computed[getattr(each, name)] for each in self.operators) for name in OPERATORS}
        every = visual * len(self.operators)
        self.counter.add({name: {"skipped": every - rows, "computed": rows} for name, rows in ran.items()}, how)


class PlannedModel:
    """Mixed into a multimodal model's class."""

    lookless: _State

    def embed_input_ids(
        self, input_ids: Tensor, *args: Any, is_multimodal: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Remember the mask of visual tokens; the runner calls this just before each forward."""
        self.lookless.visual = is_multimodal if is_multimodal is not None and bool(is_multimodal.any()) else None
        return super().embed_input_ids(input_ids, *args, is_multimodal=is_multimodal, **kwargs)  # type: ignore[misc]


class PlannedDecoder:
    """Mixed into the class of the model's decoder."""

    lookless: _State

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state, context = self.lookless, get_forward_context()
        visual, state.visual = state.visual, None
        if not context.attn_metadata:
            state.compiled.warm_up(*args, **kwargs)
        if not context.attn_metadata or (visual is None and state.past is None):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        inputs = state.compiled.named(*args, **kwargs)
        if visual is not None:
            return state.run(visual, context, inputs)
        with override_forward_context(state.text_context(context, inputs)):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
