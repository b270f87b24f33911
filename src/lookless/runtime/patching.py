"""``apply(model, plan)``: make a loaded model do the plan's work and no more; ``remove()`` restores it.

A full plan touches nothing, so it leaves the model as it is, to the bit. Under any other, every layer's ``forward`` is
replaced on the instance: a layer in which nothing is planned still skips padding, and is stock where there is none.

The model returns what the plan says. Dead work (:meth:`lookless.Plan.live`) is skipped where the call itself says that
no visual row is needed: with ``logits_to_keep``, as ``generate`` passes it, and prompts that end in text. Then the last
layer computes no text row either but those whose logits are kept; in training mode and under hooks that may read its
states (:mod:`lookless.runtime.readers`) it computes all text. All logits (``labels`` too, as the first word after an
image is predicted from the last visual row), all hidden states, or a prompt that ends in an image: the plan as it is
written. :attr:`Applied.read` says which it was. Rows of padding mean nothing, and a row keeps the state in which it was
dropped, or read last.

Prompts without an image or under the break-even point, and decode steps, run the stock forward; a layer whose cache
holds fewer keys than there are tokens gives it a mask of that length. The state of a pass belongs to its call, so
threads may share a model; call :meth:`Applied.remove` when none of them is in a call.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..errors import ModelError
from ..plan import Plan
from .affine import check_weights
from .break_even import break_even_of
from .cache import TEXT, UNKNOWN, cut, layer_of, stock_mask
from .engagement import check_layers, checked_rows, is_countable
from .families import locate
from .forward import ForwardPass, Step, steps_of
from .internals import check_internals
from .mixers import argument_names
from .prompts import FEATURES, Prompts, prompts_of
from .readers import reader_of
from .refusals import EARLY_EXIT, check_call, check_chunks, check_sharded, checked_break_even, hands_out
from .replaced import Replaced

#: The keyword by which the model passes on to the one inside it which rows' logits are kept.
KEPT = "lookless_logits_to_keep"


_APPLYING = threading.Lock()  #: held from finding no plan on a model to putting one there


class _Running(threading.local):
    """What a thread is in the middle of.

    Attributes:
        now: the pass of its call of the model, or none.
        scores: what the vision tower, which is running, attends to.
        read: see :attr:`Applied.read`.
    """

    now: ForwardPass | None = None
    scores: Tensor | None = None
    read: str = "nothing yet"

    def __reduce__(self) -> tuple[type[_Running], tuple[()]]:
        return _Running, ()  # a copy of the model is in the middle of nothing


class _PlannedCall(Replaced):
    """A call of the model: a pass begins with it and ends with it, also by an exception."""

    def planned(self, *args: Any, **kwargs: Any) -> Any:
        kept = kwargs.pop(KEPT, kwargs.get("logits_to_keep", 0))
        given = kwargs
        if args:
            given = self.handle.signature.bind_partial(*args, **kwargs).arguments
            given = {**given, **given.get("kwargs", {})}
        running = self.handle.running
        began = self.handle.begin(given, kept)
        before = running.now
        if began is None and before is None:
            return self.stock(*args, **kwargs)
        running.now = began
        if began is not None and began.prompts.block.shares_keys and began.prompts.reads_visual(kept):
            kwargs = {**kwargs, "logits_to_keep": 0}  # or the stock model leaves visual rows out that the plan is about
        try:
            if began is None:
                return self.stock(*args, **kwargs)
            with self.handle.counting(began):
                made = self.stock(*args, **kwargs)
                check_layers(began)
            return made
        finally:
            running.now = before


class _PlannedGenerate(Replaced):
    """``generate``, which may cut a prompt into chunks: to the calls that follow they look like turns."""

    def planned(self, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)
        sizes = (kwargs, *(vars(c) for c in (config, self.module.generation_config) if c is not None))
        if any(s.get("assistant_early_exit") for s in sizes):
            raise ModelError(EARLY_EXIT)
        size = next((s["prefill_chunk_size"] for s in sizes if s.get("prefill_chunk_size")), None)
        if size and ids is not None and ids.shape[1] > size:
            check_chunks(self.handle.located, self.handle.plan, ids, size)
        return self.stock(*args, **kwargs)


class _PlannedForward(Replaced):
    """One layer."""

    def __init__(self, layer: nn.Module, index: int, handle: Applied) -> None:
        super().__init__(layer, handle)
        self.index = index
        self.has_window = handle.plan.layers[index].work.window is not None
        self.lender = handle.geometry.shares_keys_of(index)
        self.names = argument_names(layer)

    def planned(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs = {**dict(zip(self.names, args, strict=False)), **kwargs}
        running = self.handle.running.now
        if running is not None:
            return self._run(running, hidden_states, **kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and "attention_mask" in kwargs:
            new = hidden_states.shape[1]
            # Under the break-even point the call may hold an image.
            kind = TEXT if new == 1 or not self.handle.break_even else UNKNOWN
            mask = kwargs["attention_mask"]
            if self.lender is None:
                mask = stock_mask(mask, cache, self.index, new, kind, has_window=self.has_window)
            else:  # which holds the new tokens' keys by now
                mask = cut(mask, layer_of(cache, self.lender), new, 0)
            kwargs = {**kwargs, "attention_mask": mask}
        return self.stock(hidden_states, **kwargs)

    def _run(self, running: ForwardPass, *args: Any, **kwargs: Any) -> Any:
        """The pass's step; under a device map inside accelerate's hook, which the stock forward has in itself."""
        hook = getattr(self.module, "_hf_hook", None)
        if hook is None:
            return running.run(self.module, self.index, *args, stock=self.stock, **kwargs)
        args, kwargs = hook.pre_forward(self.module, *args, **kwargs)
        return hook.post_forward(self.module, running.run(self.module, self.index, *args, **kwargs))


class Applied:
    """A plan in force on a model; a context manager. :meth:`remove` ends it, and may be called twice.

    Attributes:
        plan: the plan.
        break_even: calls in which no prompt has as many visual tokens run the stock model; 0 for none.
        running: what each thread is in the middle of.
        located, geometry: the parts of the model, and of its decoder the sizes.
        signature: of the inner model's ``forward``, to read positional arguments.
    """

    def __init__(self, model: nn.Module, plan: Plan, *, break_even: int | Literal["auto"] = 0) -> None:
        self.plan, self.break_even = plan, 0 if break_even == "auto" else checked_break_even(break_even)
        self.running = _Running()
        self.located = locate(model)
        self.geometry = self.located.geometry
        plan.check(self.geometry)
        check_weights(plan, self.geometry.hidden)
        self._replaced: list[Replaced] = []
        self._hooks: list[Any] = []
        if not plan.is_full:
            self._prepare()
            self._put()
        if break_even == "auto" and not plan.is_full:
            self.break_even = self._measured_break_even()

    def _prepare(self) -> None:
        """What every call needs to know of the plan, which takes longer to find out than a small layer."""
        reads = self.plan.reads()
        rows = tuple(read.row for read in reads)
        self._live_plan, self._is_counted = self.plan.model_copy(update={"layers": rows}), False
        self._steps, self._live = steps_of(self.plan.layers), steps_of(rows)
        self._kept = steps_of(rows, [read.work for read in reads])
        self.signature = inspect.signature(self.located.inner.forward)

    def _put(self) -> None:
        """Put the plan in force."""
        with _APPLYING:
            if any(map(_is_planned, self.located.layers)):
                raise ModelError(
                    "a plan is already applied to this model: call remove() on it, or join both with `|` (a copy of a "
                    "model keeps the plan that it was copied under)."
                )
            inner, head = self.located.inner, self.located.head
            check_internals(inner, self.located.layers, self.located.block)
            if any((getattr(part, "_tp_size", None) or 1) > 1 for part in (inner, head)):
                check_sharded(self.plan)
            self._replace()

    def _replace(self) -> None:
        inner = self.located.inner
        self._hooks = self._capture_tower()
        if self.located.head is not None:
            self._hooks.append(self.located.head.register_forward_pre_hook(_pass_on_kept, with_kwargs=True))
        self._replaced = [_PlannedCall(inner, self)]
        self._replaced += [_PlannedForward(layer, index, self) for index, layer in enumerate(self.located.layers)]
        if hasattr(self.located.head, "generate"):
            self._replaced.append(_PlannedGenerate(self.located.head, self, "generate"))

    def _measured_break_even(self) -> int:
        try:
            return break_even_of(self.located, self.plan, self._run_decoder)
        except BaseException:
            self.remove()
            raise

    def _run_decoder(self, embedded: Tensor, prompts: Prompts | None) -> None:
        """The decoder alone on ``embedded [1, rows, hidden]``: the plan on ``prompts``, or as in a call without."""
        if prompts is not None:
            reads_tower = self.located.reads_tower(self.plan)
            scores = [torch.rand(sum(prompts.counts), device=embedded.device)] if reads_tower else []
            prompts.read_only(1)
            self.running.now = ForwardPass(self._kept, prompts, scores)
        try:
            self.located.decoder(inputs_embeds=embedded, use_cache=True)
        finally:
            self.running.now = None

    def _capture_tower(self) -> list[Any]:
        located = self.located
        if not located.reads_tower(self.plan):
            return []
        assert located.family.capture is not None
        capture = located.family.capture(located.inner, self._hold_scores)
        return [capture, located.tower.register_forward_hook(self._attach_scores)]

    def _hold_scores(self, scores: Tensor) -> None:
        self.running.scores = scores

    def _attach_scores(self, _: nn.Module, __: Any, features: Any) -> None:
        """Scores travel with the features: ``generate`` computes those first, and hands them to the call that uses
        them."""
        scores, self.running.scores = self.running.scores, None
        if scores is None:
            return
        if self.running.now is not None:
            self.running.now.tower.append(scores)
        elif isinstance(features, ModelOutput):
            features.lookless_scores = scores

    def begin(self, given: Mapping[str, Any], kept: int | Tensor) -> ForwardPass | None:
        """The pass of a call of the inner model with the arguments ``given``; None where it runs as the stock model.

        ``kept`` says whose logits the call wants, as ``logits_to_keep`` of transformers.
        """
        prompts = prompts_of(self.located, given, kept)
        if prompts is None or max(prompts.counts) < self.break_even:
            return None
        check_call(self.located, self.plan, given)
        steps, self.running.read = self._read(prompts, given, kept)
        features = sorted((given.get(FEATURES) or {}).items())  # "image" before "video"
        tower = [f.lookless_scores for _, f in features if hasattr(f, "lookless_scores")]
        return ForwardPass(steps, prompts, tower)

    def counting(self, began: ForwardPass) -> AbstractContextManager[None]:
        """While the pass ``began`` runs: of the first prefill rows are counted, and compared with the plan's."""
        plan = self.plan if began.steps is self._steps else self._live_plan
        if self._is_counted or not is_countable(plan, began.prompts):
            return nullcontext()
        self._is_counted = True
        return checked_rows(plan, [step.work for step in began.steps], self.located, began.prompts)

    def _read(self, prompts: Prompts, given: Mapping[str, Any], kept: int | Tensor) -> tuple[tuple[Step, ...], str]:
        """The steps of a call, by whose states are read after the last layer; and whose these are, and why."""
        if hands_out(self.located, "hidden_states", given):
            return self._steps, "every row: the call hands out hidden states"
        if prompts.reads_visual(kept):
            return self._steps, "every row: logits of visual rows are kept"
        reader = reader_of(self.located)
        if reader is not None:
            return self._live, f"every text row: {reader}"
        prompts.read_only(kept)
        return self._kept, "the rows whose logits are kept"

    @property
    def read(self) -> str:
        """Whose states were read after the last layer in this thread's last call under the plan, and why: the others
        were not computed there."""
        return self.running.read

    def remove(self) -> None:
        """Give every module its own ``forward`` back."""
        for hook in self._hooks:
            hook.remove()
        for replaced in self._replaced:
            replaced.remove()
        self._hooks, self._replaced = [], []

    def again(self) -> Applied:
        """Put the plan, once it is removed, in force on the same model again.

        What was found out of both is kept: after a prefill whose rows were counted, the next one counts none. So a plan
        that is timed in turn with others is timed as it runs for a user from the second prompt on.

        Raises:
            ModelError: it is in force, or another plan is.
        """
        if not self.plan.is_full:
            self._put()
        return self

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _is_planned(layer: nn.Module) -> bool:
    found = layer.__dict__.get("forward")
    return isinstance(found, _PlannedForward) and not found.is_removed


def _pass_on_kept(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Before a call of the whole model: the model inside it does not see which rows' logits are kept."""
    kept = kwargs.get("logits_to_keep", 0)
    return None if isinstance(kept, int) and not kept else (args, {**kwargs, KEPT: kept})


def apply(model: nn.Module, plan: Plan, *, break_even: int | Literal["auto"] = 0) -> Applied:
    """Put ``plan`` in force on ``model``::

        with lookless.apply(model, plan):
            model.generate(**inputs)

    or ``handle = lookless.apply(model, plan)`` and later ``handle.remove()``.

    Each call of the model is a prompt, or over a cache a turn. Ranks that depend on the question use its last word: the
    last row of the call, or where the logits of several text rows are kept (``logits_to_keep=N``, as for an answer
    that is scored and a draft that is checked) the first of those.

    Args:
        model: loaded by transformers, of a supported family.
        plan: for its architecture.
        break_even: calls in which no prompt has as many visual tokens run the stock model. ``lookless bench`` measures
            from how many on a plan pays on a machine. ``"auto"`` measures it here, on the decoder alone, in about two
            seconds, and remembers it for this plan, model and machine in the user's cache folder. By default the plan
            always runs.

    Raises:
        LooklessError: ``break_even`` is neither a number of tokens nor ``"auto"``.
        ModelError: the model's family is not supported, a plan is already applied, or a part that the runtime uses is
            not there in this release of transformers.
        PlanMismatchError: the plan is for another architecture.

    Under the plan a call raises ModelError where it wants what the plan cannot give: attention maps, embeddings in
    place of ids, prompts packed into one row or cut into chunks whose visual tokens the plan compares. So it does where
    some layer ran without the plan, and, in the first prefill, where an operator ran on other rows than the plan
    leaves: a plan that is not in force is no result.
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


def reapplied(model: nn.Module, plan: Plan | None) -> Callable[[], AbstractContextManager[Any]]:
    """As :func:`applied`, to be entered again and again (:meth:`Applied.again`).

    Raises:
        ModelError: as :func:`applied`.
    """
    if plan is None:
        return partial(applied, model, None)
    handle = apply(model, plan)
    handle.remove()
    return handle.again


def check_stock(model: nn.Module) -> None:
    """Raises: ModelError: a plan is already applied to ``model``, so what it computes is not the stock model's."""
    if any(map(_is_planned, locate(model).layers)):
        raise ModelError(
            "a plan is already applied to this model, and this measures the stock model: call remove() on the plan "
            "first, or leave its `with` block."
        )
