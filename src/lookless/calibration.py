"""Where does looking matter? A sweep of one-row plans.

Change one layer, leave the rest, and see how far the answer moves: V-Skip's visual information gain, ShortV's layer
contribution and operator skipping's intervention risks are this one experiment with another change. Everything below
the changed layer is as in the full run, so a run begins at the saved input of its layer: L+1 full passes shrink to
about 1 + L/2.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .data import Samples
from .errors import DataError
from .loading import Loaded
from .models import Located, locate
from .operators import run_layer
from .plan import LayerPlan, Skip
from .progress import shown
from .rows import RowSet
from .runtime import rows_of
from .scores import Scores

Position = Literal["last", "answer"]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats, of log-probabilities ``[..., vocabulary]``; one number per row, never below zero."""
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)


@dataclass(frozen=True)
class Dense:
    """One prompt run in full, once: what every changed run begins from.

    Attributes:
        inputs: the input of each layer, ``[1, sequence, hidden]``, and the rest of its arguments.
        log_probs: of the next token at the rows read, float32 ``[rows read, vocabulary]``.
        rows: the text rows.
        read: the rows of the prompt at which the answer is read.
    """

    inputs: tuple[tuple[Tensor, dict[str, Any]], ...]
    log_probs: Tensor
    rows: RowSet
    read: slice


@torch.no_grad()
def run_dense(model: nn.Module, located: Located, inputs: dict[str, Any], read: slice) -> Dense | None:
    """Run ``model`` on one prompt in full and keep what entered each layer; None if nothing in it is visual."""
    rows = rows_of(located, inputs)
    if rows is None:
        return None
    saved: list[tuple[Tensor, dict[str, Any]]] = []
    last: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        saved.append((args[0] if args else kwargs["hidden_states"], dict(kwargs)))

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in located.layers]
    hooks.append(located.layers[-1].register_forward_hook(lambda _, __, out: last.append(out)))
    try:
        located.inner(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Dense(tuple(saved), _log_probs(model, located, last[0], read), rows, read)


@torch.no_grad()
def run_from(model: nn.Module, located: Located, dense: Dense, layer: int, cells: LayerPlan) -> Tensor:
    """Log-probabilities as in :class:`Dense`, with ``cells`` in force in ``layer`` and nowhere else."""
    x, arguments = dense.inputs[layer]
    x = run_layer(located.layers[layer], cells, dense.rows, x, **arguments)
    for later, (_, arguments) in zip(located.layers[layer + 1 :], dense.inputs[layer + 1 :], strict=True):
        x = later(x, **arguments)
    return _log_probs(model, located, x, dense.read)


def _log_probs(model: nn.Module, located: Located, x: Tensor, read: slice) -> Tensor:
    head = model.get_output_embeddings()  # type: ignore[operator]
    logits = head(located.decoder.norm(x[0, read]))  # type: ignore[operator]
    return torch.log_softmax(logits.float(), dim=-1)


def sweep(
    loaded: Loaded,
    samples: Samples,
    cells: LayerPlan,
    *,
    name: str,
    distance: Callable[[Tensor, Tensor], Tensor] = kl,
    position: Position = "last",
    progress: bool = True,
) -> Scores:
    """How far the answer moves when ``cells`` are in force in one layer, for each layer.

    Args:
        loaded: the model, without a plan on it.
        samples: those without an image are left out.
        cells: what visual tokens do in the changed layer.
        name: of the scores.
        distance: from the full model's log-probabilities to the changed one's, both float32
            ``[rows, vocabulary]``; one number per row.
        position: read the distribution at the ``last`` prompt token, or at every token of the full model's own greedy
            ``answer`` (at most 32), and take the mean.
        progress: show a bar on standard error.

    Raises:
        DataError: no sample has an image.
    """
    model, located = loaded.model, locate(loaded.model)
    with_images = [sample for sample in samples if sample.images]
    if not with_images:
        raise DataError(
            f"none of the {len(samples)} samples of {samples.name} has an image: there is nothing to measure."
        )
    started = time.perf_counter()
    table = []
    for sample in shown(with_images, f"{name} on {samples.name}", progress):
        inputs, read = _prompt(loaded, sample, position)
        dense = run_dense(model, located, inputs, read)
        if dense is None:
            raise DataError(
                f"the processor of {loaded.name} put no visual token into the prompt {sample.question[:60]!r}: "
                f"its image token and the model's do not agree."
            )
        table.append(
            tuple(
                float(distance(dense.log_probs, run_from(model, located, dense, layer, cells)).mean())
                for layer in range(len(located.layers))
            )
        )
    return Scores(
        name=name,
        position=position,
        per_sample=tuple(table),
        geometry=located.geometry,
        model=loaded.name,
        revision=loaded.revision,
        data=samples.name,
        data_hash=samples.hash,
        seconds=time.perf_counter() - started,
    )


def calibrate(loaded: Loaded, samples: Samples, *, position: Position = "last", progress: bool = True) -> Scores:
    """Visual information gain of each layer: KL(full || visual attention of the layer skipped), in nats.

    V-Skip (arXiv 2606.08511), Eq. 3. The text does not say where the distribution is read; by lineage (ShortV, VTW) it
    is the next token at the last prompt position, ``position="last"``. ``"answer"`` reads it at every token of the full
    model's greedy answer, which sees what later answer tokens look up.

    Raises:
        DataError: no sample has an image.
    """
    skip = LayerPlan(attention=Skip())
    return sweep(loaded, samples, skip, name="visual_information_gain", position=position, progress=progress)


def _prompt(loaded: Loaded, sample: Any, position: Position) -> tuple[dict[str, Any], slice]:
    """The arguments of one pass over ``sample``, and the rows to read."""
    inputs = loaded.inputs([sample])
    length = inputs["input_ids"].shape[1]
    if position == "last":
        return inputs, slice(length - 1, length)
    with torch.no_grad():
        ids = loaded.model.generate(**inputs, max_new_tokens=32, do_sample=False)  # type: ignore[operator]
    mask = inputs["attention_mask"]
    extended = {**inputs, "input_ids": ids, "attention_mask": mask.new_ones(ids.shape)}
    return extended, slice(length - 1, ids.shape[1] - 1)
