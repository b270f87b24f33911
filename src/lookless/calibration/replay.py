"""Run a model again from a recorded full run.

Everything below a changed layer is as in the full run. So a changed run starts at the recorded input of its layer, and
costs only the layers from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data import Sample, Samples
from ..errors import DataError, ModelError
from ..geometry import Geometry
from ..layer_plan import COLUMNS, LayerPlan
from ..loading import Loaded
from ..plan import Plan
from ..progress import track
from ..ranks import RANKS
from ..runtime.families import Located, locate
from ..runtime.forward import ForwardPass, steps_of
from ..runtime.mixers import added_by, argument_names
from ..runtime.patching import check_stock
from ..runtime.prompts import Prompts, prompts_of
from .distances import Distance

#: A sample, and its name for errors.
Named = tuple[str, Sample]
#: Where a distribution is read: at the last prompt token, or at every token of the full model's greedy answer.
Position = Literal["last", "answer"]


@dataclass(frozen=True)
class VisualPrompt:
    """One sample with an image, ready to run.

    Attributes:
        name: the sample's, for errors.
        inputs: the arguments of one pass.
        read: the rows at which logits are read.
        visual: bool ``[sequence]``, true at visual tokens; false at an answer's tokens after the prompt.
    """

    name: str
    inputs: dict[str, Any]
    read: slice
    visual: Tensor

    @property
    def lengths(self) -> tuple[int, int]:
        """Visual and text tokens of the prompt, without an answer after it."""
        visual = int(self.visual.sum())
        return visual, self.read.start + 1 - visual


@dataclass(frozen=True)
class Activations:
    """What went through the layers in one pass, in their order, each ``[1, sequence, hidden]``.

    Attributes:
        inputs: the input of each layer, and the rest of its arguments.
        attention, ffn: what each operator adds. Recorded only where gradients are on: nothing else needs them.
        outputs: the output of each layer.
        tower: of each call of the vision tower, what it attends to, ``[visual tokens]``; none where that cannot be
            followed to visual tokens.
    """

    inputs: list[tuple[Tensor, dict[str, Any]]] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    ffn: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    tower: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class FullRun:
    """One prompt, run once through the full model: where every changed run starts.

    Attributes:
        inputs: the input of each layer, ``[1, sequence, hidden]``, and the rest of its arguments.
        added: what the model adds after each layer (Qwen3-VL's DeepStack), ``[1, sequence, hidden]``; None where
            nothing.
        logits: of the next token at the rows read, float32 ``[rows read, vocabulary]``.
        prompts: makes the state of one pass.
        prompt: what was run.
        tower: as in :class:`Activations`.
    """

    inputs: tuple[tuple[Tensor, dict[str, Any]], ...]
    added: tuple[Tensor | None, ...]
    logits: Tensor
    prompts: Callable[[], Prompts]
    prompt: VisualPrompt
    tower: tuple[Tensor, ...] = ()


def full_runs(loaded: Loaded, samples: Samples, what: str, position: Position, progress: bool) -> Iterator[FullRun]:
    """A full run of each sample with an image, one at a time; the progress bar says ``what``.

    Raises:
        DataError, ModelError: as :func:`visual_prompts`; the model's logits are not finite.
    """
    return runs_from(loaded, track(with_images(samples), what, progress), position)


def runs_from(loaded: Loaded, named: Iterable[Named], position: Position) -> Iterator[FullRun]:
    """A full run of each sample of :func:`with_images`. Raises: as :func:`full_runs`."""
    located = locate(loaded.model)
    for prompt in prompts_from(loaded, named, position):
        yield full_run(loaded.model, located, prompt)


@torch.no_grad()
def full_run(model: nn.Module, located: Located, prompt: VisualPrompt) -> FullRun:
    """Run ``model`` on one prompt of :func:`visual_prompts` and record the input of each layer.

    Raises:
        ModelError: its logits are not finite.
    """
    with record_activations(located) as activations:
        located.inner(**prompt.inputs, use_cache=False)
    return full_run_of(model, located, prompt, activations)


@contextmanager
def record_activations(located: Located) -> Iterator[Activations]:
    """Record the layers of one pass. Where gradients are on, the graph starts at the first layer's input."""
    recorded = Activations()

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        x = args[0] if args else kwargs["hidden_states"]
        is_root = torch.is_grad_enabled() and not recorded.inputs
        x = x.detach().requires_grad_() if is_root else x
        recorded.inputs.append((x, {**dict(zip(argument_names(module), args[1:], strict=False)), **kwargs}))
        if not is_root:
            return None
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def add(updates: list[Tensor], update: Tensor) -> None:
        if torch.is_grad_enabled():
            updates.append(update)

    hooks = []
    for layer in located.layers:
        adding = located.adding(layer)
        hooks += [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            adding["attention"].register_forward_hook(lambda _, __, out: add(recorded.attention, added_by(out))),
            adding["ffn"].register_forward_hook(lambda _, __, out: add(recorded.ffn, out)),
            layer.register_forward_hook(lambda _, __, out: recorded.outputs.append(out)),
        ]
    if located.family.capture is not None:
        hooks.append(located.family.capture(located.inner, lambda scores: recorded.tower.append(scores.detach())))
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def full_run_of(model: nn.Module, located: Located, prompt: VisualPrompt, recorded: Activations) -> FullRun:
    """The full run of a pass that was ``recorded``, without its graph.

    Raises:
        ModelError: the logits are not finite.
    """
    pairs = zip(recorded.inputs[1:], recorded.outputs[:-1], strict=True)
    added = [None if x is out else x - out for (x, _), out in pairs]
    logits = _logits(located, recorded.outputs[-1], prompt, "the full model")
    inputs = tuple((x.detach(), arguments) for x, arguments in recorded.inputs)
    fresh = partial(_fresh, located, prompt.inputs)
    return FullRun(inputs, (*added, None), logits, fresh, prompt, tuple(recorded.tower))


def _fresh(located: Located, inputs: dict[str, Any]) -> Prompts:
    """The state of one pass, every visual token alive."""
    prompts = prompts_of(located, inputs)
    assert prompts is not None
    return prompts


@torch.no_grad()
def run_from(model: nn.Module, located: Located, full: FullRun, layer: int, plan: Plan) -> Tensor:
    """Logits as in :class:`FullRun`, under ``plan``, which changes nothing before ``layer``.

    Raises:
        ModelError: they are not finite.
    """
    changed = f"the model with layer {layer} changed"
    if any(RANKS[rank].reads == "previous" for rank in plan.layers[layer].ranks):
        layer -= 1
    x, _ = full.inputs[layer]
    prompts = full.prompts()
    steps = steps_of((plan.live() if prompts.end_in_text else plan).layers)
    running = ForwardPass(steps, prompts, list(full.tower), embedded=full.inputs[0][0])
    layers = zip(located.layers, full.inputs, full.added, strict=True)
    for index, (module, (_, arguments), added) in list(enumerate(layers))[layer:]:
        x = running.run(module, index, x, **arguments)
        x = x if added is None else x + added
    return _logits(located, x, full.prompt, changed)


def divergence_under(
    model: nn.Module, located: Located, full: FullRun, layer: int, plan: Plan, distance: Distance
) -> float:
    """How far the distribution moves under ``plan``, which changes nothing before ``layer``: mean over rows read."""
    return float(distance(full.logits, run_from(model, located, full, layer, plan)).mean())


def _logits(located: Located, x: Tensor, prompt: VisualPrompt, whose: str) -> Tensor:
    logits = located.logits(located.norm(x[0, prompt.read]))
    check_finite(logits, whose, prompt.name)
    return logits


def check_finite(logits: Tensor, whose: str, sample: str) -> None:
    """Raises: ModelError: a number of ``logits`` is infinite or NaN."""
    if not logits.isfinite().all():
        raise ModelError(
            f"{whose} gives logits that are not finite (NaN or infinite) for {sample}: "
            f"check its weights, or load it in bfloat16 or float32."
        )


def visual_prompts(
    loaded: Loaded, samples: Samples, what: str, position: Position, progress: bool
) -> Iterator[VisualPrompt]:
    """Each sample with an image as a prompt for the stock model; the progress bar says ``what``.

    Raises:
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its answer has the token of an image.
    """
    return prompts_from(loaded, track(with_images(samples), what, progress), position)


def with_images(samples: Samples) -> list[Named]:
    """Each sample with an image, and its name for errors.

    Raises:
        DataError: there is none.
    """
    named = [(f"sample {i} of {samples.name}", sample) for i, sample in enumerate(samples) if sample.pictures]
    if not named:
        raise DataError(
            f"none of the {len(samples)} samples of {samples.name} has an image: there is nothing to measure."
        )
    return named


def prompts_from(loaded: Loaded, named: Iterable[Named], position: Position) -> Iterator[VisualPrompt]:
    """Each sample of :func:`with_images` as a prompt. Raises: as :func:`visual_prompts`."""
    check_stock(loaded.model)
    located = locate(loaded.model)
    for name, sample in named:
        inputs, read = _prompt(loaded, sample, position)
        _check_answer(loaded, located, name, inputs["input_ids"][:, read.start + 1 : read.stop + 1])
        prompts = prompts_of(located, inputs)
        if prompts is None:
            raise DataError(
                f"the processor of {loaded.name} put no visual token into the prompt {sample.question[:60]!r}: "
                f"its image token and the model's do not agree."
            )
        yield VisualPrompt(f"{name} ({sample.question[:60]!r})", inputs, read, prompts.visual[0])


def _prompt(loaded: Loaded, sample: Sample, position: Position) -> tuple[dict[str, Any], slice]:
    """The arguments of one pass over ``sample``, and the rows to read."""
    inputs = loaded.inputs([sample])
    length = inputs["input_ids"].shape[1]
    if position == "last":
        return inputs, slice(length - 1, length)
    with torch.no_grad():
        ids = loaded.model.generate(**inputs, max_new_tokens=32, do_sample=False)  # type: ignore[operator]
    # Other per-token inputs (Qwen's token types) mark generated tokens as text: zero.
    per_token = {k: v for k, v in inputs.items() if isinstance(v, Tensor) and v.shape == inputs["input_ids"].shape}
    more = ids.shape[1] - length
    extended = {**inputs, **{k: torch.nn.functional.pad(v, (0, more)) for k, v in per_token.items()}}
    extended |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return extended, slice(length - 1, ids.shape[1] - 1)


def _check_answer(loaded: Loaded, located: Located, name: str, answer: Tensor) -> None:
    """Raises: ModelError: a token of the answer stands for a piece of an image, and there is none to put there."""
    if located.visual(answer).any():
        raise ModelError(
            f"{loaded.name} answers {name} with the token of an image ({located.visual_ids}), so its answer cannot be "
            f"read: check its weights and its generation settings, or leave the sample out."
        )


def one_row(geometry: Geometry, layer: int, cells: LayerPlan) -> Plan:
    """``cells`` in one layer, and all others full. Raises: PlanMismatchError: the layer cannot run them."""
    plan = Plan.full(geometry).at([layer], **{column: getattr(cells, column) for column in COLUMNS})
    plan.check(geometry)
    return plan
