"""All layers estimated at once, and only those near the cut measured: calibration for a fraction of its passes.

A method that takes the N lowest layers needs no score but the order around N. So every layer is estimated first, both
operators together, by one forward and one backward pass a sample; then one-layer runs settle who is in and who is out.

**The estimate.** Skipping an operator takes its update ``op(i)`` of the visual tokens i from the residual stream. To
second order KL(p || skipped) is the Fisher form 1/2 E_{y~p} (sum over i of <d log p(y) / d op(i), op(i)>)^2. To sample
y is hopeless where the model is sure: at p = 0.9999 all draws are the same answer, whose log-probability hardly has a
slope, and nearly all of the form sits in answers drawn once in ten thousand times. Nor is that slope a number to
compute with: it is 1 - p, which rounding eats. So answers are told apart in two, the likeliest and all the others, and
their log-odds o = z - log sum exp(other z) is what is differentiated. Then the expectation over y is exact and needs
one backward pass: the form is p (1 - p) u^2 / 2, with u = sum over i of <d o / d op(i), op(i)>. It is the divergence of
two answers as u tends to 0; as a skip is no small change we take that divergence itself, between the odds o and o - u,
in the measure's own direction. Two departures from the full form: what moves among the other answers is not seen, so it
errs low (to group answers can only lessen a divergence), and o is followed along a straight line.

**The cut.** An estimate is trusted to a factor (:data:`TRUST`), so a layer's mean lies between bounds. While the bounds
of a chosen and of a left-out layer overlap, the wider of the two that overlap most is measured, in the sample
from which most of its mean is to come. A mean of divergences is made by a few samples, so bounds close in a few runs; a
run from layer l on costs (L - l) / L of a pass. This is LUCB (Kalyanakrishnan et al., ICML 2012) with bounds that are
ours and no guarantee: an estimate that is wrong by more than the factor can misplace its layer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

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
from ..progress import shown
from ..runtime.families import Located, locate
from ..scores import Scores
from .distances import kl, reverse_kl
from .gradients import lent, pulls, slopes
from .replay import Dense, Position, VisualPrompt, check_finite, dense_of, moved, one_row, visual_prompts, watched
from .sweep import MEASURES, Measure, scores_of

#: divergences when what an operator adds is taken away, which is what can be estimated
SCREENED = tuple(
    name
    for name, measure in MEASURES.items()
    if {measure.cells.attention, measure.cells.ffn} <= {Full(), Skip()}
    and measure.cells == LayerPlan(attention=measure.cells.attention, ffn=measure.cells.ffn)
    and measure.distance in (kl, reverse_kl)
)
#: an estimate is taken to be within this factor of the score, either way
TRUST = 4.0


def screen(
    loaded: Loaded,
    samples: Samples,
    lowest: Mapping[str, int],
    *,
    position: Position = "last",
    trust: float = TRUST,
    progress: bool = True,
) -> dict[str, Scores]:
    """Scores that name the lowest layers of some measures as :func:`lookless.calibrate` would, for fewer passes::

        scores = screen(loaded, samples, {"visual_information_gain": 7, "ffn_effect": 7})
        plan = v_skip(scores["visual_information_gain"], layers=7)

    All measures share one forward and one backward pass a sample; the full runs are kept meanwhile, on the model's
    device, so ``layers x tokens x hidden`` numbers a sample.

    Args:
        loaded: the model, without a plan on it. Its parameters are lent: gradients go to activations alone.
        samples: those without an image are left out.
        lowest: of each measure, one of :data:`SCREENED`, how many layers are to be told from the others.
        position: as :func:`lookless.calibrate` has it; ``answer`` takes a backward pass for each token of the answer.
        trust: an estimate is taken to be within this factor of the score. At 1 nothing is measured.
        progress: show a bar on standard error.

    Returns:
        Scores by measure, in nats: :attr:`Scores.measured` says which were measured, :attr:`Scores.passes` what they
        cost; with several measures both the shared passes and ``seconds`` are told with each.

    Raises:
        ScoresError: a measure that cannot be screened; a number of layers that is not between 1 and one less than the
            model has; ``trust`` below 1.
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """
    started, located = time.perf_counter(), locate(loaded.model)
    _check(lowest, len(located.layers), trust)
    runs: list[Dense] = []
    estimates: dict[str, list[list[float]]] = {name: [] for name in lowest}
    backward = 0
    prompts = visual_prompts(loaded, located, samples, f"estimates on {samples.name}", position, progress)
    for prompt in prompts:
        dense, rows = _estimated(loaded.model, located, prompt, {n: MEASURES[n] for n in lowest})
        runs.append(dense)
        backward += prompt.read.stop - prompt.read.start
        for name, row in rows.items():
            estimates[name].append(row)
    found = {}
    for name, count in lowest.items():
        cells, distance = MEASURES[name].cells, MEASURES[name].distance
        scores: NDArray[np.float64] = np.array(estimates[name])
        layers = len(located.layers)
        measured = np.zeros(scores.shape, dtype=bool)
        for sample, layer in shown(_in_doubt(scores, measured, count, trust), f"{name} near the cut", progress):
            plan = one_row(located.geometry, layer, cells)
            scores[sample, layer] = moved(loaded.model, located, runs[sample], layer, plan, distance)
            measured[sample, layer] = True
        layers_run = float((measured * np.arange(layers, 0, -1)).sum()) / layers
        lengths = [run.prompt.lengths for run in runs]
        found[name] = scores_of(
            loaded, samples, name, scores.tolist(), lengths, position=position, started=started
        ).model_copy(
            update={
                "measured": tuple(map(tuple, measured.tolist())),
                "passes": 1 + (backward + layers_run) / len(runs),
            }
        )
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
                f"screening tells the {count} lowest layers of {name} from the others, and the model has {layers}: "
                f"give 1 to {layers - 1}."
            )
    if not trust >= 1:
        raise ScoresError(f"estimates are trusted to a factor of {trust:g}: give 1 or more.")


def _estimated(
    model: nn.Module,
    located: Located,
    prompt: VisualPrompt,
    measures: Mapping[str, Measure],
) -> tuple[Dense, dict[str, list[float]]]:
    """The full run of one prompt, and of each measure an estimate per layer, in nats."""
    with lent(model), watched(located) as seen, torch.enable_grad():
        last = located.inner(**prompt.inputs, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(last[0, prompt.read]).float()  # type: ignore[operator]
        check_finite(logits, "the full model", prompt.name)
        odds = _log_odds(logits)
        rows = prompt.visual.to(last.device)
        by_row = []  # of each row read, what each operator pulls at the odds
        for i, told in enumerate(odds):
            at_attention, at_ffn = slopes(told, seen, again=i + 1 < len(odds))
            by_row.append(
                {
                    (True, False): pulls(at_attention, seen.attention, rows),
                    (False, True): pulls(at_ffn, seen.ffn, rows),
                    # Without its attention the FFN adds something else; without both, both updates are gone behind it.
                    (True, True): np.add(pulls(at_ffn, seen.attention, rows), pulls(at_ffn, seen.ffn, rows)).tolist(),
                }
            )
    whole = odds.detach().double().cpu()[:, None]  # [rows read, 1]
    found = {}
    for name, measure in measures.items():
        skipped = (measure.cells.attention == Skip(), measure.cells.ffn == Skip())
        pull = torch.tensor([row[skipped] for row in by_row], dtype=torch.float64)  # [rows read, layers]
        found[name] = measure.distance(_of_two(whole), _of_two(whole - pull)).mean(0).tolist()
    return dense_of(model, located, prompt, seen), found


def _log_odds(logits: Tensor) -> Tensor:
    """Of the likeliest token against all others, of ``[rows, vocabulary]``: ``[rows]``."""
    top = logits.argmax(-1, keepdim=True)
    others = logits.scatter(-1, top, -torch.inf).logsumexp(-1)
    return logits.gather(-1, top)[:, 0] - others


def _of_two(odds: Tensor) -> Tensor:
    """Log-probabilities ``[..., 2]`` of an answer and of all others, by its log-odds."""
    return torch.stack((F.logsigmoid(odds), F.logsigmoid(-odds)), dim=-1)


def _in_doubt(
    scores: NDArray[np.float64], measured: NDArray[np.bool_], count: int, trust: float
) -> Iterator[tuple[int, int]]:
    """(sample, layer) to measure next, until the ``count`` lowest layers are told from the others.

    Both arrays are ``[samples, layers]``; whoever asks writes what was measured there before asking again.
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
