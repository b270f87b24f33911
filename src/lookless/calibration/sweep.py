"""Where does looking matter? A sweep of one-row plans.

Change one layer, leave the rest, and measure how far the next-token distribution moves. V-Skip's visual information
gain, ShortV's layer contribution and operator skipping's intervention risks are this one experiment with different
interventions. A changed run starts at the recorded input of its layer (:mod:`lookless.calibration.replay`), so a sweep
costs about 1 + L/2 passes, not L + 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from ..cells import Keep, Neurons, Skip, Window
from ..data import Samples
from ..each import each
from ..errors import ScoresError
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..processes import Worker, team_of
from ..runtime.families import locate
from ..scores import Scores
from ..unfinished import Unfinished
from ..version import __version__
from .distances import Distance, kl, reverse_kl, turn
from .replay import Named, Position, VisualPrompt, divergence_under, full_run, one_row, prompts_from, with_images

#: Of one prompt: a number for each layer, by measure.
Rows = dict[str, list[float]]


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
    """How far the next-token distribution moves when ``cells`` are in force in one layer, for each layer.

    Args:
        loaded: the model, without a plan on it.
        samples: those without an image are left out.
        cells: what visual tokens do in the changed layer.
        name: of the scores.
        distance: from the full model's logits to the changed one's, both float32 ``[rows, vocabulary]``; one number
            per row. (A distance of probabilities starts with ``log_softmax``, as :func:`kl` does.)
        unit: of the distance.
        position: read the distribution at the ``last`` prompt token, or at every token of the full model's own greedy
            ``answer`` (at most 32), and take the mean.
        progress: show a bar on standard error.

    Raises:
        DataError, ModelError: as :func:`calibrate`.
        PlanError: the cells rank by the previous layer, which the first layer does not have, or by the vision tower,
            which only the first can.
    """
    change = Intervention(name, cells, distance, unit)
    return swept(loaded, samples, {name: change}, position=position, progress=progress)[name]


def swept(
    loaded: Loaded,
    samples: Samples,
    changes: Mapping[str, Intervention],
    *,
    position: Position = "last",
    progress: bool = True,
    kept: Unfinished | None = None,
) -> dict[str, Scores]:
    """The scores of several changes by name, with one full run of each sample for all of them.

    Args: as :func:`measured`. Raises: as :func:`sweep`.
    """
    units = {name: change.unit for name, change in changes.items()}
    rows = partial(changes_of, changes=changes)
    return measured(loaded, samples, rows, units, position=position, progress=progress, kept=kept)


def changes_of(loaded: Loaded, prompt: VisualPrompt, *, changes: Mapping[str, Intervention]) -> Rows:
    """How far each change, in each layer, moves the distribution of one prompt."""
    located = locate(loaded.model)
    full = full_run(loaded.model, located, prompt)
    layers = range(len(located.layers))

    def moved(change: Intervention, layer: int) -> float:
        plan = one_row(located.geometry, layer, change.cells)
        return divergence_under(loaded.model, located, full, layer, plan, change.distance)

    return {name: [moved(change, layer) for layer in layers] for name, change in changes.items()}


def measured(
    loaded: Loaded,
    samples: Samples,
    rows: Callable[[Loaded, VisualPrompt], Rows],
    units: Mapping[str, str],
    *,
    position: Position,
    progress: bool,
    kept: Unfinished | None = None,
) -> dict[str, Scores]:
    """Scores by name, of what ``rows`` measures on each sample with an image.

    Args:
        rows: what is measured on one prompt; where the samples are split over processes, a function of a module.
        units: of each of its measures.
        position: where distributions are read.
        progress: show a bar on standard error.
        kept: where the numbers of each sample are kept as they come, and those of a run that was killed are found.

    Raises: what ``rows`` raises; DataError, ModelError: as :func:`calibrate`.
    """
    started, named = time.perf_counter(), with_images(samples)
    if kept is not None:
        kept = kept.of("sample", loaded.fingerprint, samples.hash, position, sorted(units), __version__)
        started -= kept.known(len(named))[1]
    work = partial(_measuring, rows=rows, position=position)
    what = f"{' and '.join(units) if len(units) < 3 else f'{len(units)} measures'} on {samples.name}"
    found = each(team_of(loaded), named, work, what=what, progress=progress, kept=kept)
    lengths = [(visual, text) for (visual, text), _ in found]
    return {
        name: scores_of(
            loaded, samples, name, [of[name] for _, of in found], lengths, position=position, started=started, unit=unit
        )
        for name, unit in units.items()
    }


def _measuring(
    worker: Worker, named: Iterable[Named], *, rows: Callable[[Loaded, VisualPrompt], Rows], position: Position
) -> Iterator[tuple[tuple[int, int], Rows]]:
    for prompt in prompts_from(worker.loaded, named, position):
        yield prompt.lengths, rows(worker.loaded, prompt)


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
    """``table`` as the scores of ``loaded`` on ``samples``.

    Args:
        table: ``[samples][layers]``.
        lengths: of each prompt, :attr:`lookless.calibration.replay.VisualPrompt.lengths`.
        started: ``perf_counter()`` when the work began.
    """
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


@dataclass(frozen=True)
class Intervention:
    """A sweep with a name: what is changed in one layer, and how the change of the distribution is measured."""

    what: str
    cells: LayerPlan
    distance: Distance = kl
    unit: str = "nats"


_SKIP = Skip()
INTERVENTIONS: dict[str, Intervention] = {
    "visual_information_gain": Intervention("visual attention skipped (V-Skip, Eq. 3)", LayerPlan(attention=_SKIP)),
    "ffn_effect": Intervention("visual FFN skipped", LayerPlan(ffn=_SKIP)),
    "freeze_effect": Intervention("both skipped", LayerPlan(attention=_SKIP, ffn=_SKIP)),
    "layer_contribution": Intervention("both skipped (ShortV's LC)", LayerPlan(attention=_SKIP, ffn=_SKIP), reverse_kl),
    "reading_effect": Intervention("text does not read visual keys", LayerPlan(visible=_SKIP)),
    "withdrawal": Intervention("image withdrawn from this layer on (VTW)", LayerPlan(keep=Keep(0)), reverse_kl),
    "window_effect": Intervention("visual attention in a window (RedundancyLens)", LayerPlan(attention=Window(256))),
    "neuron_effect": Intervention("a fifth of the neurons (RedundancyLens)", LayerPlan(ffn=Neurons(0.2, probe=0.1))),
    "logit_cosine": Intervention(
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
    """How much each layer matters, by one of :data:`INTERVENTIONS`.

    The default is the visual information gain, KL(full || visual attention of the layer skipped): V-Skip (arXiv
    2606.08511), Eq. 3. The paper does not say where the distribution is read; its predecessors (ShortV, VTW) read the
    next token at the last prompt position, ``position="last"``. ``"answer"`` reads every token of the full model's
    greedy answer, and so sees what later answer tokens look up.

    Args:
        loaded: the model, without a plan on it.
        samples: those without an image are left out.
        measure: a name in :data:`INTERVENTIONS`.
        position: where the distribution is read.
        progress: show a bar on standard error.

    Returns:
        One score per sample and layer, in the intervention's unit (nats by default).

    Raises:
        ScoresError: no such measure.
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """
    check_measure(measure, INTERVENTIONS)
    chosen = {measure: INTERVENTIONS[measure]}
    return swept(loaded, samples, chosen, position=position, progress=progress)[measure]


def check_measure(name: str, known: Collection[str]) -> None:
    """Raises: ScoresError: ``name`` is not one of ``known``."""
    if name not in known:
        raise ScoresError(f"no measure is called {name!r}; choose one of {', '.join(known)}.")
