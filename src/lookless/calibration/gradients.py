"""How much of what a layer does to visual tokens reaches the answer? One forward and one backward pass per sample.

"Attend, Transform, or Silence" (arXiv 2606.31903) finds that late updates of visual tokens are large and yet change
nothing in the answer. Its diagnostic is the first-order influence of those updates on the answer. The paper prints no
formula and releases no code, so these are derived. Let x(i) be the layer's input at visual token i, op(i) what its
attention or its FFN adds there, and S the log-probability of the full model's own answer:

* update size, mean over i of ||op(i)|| / ||x(i)||: how far the token is moved;
* influence, |sum over i of <dS/d op(i), op(i)>|: how fast S changes as the update is scaled down.

A large update without influence is answer-silent: a candidate for skipping. Influence is first order. It screens all
layers for about three passes; :func:`lookless.calibrate` then measures those that remain. ``state_cosine`` is the
baseline of ShortV (arXiv 2504.00502): how little a layer turns its visual tokens. (V-Skip's own cosine is of output
logits: the measure ``logit_cosine``.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..data import Samples
from ..loading import Loaded
from ..runtime.families import locate
from ..scores import Scores
from ..unfinished import Unfinished
from .distances import turn
from .replay import Activations, Position, VisualPrompt, check_finite, record_activations
from .sweep import INTERVENTIONS, Intervention, Rows, changes_of, check_measure, measured

#: name of the scores -> their unit
DIAGNOSTICS = {
    "attention_update_size": "||attention(i)|| / ||x(i)||",
    "ffn_update_size": "||ffn(i)|| / ||x(i)||",
    "attention_influence": "nats",
    "ffn_influence": "nats",
    "state_cosine": "1 - cos",
}


def diagnose(
    loaded: Loaded, samples: Samples, *, position: Position = "last", progress: bool = True
) -> dict[str, Scores]:
    """All of :data:`DIAGNOSTICS` of every layer, by name.

    ``x(i)`` is the layer's input for both operators. ``state_cosine`` compares a visual token at the layer's input and
    output (before DeepStack adds to it), mean over tokens. As scores are higher for more important layers, it is
    1 - cos.

    Args:
        loaded: the model, without a plan on it. Its parameters are frozen meanwhile: gradients go to activations alone.
        samples: those without an image are left out.
        position: S is of the full model's likeliest token at the ``last`` prompt position, or the mean over the tokens
            of its own greedy ``answer`` (at most 32).
        progress: show a bar on standard error.

    Raises:
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """
    return measured(loaded, samples, diagnostics_of, DIAGNOSTICS, position=position, progress=progress)


def diagnostics_of(loaded: Loaded, prompt: VisualPrompt) -> Rows:
    """The diagnostics of one prompt, one number per layer."""
    model, located = loaded.model, locate(loaded.model)
    inputs, read = prompt.inputs, prompt.read
    with frozen_parameters(model), record_activations(located) as recorded, torch.enable_grad():
        last = located.inner(**inputs, use_cache=False).last_hidden_state
        logits = located.logits(last[0, read])
        check_finite(logits, "the full model", prompt.name)
        log_probs = torch.log_softmax(logits, dim=-1)
        forced = inputs["input_ids"][0, read.start + 1 : read.stop + 1]  # after the prompt; none at its last position
        answer = forced if len(forced) else log_probs.argmax(-1)
        at_attention, at_ffn = update_gradients(log_probs.gather(-1, answer[:, None]).mean(), recorded)
    rows = prompt.visual.to(last.device)
    states = ([x for x, _ in recorded.inputs], recorded.outputs, recorded.attention, recorded.ffn)
    x, y, a, f = ([t.detach()[0, rows].float() for t in of_layers] for of_layers in states)
    attention_effects = first_order_effects(at_attention, recorded.attention, rows)
    ffn_effects = first_order_effects(at_ffn, recorded.ffn, rows)
    return {
        "attention_update_size": [_size(update, at) for update, at in zip(a, x, strict=True)],
        "ffn_update_size": [_size(update, at) for update, at in zip(f, x, strict=True)],
        "attention_influence": [*map(abs, attention_effects)],
        "ffn_influence": [*map(abs, ffn_effects)],
        "state_cosine": [float(turn(before, after).mean()) for before, after in zip(x, y, strict=True)],
    }


def update_gradients(
    target: Tensor, recorded: Activations, *, keep_graph: bool = False
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Gradients of the scalar ``target`` by what each attention and each FFN adds, in one backward pass.

    Each is ``[1, sequence, hidden]``. As both operators add to the residual stream, these are its gradients, too.
    ``keep_graph`` allows another backward pass.
    """
    found = torch.autograd.grad(target, recorded.attention + recorded.ffn, retain_graph=keep_graph)
    return found[: len(recorded.attention)], found[len(recorded.attention) :]


def first_order_effects(gradients: Iterable[Tensor], updates: Iterable[Tensor], rows: Tensor) -> list[float]:
    """Per layer, the sum over ``rows`` (bool ``[sequence]``) of <gradient, update>.

    To first order, that is how much the target falls when the update is removed.
    """
    return [
        float((gradient[0, rows].float() * update.detach()[0, rows].float()).sum())
        for gradient, update in zip(gradients, updates, strict=True)
    ]


def _size(update: Tensor, at: Tensor) -> float:
    return float((update.norm(dim=-1) / at.norm(dim=-1).clamp_min(1e-12)).mean())


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside, so no activation is kept for one; restored on exit."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def scores_by_name(
    loaded: Loaded, samples: Samples, name: str, *, position: Position = "last", progress: bool = True
) -> Scores:
    """Those of :func:`scores_of_names` for one name."""
    return scores_of_names(loaded, samples, [name], position=position, progress=progress)[name]


def scores_of_names(
    loaded: Loaded,
    samples: Samples,
    names: Sequence[str],
    *,
    position: Position = "last",
    progress: bool = True,
    kept: Unfinished | None = None,
) -> dict[str, Scores]:
    """Scores by name: of :data:`lookless.calibration.sweep.INTERVENTIONS`, and of :data:`DIAGNOSTICS`.

    All changes share one full run of a sample, and all diagnostics one forward and one backward pass.

    Args: as :func:`lookless.calibration.sweep.measured`.

    Raises:
        ScoresError: no such name.
        DataError: no sample has an image.
    """
    for name in names:
        check_measure(name, [*INTERVENTIONS, *DIAGNOSTICS])
    changes = {name: INTERVENTIONS[name] for name in names if name in INTERVENTIONS}
    rows = partial(_rows, changes=changes, names=tuple(names))
    units = {name: INTERVENTIONS[name].unit if name in INTERVENTIONS else DIAGNOSTICS[name] for name in names}
    return measured(loaded, samples, rows, units, position=position, progress=progress, kept=kept)


def _rows(loaded: Loaded, prompt: VisualPrompt, *, changes: Mapping[str, Intervention], names: Collection[str]) -> Rows:
    found = changes_of(loaded, prompt, changes=changes) if changes else {}
    if len(changes) < len(names):
        found |= diagnostics_of(loaded, prompt)
    return {name: found[name] for name in names}
