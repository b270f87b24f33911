"""``apply(model, plan)``: make a loaded model do the plan's work and no more; ``remove()`` gives it back.

A full plan touches nothing, so it leaves the model as it is, to the bit. Under any other, every layer's ``forward`` is
replaced on the instance: a layer in which nothing is planned still spares padding, and is stock where there is none. A
plan that is not full runs without work whose result nobody reads
(:meth:`lookless.Plan.live`): text comes out the same, and visual rows of the last hidden state are not the model's.
Where a prompt ends in an image, its last visual row is what the answer is read from, and the plan runs as it stands.
Prompts without an image or under the break-even point, and decode steps, run the stock forward; a layer whose cache
holds fewer keys than there are tokens gives it a mask of that length.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .cells import RANKS, Neurons
from .errors import ModelError
from .models import Located, locate
from .operators import stock_mask
from .passes import Pass
from .plan import Plan
from .prompts import Prompts


class _PlannedForward:
    """Stands in for one layer's ``forward``."""

    def __init__(self, layer: nn.Module, index: int, handle: Applied) -> None:
        self.layer, self.index, self.handle = layer, index, handle
        self.stock = layer.forward

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        running = self.handle.running
        if running is not None:
            return self._run(running, hidden_states, *args, **kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and "attention_mask" in kwargs:
            mask = stock_mask(kwargs["attention_mask"], cache, self.index, hidden_states.shape[1])
            kwargs = {**kwargs, "attention_mask": mask}
        return self.stock(hidden_states, *args, **kwargs)

    def _run(self, running: Pass, *args: Any, **kwargs: Any) -> Any:
        """The pass's step; under a device map inside accelerate's hook, which the stock forward has in itself."""
        hook = getattr(self.layer, "_hf_hook", None)
        if hook is None:
            return running.run(self.layer, self.index, *args, **kwargs)
        args, kwargs = hook.pre_forward(self.layer, *args, **kwargs)
        return hook.post_forward(self.layer, running.run(self.layer, self.index, *args, **kwargs))


class Applied:
    """A plan in force on a model; a context manager. :meth:`remove` ends it, and may be called twice."""

    def __init__(self, model: nn.Module, plan: Plan, *, break_even: int = 0) -> None:
        self.plan, self.break_even = plan, break_even
        self.running: Pass | None = None
        self._located = locate(model)
        plan.check(self._located.geometry)
        self._planned: list[_PlannedForward] = []
        self._hooks: list[Any] = []
        self._tower: list[Tensor] = []
        if plan.is_full:
            return
        for layer in self._located.layers:
            if isinstance(layer.__dict__.get("forward"), _PlannedForward):
                raise ModelError("a plan is already applied to this model: call remove() on it, or join both with `|`.")
        inner = self._located.inner
        if (getattr(inner, "_tp_size", None) or getattr(model, "_tp_size", None) or 1) > 1:
            _check_sharded(plan)
        self._live = plan.live()
        self._signature = inspect.signature(inner.forward)  # once, and not at every decode step
        self._hooks = [
            *self._watch_tower(),
            inner.register_forward_pre_hook(self._enter, with_kwargs=True),
            inner.register_forward_hook(self._leave, always_call=True),
        ]
        for index, layer in enumerate(self._located.layers):
            planned = _PlannedForward(layer, index, self)
            layer.forward = planned
            self._planned.append(planned)

    def _watch_tower(self) -> list[Any]:
        ranks = [rank for row in self.plan.layers for rank in row.ranks if RANKS[rank].reads == "tower"]
        if not ranks:
            return []
        watch = self._located.family.watch
        if watch is None:
            raise ModelError(
                f"ranking by {ranks[0]} needs one score of the vision tower for each visual token, and in "
                f"{self._located.geometry.model_type} tiles, windows or pixel shuffling stand between them: rank by "
                f"diversity, or inside the decoder."
            )
        return [watch(self._located.inner, self._tower.append)]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs
        if args:
            given = self._signature.bind_partial(*args, **kwargs).arguments
            given = {**given, **given.get("kwargs", {})}
        self.running = None
        prompts = prompts_of(self._located, given)
        if prompts is not None and max(prompts.counts) >= self.break_even:
            # generate() runs the tower before it calls the model, so its scores may have come by now, or not yet.
            self.running = Pass(self._live if prompts.end_in_text else self.plan, prompts, self._tower)

    def _leave(self, *_: Any) -> None:
        self.running = None
        self._tower.clear()

    def remove(self) -> None:
        """Give every layer its own ``forward`` back."""
        for hook in self._hooks:
            hook.remove()
        for planned in self._planned:
            # What was there before was the class's method, or another library's attribute on this instance.
            if getattr(planned.stock, "__func__", None) is type(planned.layer).forward:
                del planned.layer.forward
            else:
                planned.layer.forward = planned.stock
        self._hooks, self._planned, self.running = [], [], None

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _check_sharded(plan: Plan) -> None:
    """Raises: ModelError: under tensor parallelism each process would choose tokens or neurons by its own share."""
    for index, row in enumerate(plan.layers):
        ranks = [rank for rank in row.ranks if RANKS[rank].heads]
        if ranks or isinstance(row.ffn, Neurons):
            what = f"ranks by {ranks[0]}" if ranks else "picks neurons"
            raise ModelError(
                f"layer {index} of the plan {what}, and under tensor parallelism each process would choose by its own "
                f"heads or neurons, and differently: load the model without tp_plan, or rank by diversity or random."
            )


def apply(model: nn.Module, plan: Plan, *, break_even: int = 0) -> Applied:
    """Put ``plan`` in force on ``model``::

        with lookless.apply(model, plan):
            model.generate(**inputs)

    or ``handle = lookless.apply(model, plan)`` and later ``handle.remove()``.

    Args:
        model: loaded by transformers, of a supported family.
        plan: for its architecture.
        break_even: calls in which no prompt has as many visual tokens run the stock model. ``lookless bench`` finds
            from how many on a plan pays on a machine; by default the plan always runs.

    Raises:
        ModelError: the model's family is not supported, or a plan is already applied.
        PlanMismatchError: the plan is for another architecture.
    """
    return Applied(model, plan, break_even=break_even)


def applied(model: nn.Module, plan: Plan | None) -> AbstractContextManager[Any]:
    """``apply``, or where there is no plan nothing: the stock model.

    Raises:
        ModelError: as :func:`apply`; and without a plan, if one is already applied.
    """
    if plan is None:
        check_stock(model)
        return nullcontext()
    return apply(model, plan)


def check_stock(model: nn.Module) -> None:
    """Raises: ModelError: a plan is already applied to ``model``, so what it computes is not the stock model's."""
    if any(isinstance(layer.__dict__.get("forward"), _PlannedForward) for layer in locate(model).layers):
        raise ModelError(
            "a plan is already applied to this model, and this measures the stock model: call remove() on the plan "
            "first, or leave its `with` block."
        )


def prompts_of(located: Located, given: Mapping[str, Any]) -> Prompts | None:
    """The prompts of one call of the model, from its own arguments; None if nothing in it is visual.

    Raises:
        ModelError: the call gives embeddings in place of ids, in which visual tokens cannot be told.
    """
    ids, cache = given.get("input_ids"), given.get("past_key_values")
    if ids is None:
        if given.get("inputs_embeds") is not None and given["inputs_embeds"].shape[1] == 1:
            return None  # a decode step
        raise ModelError(
            "a plan needs input_ids to know which tokens are visual, and this call has inputs_embeds only: "
            "pass input_ids with pixel_values."
        )
    if ids.shape[1] == 1:
        return None
    visual = located.visual(ids)
    past = 0 if cache is None else int(cache.get_seq_length())
    past_visual = _remember_visual(cache, past, visual)
    if not visual.any():
        return None
    mask = given.get("attention_mask")
    is_plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
    real = mask[:, -ids.shape[1] :].bool() if isinstance(mask, Tensor) and is_plain else None
    return Prompts(
        visual, real, past=past, is_cold=is_plain and past == 0, past_visual=past_visual, device=visual.device
    )


def _remember_visual(cache: Any, past: int, visual: Tensor) -> Tensor | None:
    """Which tokens of earlier turns are visual, bool ``[batch, past]``; kept on the cache itself, which is what lives
    as long as the conversation. None where it is not known: the cache was filled without a plan, or decoded since."""
    if cache is None:
        return None
    before: Tensor | None = getattr(cache, "_lookless_visual", None)
    mine = visual.cpu()
    if past == 0:
        before = mine[:, :0]
    if before is not None and before.shape[0] == mine.shape[0] and before.shape[1] <= past:
        before = torch.nn.functional.pad(before, (0, past - before.shape[1]))  # decoded tokens are text
        cache._lookless_visual = torch.cat((before, mine), dim=1)
        return before
    return None
