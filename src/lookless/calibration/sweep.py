"""Where does looking matter? A sweep of one-row plans.

Change one layer, leave the rest, and see how far the answer moves: V-Skip's visual information gain, ShortV's layer
contribution and operator skipping's intervention risks are this one experiment with another change. Everything below
the changed layer is as in the full run, so a run begins at the saved input of its layer: L+1 full passes shrink to
about 1 + L/2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cells import RANKS, Keep, Neurons, Skip, Window
from ..data import Sample, Samples
from ..errors import DataError, ModelError, ScoresError
from ..geometry import Geometry
from ..loading import Loaded
from ..plan import COLUMNS, LayerPlan, Plan
from ..progress import shown
from ..runtime.families import Located, locate
from ..runtime.forward import Pass, steps_of
from ..runtime.patching import check_stock, prompts_of
from ..runtime.prompts import Prompts
from ..scores import Scores

Position = Literal["last", "answer"]


#: From the full model's next-token logits to the changed one's, both float32 ``[rows, vocabulary]``: one number a row.
Distance = Callable[[Tensor, Tensor], Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats, of logits ``[..., vocabulary]``; one number per row, never below zero.

    Log-probabilities are logits, too.
    """
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p): ShortV's and VTW's direction, whose code puts the changed model first."""
    return kl(q, p)


def turn(p: Tensor, q: Tensor) -> Tensor:
    """1 - cos between two vectors ``[..., width]``; one number per row. In float64: near 1 a cosine has few digits."""
    return (1 - F.cosine_similarity(p.double(), q.double(), dim=-1)).clamp_min(0.0)


@dataclass(frozen=True)
class Dense:
    """One prompt run in full, once: what every changed run begins from.

    Attributes:
        inputs: the input of each layer, ``[1, sequence, hidden]``, and the rest of its arguments.
        added: what the model adds behind each layer, ``[1, sequence, hidden]``, None where nothing: Qwen3-VL's
            DeepStack.
        logits: of the next token at the rows read, float32 ``[rows read, vocabulary]``.
        prompts: makes the state of one pass.
        prompt: what was run.
    """

    inputs: tuple[tuple[Tensor, dict[str, Any]], ...]
    added: tuple[Tensor | None, ...]
    logits: Tensor
    prompts: Callable[[], Prompts]
    prompt: VisualPrompt


@dataclass(frozen=True)
class VisualPrompt:
    """One sample with an image, ready to run.

    Attributes:
        name: the sample's, for errors.
        inputs: the arguments of one pass.
        read: the rows of the prompt at which the answer is read.
        visual: bool ``[sequence]``, the visual tokens; those of an answer after the prompt are none.
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


@torch.no_grad()
def run_dense(model: nn.Module, located: Located, prompt: VisualPrompt) -> Dense:
    """Run ``model`` in full on one prompt of :func:`visual_prompts` and keep what entered each layer.

    Raises:
        ModelError: its logits are not finite.
    """
    with watched(located) as seen:
        located.inner(**prompt.inputs, use_cache=False)
    return dense_of(model, located, prompt, seen)


@dataclass(frozen=True)
class Watched:
    """What went through the layers in one pass, in their order, each ``[1, sequence, hidden]``.

    Attributes:
        entered: the input of each layer, and the rest of its arguments.
        attention, ffn: what its operators add; kept only where gradients are on, which are taken there: otherwise they
            would be held for nobody.
        left: its output.
    """

    entered: list[tuple[Tensor, dict[str, Any]]] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    ffn: list[Tensor] = field(default_factory=list)
    left: list[Tensor] = field(default_factory=list)


@contextmanager
def watched(located: Located) -> Iterator[Watched]:
    """See what goes through the layers of one pass; where gradients are on, they begin at the first layer's input."""
    seen = Watched()

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        x = args[0] if args else kwargs["hidden_states"]
        begins = torch.is_grad_enabled() and not seen.entered
        x = x.detach().requires_grad_() if begins else x
        seen.entered.append((x, dict(kwargs)))
        if not begins:
            return None
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def add(updates: list[Tensor], update: Tensor) -> None:
        if torch.is_grad_enabled():
            updates.append(update)

    hooks = []
    for layer in located.layers:
        hooks += [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.self_attn.register_forward_hook(lambda _, __, out: add(seen.attention, out[0])),  # type: ignore[union-attr]
            layer.mlp.register_forward_hook(lambda _, __, out: add(seen.ffn, out)),  # type: ignore[union-attr]
            layer.register_forward_hook(lambda _, __, out: seen.left.append(out)),
        ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def dense_of(model: nn.Module, located: Located, prompt: VisualPrompt, seen: Watched) -> Dense:
    """What a pass that was ``seen`` leaves to begin from; no graph hangs on it.

    Raises:
        ModelError: the logits are not finite.
    """
    pairs = zip(seen.entered[1:], seen.left[:-1], strict=True)
    added = [None if x is out else x - out for (x, _), out in pairs]
    logits = _logits(model, located, seen.left[-1], prompt, "the full model")
    entered = tuple((x.detach(), arguments) for x, arguments in seen.entered)
    return Dense(entered, (*added, None), logits, partial(_fresh, located, prompt.inputs), prompt)


def _fresh(located: Located, inputs: dict[str, Any]) -> Prompts:
    """The state of one pass, every visual token alive."""
    prompts = prompts_of(located, inputs)
    assert prompts is not None
    return prompts


@torch.no_grad()
def run_from(model: nn.Module, located: Located, dense: Dense, layer: int, plan: Plan) -> Tensor:
    """Logits as in :class:`Dense`, under ``plan``, which changes nothing before ``layer``.

    Raises:
        ModelError: they are not finite.
    """
    changed = f"the model with layer {layer} changed"
    if any(RANKS[rank].reads == "previous" for rank in plan.layers[layer].ranks):
        layer -= 1
    x, _ = dense.inputs[layer]
    prompts = dense.prompts()
    running = Pass(steps_of(plan.live() if prompts.end_in_text else plan), prompts, embedded=dense.inputs[0][0])
    steps = zip(located.layers, dense.inputs, dense.added, strict=True)
    for index, (module, (_, arguments), added) in list(enumerate(steps))[layer:]:
        x = running.run(module, index, x, **arguments)
        x = x if added is None else x + added
    return _logits(model, located, x, dense.prompt, changed)


def moved(
    model: nn.Module,
    located: Located,
    dense: Dense,
    layer: int,
    plan: Plan,
    distance: Distance,
) -> float:
    """How far the answer moves under ``plan``, which changes nothing before ``layer``; mean over the rows read."""
    return float(distance(dense.logits, run_from(model, located, dense, layer, plan)).mean())


def _logits(model: nn.Module, located: Located, x: Tensor, prompt: VisualPrompt, whose: str) -> Tensor:
    head = model.get_output_embeddings()  # type: ignore[operator]
    logits: Tensor = head(located.decoder.norm(x[0, prompt.read])).float()  # type: ignore[operator]
    check_finite(logits, whose, prompt.name)
    return logits


def check_finite(logits: Tensor, whose: str, sample: str) -> None:
    """Raises: ModelError: a number of ``logits`` is infinite or none at all."""
    if not logits.isfinite().all():
        raise ModelError(
            f"{whose} gives logits that are not finite (NaN or infinite) for {sample}: "
            f"check its weights, or load it in bfloat16 or float32."
        )


def sweep(
    loaded: Loaded,
    samples: Samples,
    cells: LayerPlan,
    *,
    name: str,
    distance: Distance = kl,
    unit: str = "nats",
    position: Position = "last",
    progress: bool = True,
) -> Scores:
    """How far the answer moves when ``cells`` are in force in one layer, for each layer.

    Args:
        loaded: the model, without a plan on it.
        samples: those without an image are left out.
        cells: what visual tokens do in the changed layer.
        name: of the scores.
        distance: from the full model's logits to the changed one's, both float32 ``[rows, vocabulary]``; one number
            per row. (A distance of probabilities begins with ``log_softmax``, as :func:`kl` does.)
        unit: of the distance.
        position: read the distribution at the ``last`` prompt token, or at every token of the full model's own greedy
            ``answer`` (at most 32), and take the mean.
        progress: show a bar on standard error.

    Raises:
        DataError, ModelError: as :func:`visual_prompts`; the model's logits are not finite.
        PlanError: the cells rank by the layer before, which the first layer has not, or by the vision tower.
    """
    started, located = time.perf_counter(), locate(loaded.model)
    plans = [one_row(located.geometry, layer, cells) for layer in range(len(located.layers))]
    table, lengths = [], []
    for prompt in visual_prompts(loaded, located, samples, f"{name} on {samples.name}", position, progress):
        dense = run_dense(loaded.model, located, prompt)
        lengths.append(prompt.lengths)
        table.append([moved(loaded.model, located, dense, layer, plan, distance) for layer, plan in enumerate(plans)])
    return scores_of(loaded, samples, name, table, lengths, position=position, started=started, unit=unit)


def scores_of(
    loaded: Loaded,
    samples: Samples,
    name: str,
    table: Sequence[Sequence[float]],
    lengths: Sequence[tuple[int, int]],
    *,
    position: Position,
    started: float,
    unit: str = "nats",
) -> Scores:
    """``table``, ``[samples][layers]``, as scores of ``loaded`` on ``samples``, whose prompts have such ``lengths``
    (:attr:`VisualPrompt.lengths`); ``started`` is ``perf_counter()``."""
    visual, text = map(fmean, zip(*lengths, strict=True))
    return Scores(
        name=name,
        unit=unit,
        position=position,
        per_sample=tuple(map(tuple, table)),
        geometry=locate(loaded.model).geometry,
        model=loaded.name,
        revision=loaded.revision,
        data=samples.name,
        data_hash=samples.hash,
        visual=visual,
        text=text,
        sample_hashes=samples.hashes,
        seed=samples.seed,
        seconds=time.perf_counter() - started,
    )


def visual_prompts(
    loaded: Loaded, located: Located, samples: Samples, what: str, position: Position, progress: bool
) -> Iterator[VisualPrompt]:
    """Each sample with an image as a prompt for the stock model; with a bar that says ``what``.

    Raises:
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model.
    """
    check_stock(loaded.model)
    with_images = [(f"sample {i} of {samples.name}", sample) for i, sample in enumerate(samples) if sample.images]
    if not with_images:
        raise DataError(
            f"none of the {len(samples)} samples of {samples.name} has an image: there is nothing to measure."
        )
    for name, sample in shown(with_images, what, progress):
        inputs, read = _prompt(loaded, sample, position)
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
    # Whatever else is told of each token (Qwen's token types) says text of those that were answered.
    per_token = {k: v for k, v in inputs.items() if isinstance(v, Tensor) and v.shape == inputs["input_ids"].shape}
    more = ids.shape[1] - length
    extended = {**inputs, **{k: torch.nn.functional.pad(v, (0, more)) for k, v in per_token.items()}}
    extended |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return extended, slice(length - 1, ids.shape[1] - 1)


def one_row(geometry: Geometry, layer: int, cells: LayerPlan) -> Plan:
    """``cells`` in one layer, and all others full."""
    return Plan.full(geometry).at([layer], **{column: getattr(cells, column) for column in COLUMNS})


@dataclass(frozen=True)
class Measure:
    """A sweep with a name: what is changed in one layer, and how the answer's move is told."""

    what: str
    cells: LayerPlan
    distance: Distance = kl
    unit: str = "nats"


_SKIP = Skip()
MEASURES: dict[str, Measure] = {
    "visual_information_gain": Measure("visual attention skipped (V-Skip, Eq. 3)", LayerPlan(attention=_SKIP)),
    "ffn_effect": Measure("visual FFN skipped", LayerPlan(ffn=_SKIP)),
    "freeze_effect": Measure("both skipped", LayerPlan(attention=_SKIP, ffn=_SKIP)),
    "layer_contribution": Measure("both skipped (ShortV's LC)", LayerPlan(attention=_SKIP, ffn=_SKIP), reverse_kl),
    "reading_effect": Measure("text does not read visual keys", LayerPlan(visible=_SKIP)),
    "withdrawal": Measure("image withdrawn from this layer on (VTW)", LayerPlan(keep=Keep(0)), reverse_kl),
    "window_effect": Measure("visual attention in a window (RedundancyLens)", LayerPlan(attention=Window(256))),
    "neuron_effect": Measure("a fifth of the neurons (RedundancyLens)", LayerPlan(ffn=Neurons(0.2, probe=0.1))),
    "logit_cosine": Measure(
        "visual attention skipped, by the cosine of output logits (V-Skip, Sec. 4.5.3)",
        LayerPlan(attention=_SKIP),
        turn,
        "1 - cos",
    ),
}


def calibrate(
    loaded: Loaded,
    samples: Samples,
    *,
    measure: str = "visual_information_gain",
    position: Position = "last",
    progress: bool = True,
) -> Scores:
    """How much each layer matters, by one of :data:`MEASURES`.

    By default the visual information gain, KL(full || visual attention of the layer skipped): V-Skip (arXiv
    2606.08511), Eq. 3. The text does not say where the distribution is read; by lineage (ShortV, VTW) it is the next
    token at the last prompt position, ``position="last"``. ``"answer"`` reads it at every token of the full model's
    greedy answer, which sees what later answer tokens look up.

    Raises:
        ScoresError: no such measure.
        DataError: no sample has an image.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """
    if measure not in MEASURES:
        raise ScoresError(f"no measure is called {measure!r}; choose one of {', '.join(MEASURES)}.")
    chosen = MEASURES[measure]
    return sweep(
        loaded,
        samples,
        chosen.cells,
        name=measure,
        distance=chosen.distance,
        unit=chosen.unit,
        position=position,
        progress=progress,
    )
