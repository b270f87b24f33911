"""``apply(model, plan)``: make a loaded model do the plan's work and no more; ``remove()`` gives it back.

Layers whose row of the plan is full are never touched, so a full plan leaves the model as it is, to the bit. In the
others ``forward`` is replaced on the instance. Prompts without an image, and decode steps, which hold no visual token,
run the stock forward; keys and values of visual tokens are cached in every layer, so generation is the model's own.
"""

from __future__ import annotations

import inspect
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from .errors import ModelError
from .models import Located, locate
from .operators import run_layer
from .plan import LayerPlan, Plan
from .rows import RowSet, text_rows


class _PlannedForward:
    """Stands in for one layer's ``forward``."""

    def __init__(self, layer: nn.Module, cells: LayerPlan, handle: Applied) -> None:
        self.layer, self.cells, self.handle = layer, cells, handle
        self.stock = layer.forward

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = self.handle.rows
        if rows is None:
            return self.stock(hidden_states, *args, **kwargs)
        return run_layer(self.layer, self.cells, rows, hidden_states, *args, **kwargs)


class Applied:
    """A plan in force on a model; a context manager. :meth:`remove` ends it, and may be called twice."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.plan = plan
        self.rows: RowSet | None = None
        self._located = locate(model)
        plan.check(self._located.geometry)
        self._planned: list[_PlannedForward] = []
        self._hooks: list[Any] = []
        if plan.is_full:
            return
        for layer in self._located.layers:
            if isinstance(layer.__dict__.get("forward"), _PlannedForward):
                raise ModelError("a plan is already applied to this model: call remove() on it, or join both with `|`.")
        inner = self._located.inner
        self._signature = inspect.signature(inner.forward)  # once, and not at every decode step
        self._hooks = [
            inner.register_forward_pre_hook(self._enter, with_kwargs=True),
            inner.register_forward_hook(self._leave, always_call=True),
        ]
        for layer, cells in zip(self._located.layers, plan.layers, strict=True):
            if not cells.is_full:
                planned = _PlannedForward(layer, cells, self)
                layer.forward = planned
                self._planned.append(planned)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        self.rows = rows_of(self._located, given)

    def _leave(self, *_: Any) -> None:
        self.rows = None

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
        self._hooks, self._planned, self.rows = [], [], None

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def apply(model: nn.Module, plan: Plan) -> Applied:
    """Put ``plan`` in force on ``model``::

        with lookless.apply(model, plan):
            model.generate(**inputs)

    or ``handle = lookless.apply(model, plan)`` and later ``handle.remove()``.

    Raises:
        ModelError: the model's family is not supported, or a plan is already applied.
        PlanMismatchError: the plan is for another architecture.
    """
    return Applied(model, plan)


def rows_of(located: Located, given: dict[str, Any]) -> RowSet | None:
    """The text rows of one call of the model, from its own arguments; None if nothing in it is visual.

    Raises:
        ModelError: the call gives embeddings in place of ids, in which visual tokens cannot be told.
    """
    ids = given.get("input_ids")
    if ids is None:
        if given.get("inputs_embeds") is not None and given["inputs_embeds"].shape[1] == 1:
            return None  # a decode step
        raise ModelError(
            "a plan needs input_ids to know which tokens are visual, and this call has inputs_embeds only: "
            "pass input_ids with pixel_values."
        )
    if ids.shape[1] == 1:
        return None
    mask = given.get("attention_mask")
    real = mask[:, -ids.shape[1] :].bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    return text_rows(located.visual(ids), real)
