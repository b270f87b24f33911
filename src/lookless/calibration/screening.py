"""Estimate all layers at once, and measure only those near the cut: calibration for a fraction of its passes.

A method that takes the N lowest layers needs only the order around N. So every layer is estimated first, for both
operators, by one forward and one backward pass per sample. Then one-layer runs settle which layers are the lowest.

**The estimate.** Skipping an operator removes its update ``op(i)`` of the visual tokens i from the residual stream. To
second order KL(p || skipped) is the Fisher form 1/2 E_{y~p} (sum over i of <d log p(y) / d op(i), op(i)>)^2. Sampling y
fails where the model is sure: at p = 0.9999 nearly all draws are the same answer, whose log-probability is almost flat,
and nearly all of the form comes from answers drawn once in ten thousand times. That gradient, 1 - p, is also lost to
rounding. So the answers are put into two groups, the likeliest one and all others, and the log-odds
o = z - log sum exp(other z) between the groups is differentiated. The expectation over y is then exact and needs one
backward pass: the form is p (1 - p) u^2 / 2, with u = sum over i of <d o / d op(i), op(i)>. This is the small-u limit
of the divergence between two groups of answers. A skip is not a small change, so that divergence itself is used,
between the odds o and o - u, in the direction of the measure. There are two departures from the full form. Movement
among the other answers is not seen, so estimates err low (grouping answers can only lessen a divergence). And o is
extrapolated along a straight line.

**The cut.** An estimate is trusted to a factor (:data:`TRUST`), so a layer's mean lies between two bounds. While the
bounds of a chosen and of a left-out layer overlap, the wider of the two that overlap most is measured, in the sample
that contributes most to its mean. Few samples make up most of a mean of divergences, so the bounds close in a few runs;
a run from layer l on costs (L - l) / L of a pass. This is LUCB (Kalyanakrishnan et al., ICML 2012) with our own bounds,
which come without a guarantee: an estimate that is wrong by more than the factor can misplace its layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..cells import Full, Skip
from ..data import Samples
from ..errors import ScoresError
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..progress import track
from ..runtime.families import Located, locate
from ..scores import Scores
from ..unfinished import Results, Unfinished
from ..version import __version__
from .distances import kl, reverse_kl
from .gradients import first_order_effects, frozen_parameters, update_gradients
from .replay import (
    Activations,
    FullRun,
    Position,
    VisualPrompt,
    check_finite,
    divergence_under,
    full_run_of,
    one_row,
    record_activations,
    visual_prompts,
)
from .sweep import INTERVENTIONS, Intervention, scores_of

#: Measures that can be estimated: divergences when an operator's update is removed.
SCREENED = tuple(
    name
    for name, intervention in INTERVENTIONS.items()
    if {intervention.cells.attention, intervention.cells.ffn} <= {Full(), Skip()}
    and intervention.cells == LayerPlan(attention=intervention.cells.attention, ffn=intervention.cells.ffn)
    and intervention.distance in (kl, reverse_kl)
)
#: An estimate is taken to be within this factor of the score, either way.
TRUST = 4.0


def screen(
    loaded: Loaded,
    samples: Samples,
    lowest: Mapping[str, int],
    *,
    position: Position = "last",
    trust: float = TRUST,
    progress: bool = True,
    kept: Unfinished | None = None,
) -> dict[str, Scores]:
    """Scores that name the lowest layers of some measures as :func:`lookless.calibrate` would, in fewer passes::

        scores = screen(loaded, samples, {"visual_information_gain": 7, "ffn_effect": 7})
        plan = v_skip(scores["visual_information_gain"], layers=7)

    All measures share one forward and one backward pass per sample. The full runs stay on the model's device meanwhile:
    ``layers x tokens x hidden`` numbers per sample.

    Args:
        loaded: the model, without a plan on it. Its parameters are frozen meanwhile: gradients go to activations alone.
        samples: those without an image are left out.
        lowest: of each measure, one of :data:`SCREENED`, how many lowest layers to identify.
        position: as in :func:`lookless.calibrate`; ``answer`` takes a backward pass for each token of the answer.
        trust: an estimate is taken to be within this factor of the score. At 1 nothing is measured.
        progress: show a bar on standard error.
        kept: where estimates and measurements are kept as they come, and those of a run that was killed are found: it
            runs each sample forward again, and does nothing else twice.

    Returns:
        Scores by measure, in nats. :attr:`Scores.measured` says which were measured, :attr:`Scores.passes` what they
        cost. With several measures, each reports the shared passes and ``seconds``.

    Raises:
        ScoresError: a measure that cannot be screened; a number of layers that is not between 1 and one less than the
            model has; ``trust`` below 1.
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """
    started, located = time.perf_counter(), locate(loaded.model)
    _check(lowest, len(located.layers), trust)
    interventions = {name: INTERVENTIONS[name] for name in lowest}
    if kept is not None:
        kept = kept.of("screen", loaded.fingerprint, samples.hash, position, sorted(lowest), __version__)
    runs, estimates, seconds = _all_estimated(loaded, located, samples, interventions, position, progress, kept)
    started -= seconds
    backward = sum(run.prompt.read.stop - run.prompt.read.start for run in runs)
    found = {}
    for name, count in lowest.items():
        mine = None if kept is None else kept.of(name)
        settled = _settle(loaded, located, runs, name, estimates[name], count, trust, progress, mine)
        started -= settled.seconds
        lengths = [run.prompt.lengths for run in runs]
        scores = scores_of(loaded, samples, name, settled.scores.tolist(), lengths, position=position, started=started)
        passes = 1 + (backward + settled.passes) / len(runs)
        measured = tuple(map(tuple, settled.is_measured.tolist()))
        update = {"measured": measured, "screened": count, "passes": passes}
        found[name] = scores.model_copy(update=update)
    return found


def check_screened(name: str) -> None:
    """Raises: ScoresError: ``name`` is not one of :data:`SCREENED`."""
    if name not in SCREENED:
        raise ScoresError(f"{name!r} cannot be screened; choose one of {', '.join(SCREENED)}.")


def _check(lowest: Mapping[str, int], layers: int, trust: float) -> None:
    for name, count in lowest.items():
        check_screened(name)
        if not 1 <= count < layers:
            raise ScoresError(
                f"screening identifies the {count} lowest layers of {name}, and the model has {layers}: "
                f"give 1 to {layers - 1}."
            )
    if not trust >= 1:
        raise ScoresError(f"estimates are trusted to a factor of {trust:g}: give 1 or more.")


def _all_estimated(
    loaded: Loaded,
    located: Located,
    samples: Samples,
    interventions: Mapping[str, Intervention],
    position: Position,
    progress: bool,
    kept: Unfinished | None,
) -> tuple[list[FullRun], dict[str, list[list[float]]], float]:
    """The full run of each sample, of each measure the estimates in nats, ``[samples][layers]``, and seconds that those
    which were known took."""
    results = Results.of(kept, len(samples))
    runs, estimates = [], {name: [] for name in interventions}  # type: ignore[var-annotated]
    for place, prompt in enumerate(visual_prompts(loaded, samples, f"estimates on {samples.name}", position, progress)):
        run, rows = _estimated(loaded.model, located, prompt, interventions, partial(results.once, place))
        runs.append(run)
        for name, row in rows.items():
            estimates[name].append(row)
    return runs, estimates, results.seconds


def _estimated(
    model: nn.Module,
    located: Located,
    prompt: VisualPrompt,
    interventions: Mapping[str, Intervention],
    once: Callable[[Callable[[], Any]], Any],
) -> tuple[FullRun, dict[str, list[float]]]:
    """The full run of one prompt, and of each measure an estimate per layer, in nats, made ``once``."""
    with frozen_parameters(model), record_activations(located) as recorded, torch.enable_grad():
        last = located.inner(**prompt.inputs, use_cache=False).last_hidden_state
        logits = located.logits(last[0, prompt.read])
        check_finite(logits, "the full model", prompt.name)
        visual = prompt.visual.to(last.device)
        estimates = once(lambda: _estimates(logits, recorded, visual, interventions))
    return full_run_of(model, located, prompt, recorded), estimates


def _estimates(
    logits: Tensor, recorded: Activations, visual: Tensor, interventions: Mapping[str, Intervention]
) -> dict[str, list[float]]:
    """Of each measure an estimate per layer, by the gradients of ``logits [rows read, vocabulary]``."""
    odds = _log_odds(logits)
    effects = [_effects(target, recorded, visual, keep_graph=i + 1 < len(odds)) for i, target in enumerate(odds)]
    full = odds.detach().double().cpu()[:, None]  # [rows read, 1]
    found = {}
    for name, intervention in interventions.items():
        skipped = (intervention.cells.attention == Skip(), intervention.cells.ffn == Skip())
        effect = torch.tensor([of_row[skipped] for of_row in effects], dtype=torch.float64)  # [rows read, layers]
        found[name] = intervention.distance(_of_two(full), _of_two(full - effect)).mean(0).tolist()
    return found


def _effects(
    target: Tensor, recorded: Activations, rows: Tensor, *, keep_graph: bool
) -> dict[tuple[bool, bool], list[float]]:
    """First-order effect on ``target`` per layer, by (attention skipped, FFN skipped)."""
    at_attention, at_ffn = update_gradients(target, recorded, keep_graph=keep_graph)
    ffn = first_order_effects(at_ffn, recorded.ffn, rows)
    return {
        (True, False): first_order_effects(at_attention, recorded.attention, rows),
        (False, True): ffn,
        # Without its attention the FFN adds something else. With both skipped, both updates are gone after the FFN, so
        # both are taken along the gradient there.
        (True, True): np.add(first_order_effects(at_ffn, recorded.attention, rows), ffn).tolist(),
    }


def _log_odds(logits: Tensor) -> Tensor:
    """Of the likeliest token against all others, of ``[rows, vocabulary]``: ``[rows]``."""
    top = logits.argmax(-1, keepdim=True)
    others = logits.scatter(-1, top, -torch.inf).logsumexp(-1)
    return logits.gather(-1, top)[:, 0] - others


def _of_two(odds: Tensor) -> Tensor:
    """Log-probabilities ``[..., 2]`` of an answer and of all others, by its log-odds."""
    return torch.stack((F.logsigmoid(odds), F.logsigmoid(-odds)), dim=-1)


@dataclass(frozen=True)
class _Settled:
    """Scores of which the lowest layers are known.

    Attributes:
        scores, is_measured: ``[samples, layers]``; a score that is not measured is an estimate.
        seconds: what those measurements took that were known.
        passes: what the measurements cost, all samples together.
    """

    scores: NDArray[np.float64]
    is_measured: NDArray[np.bool_]
    seconds: float = 0.0

    @property
    def passes(self) -> float:
        layers = self.scores.shape[1]
        return float((self.is_measured * np.arange(layers, 0, -1)).sum()) / layers


def _settle(
    loaded: Loaded,
    located: Located,
    runs: list[FullRun],
    name: str,
    estimates: list[list[float]],
    count: int,
    trust: float,
    progress: bool,
    kept: Unfinished | None,
) -> _Settled:
    """Measure what is in doubt until the ``count`` lowest layers are known."""
    intervention, scores = INTERVENTIONS[name], np.array(estimates)
    results = Results.of(kept, scores.size)
    settled = _Settled(scores, np.zeros(scores.shape, dtype=bool), results.seconds)

    def measured(sample: int, layer: int) -> float:
        plan = one_row(located.geometry, layer, intervention.cells)
        return divergence_under(loaded.model, located, runs[sample], layer, plan, intervention.distance)

    for sample, layer in track(_in_doubt(scores, settled.is_measured, count, trust), f"{name} near the cut", progress):
        place = sample * scores.shape[1] + layer
        scores[sample, layer] = results.once(place, partial(measured, sample, layer))
        settled.is_measured[sample, layer] = True
    return settled


def _in_doubt(
    scores: NDArray[np.float64], measured: NDArray[np.bool_], count: int, trust: float
) -> Iterator[tuple[int, int]]:
    """(sample, layer) to measure next, until the ``count`` lowest layers are known.

    Both arrays are ``[samples, layers]``; the caller writes each measurement into them before it takes the next pair.
    """
    while True:
        mean, open_part = scores.mean(0), np.where(measured, 0.0, scores).mean(0)
        upper, lower = mean + open_part * (trust - 1), mean - open_part * (1 - 1 / trust)
        order = mean.argsort()  # a tie is either measured in full or at zero, where it costs nothing
        chosen, others = order[:count], order[count:]
        pair = (chosen[upper[chosen].argmax()], others[lower[others].argmin()])
        layer = int(max(pair, key=lambda each: open_part[each]))
        if upper[pair[0]] <= lower[pair[1]] or open_part[layer] == 0:
            return
        yield int(np.where(measured[:, layer], -1.0, scores[:, layer]).argmax()), layer
