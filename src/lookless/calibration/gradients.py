"""How much of what a layer does to visual tokens can the answer see? One forward and one backward pass per sample.

"Attend, Transform, or Silence" (arXiv 2606.31903) finds that late updates of visual tokens are large and yet change
nothing in the answer. Its diagnostic is the first-order influence of those updates on the answer; the paper prints no
formula and its release no code, so these are derived. With x(i) what enters the layer at visual token i, op(i) what its
attention or its FFN adds there, and S the log-probability of the full model's own answer:

* update size, mean over i of ||op(i)|| / ||x(i)||: how far the token is moved;
* influence, |sum over i of <dS/d op(i), op(i)>|: what a small part of it, taken away, would change S by, per part.

Large and without influence is answer-silent: a candidate for skipping. Influence is first order: it screens all layers
for the price of about three passes, and :func:`lookless.calibrate` measures those that remain. To these comes the
baseline of ShortV (arXiv 2504.00502), how little a layer turns its visual tokens. (V-Skip's own cosine is of output
logits: the measure ``logit_cosine``.)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..data import Samples
from ..errors import ScoresError
from ..loading import Loaded
from ..runtime.families import Located, locate
from ..scores import Scores
from .distances import turn
from .replay import Position, VisualPrompt, Watched, check_finite, visual_prompts, watched
from .sweep import MEASURES, calibrate, scores_of

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

    ``x(i)`` is the layer's input for both operators. ``state_cosine`` is of a visual token as it enters the layer and
    as it leaves it (before DeepStack adds to it), mean over tokens: 1 - cos, as all scores are higher where a layer
    matters more.

    Args:
        loaded: the model, without a plan on it. Its parameters are lent: gradients go to activations alone.
        samples: those without an image are left out.
        position: S is of the full model's likeliest token at the ``last`` prompt position, or the mean over the tokens
            of its own greedy ``answer`` (at most 32).
        progress: show a bar on standard error.

    Raises:
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """
    started, located = time.perf_counter(), locate(loaded.model)
    table: dict[str, list[tuple[float, ...]]] = {name: [] for name in DIAGNOSTICS}
    lengths = []
    prompts = visual_prompts(loaded, located, samples, f"diagnostics on {samples.name}", position, progress)
    for prompt in prompts:
        lengths.append(prompt.lengths)
        for name, row in _sample(loaded.model, located, prompt).items():
            table[name].append(tuple(row))
    return {
        name: scores_of(
            loaded, samples, name, rows, lengths, position=position, started=started, unit=DIAGNOSTICS[name]
        )
        for name, rows in table.items()
    }


def _sample(model: nn.Module, located: Located, prompt: VisualPrompt) -> dict[str, list[float]]:
    """The diagnostics of one prompt, one number per layer."""
    inputs, read = prompt.inputs, prompt.read
    with lent(model), watched(located) as seen, torch.enable_grad():
        last = located.inner(**inputs, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(last[0, read]).float()  # type: ignore[operator]
        check_finite(logits, "the full model", prompt.name)
        log_probs = torch.log_softmax(logits, dim=-1)
        forced = inputs["input_ids"][0, read.start + 1 : read.stop + 1]  # behind the prompt; none at its last position
        answer = forced if len(forced) else log_probs.argmax(-1)
        at_attention, at_ffn = slopes(log_probs.gather(-1, answer[:, None]).mean(), seen)
    rows = prompt.visual.to(last.device)
    x, y = ([t.detach()[0, rows].float() for t in states] for states in ([x for x, _ in seen.entered], seen.left))
    a, f = ([t.detach()[0, rows].float() for t in updates] for updates in (seen.attention, seen.ffn))
    return {
        "attention_update_size": [_size(update, at) for update, at in zip(a, x, strict=True)],
        "ffn_update_size": [_size(update, at) for update, at in zip(f, x, strict=True)],
        "attention_influence": [abs(pull) for pull in pulls(at_attention, seen.attention, rows)],
        "ffn_influence": [abs(pull) for pull in pulls(at_ffn, seen.ffn, rows)],
        "state_cosine": [float(turn(before, after).mean()) for before, after in zip(x, y, strict=True)],
    }


def slopes(told: Tensor, seen: Watched, *, again: bool = False) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """d ``told`` / d what each attention and each FFN adds, ``[1, sequence, hidden]`` a layer: one backward pass.

    As both add to the residual stream, these are the slopes along it, too. ``again`` keeps the graph for another one.
    """
    found = torch.autograd.grad(told, seen.attention + seen.ffn, retain_graph=again)
    return found[: len(seen.attention)], found[len(seen.attention) :]


def pulls(slopes: Iterable[Tensor], updates: Iterable[Tensor], rows: Tensor) -> list[float]:
    """Of each layer, the sum over ``rows`` (bool ``[sequence]``) of <slope, update>: what taking the update away would
    take from what was told, were it a straight line."""
    return [
        float((slope[0, rows].float() * update.detach()[0, rows].float()).sum())
        for slope, update in zip(slopes, updates, strict=True)
    ]


def _size(update: Tensor, at: Tensor) -> float:
    return float((update.norm(dim=-1) / at.norm(dim=-1).clamp_min(1e-12)).mean())


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient, so that no activation is kept for one; given back as they were."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def measured(
    loaded: Loaded, samples: Samples, name: str, *, position: Position = "last", progress: bool = True
) -> Scores:
    """Scores by name: one of :data:`lookless.calibration.sweep.MEASURES`, or of :data:`DIAGNOSTICS`.

    Raises:
        ScoresError: no such name.
        DataError: no sample has an image.
    """
    if name in DIAGNOSTICS:
        return diagnose(loaded, samples, position=position, progress=progress)[name]
    if name not in MEASURES:
        raise ScoresError(f"no measure is called {name!r}; choose one of {', '.join([*MEASURES, *DIAGNOSTICS])}.")
    return calibrate(loaded, samples, measure=name, position=position, progress=progress)
