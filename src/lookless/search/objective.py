"""How far the next-token distribution moves under a whole plan: what every search over plans minimises.

``lookless.calibrate`` changes one layer at a time. The effect of several changes is not the sum of their effects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from torch import nn

from .. import flops
from ..calibration.distances import Distance, kl
from ..calibration.replay import FullRun, Position, full_runs, run_from
from ..data import Samples
from ..errors import DataError
from ..geometry import Geometry
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..plan import Plan, Provenance
from ..runtime.families import Located, locate


class Effect(NamedTuple):
    """What a plan does to one sample.

    Attributes:
        distance: between the full model's distribution and the plan's, the mean over the rows read.
        risk: ``1 - exp(-K)``, where K is the KL of all rows read together: from 0 to 1. By the inequality of
            Bretagnolle and Huber its root bounds the total variation; unlike K it does not let one answer that is
            lost already outweigh all others.
        changed: at some row read another token is now the most likely: read over the full model's answer, the greedy
            answer has changed.
    """

    distance: float
    risk: float
    changed: bool


class Objective:
    """How far the distribution moves under a plan, in nats: ``objective(plan)``, or ``objective.per_sample(plan)``.

    The full runs are made once and stay on the model's device: the input of every layer, so ``layers x tokens x
    hidden`` numbers per sample. A plan runs from its first changed layer on, and not at all if a plan with the same
    live work was run before. Cells of ``decode`` have no effect here, as nothing is decoded.

    Args:
        loaded: the model, without a plan on it.
        samples: of one task, or of several; those without an image are left out.
        distance: between the full model's logits and the plan's, as in :func:`lookless.sweep`.
        position: where logits are read, as in :func:`lookless.calibrate`.
        progress: show a bar on standard error.

    Attributes:
        evaluations: plans run so far, whole or on some samples; each is at most one pass per sample.
        passes: samples run so far.
        tasks: of each task, the samples of it, as indices of :meth:`effects`.
        visual, text: tokens of a prompt, mean over samples.
        provenance: the model and the samples.

    Raises:
        DataError: no sample of a task has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """

    def __init__(
        self,
        loaded: Loaded,
        samples: Samples | Sequence[Samples],
        *,
        distance: Distance = kl,
        position: Position = "last",
        progress: bool = True,
    ) -> None:
        given = [samples] if isinstance(samples, Samples) else list(samples)
        if not given:
            raise DataError("there are no samples to measure plans on: give those of one task at least.")
        self._model, self._located, self._distance = loaded.model, locate(loaded.model), distance
        self._runs: list[FullRun] = []
        self.tasks: list[range] = []
        for task in given:
            first = len(self._runs)
            self._runs += full_runs(loaded, task, f"full runs on {task.name}", position, progress)
            self.tasks.append(range(first, len(self._runs)))
        self.visual, self.text = map(fmean, zip(*(run.prompt.lengths for run in self._runs), strict=True))
        self.evaluations = self.passes = 0
        self.geometry: Geometry = self._located.geometry
        self._full = Plan.full(self.geometry).live().layers
        self._known: dict[tuple[LayerPlan, ...], dict[int, Effect]] = {
            self._full: dict.fromkeys(range(len(self._runs)), Effect(0.0, 0.0, False))
        }
        together = Samples(" + ".join(task.name for task in given), tuple(item for task in given for item in task))
        self.provenance = Provenance(
            knobs={"distance": getattr(distance, "__name__", "distance"), "position": position},
            model=loaded.name,
            revision=loaded.revision,
            data=together.name,
            data_hash=together.hash,
            sample_hashes=together.hashes,
            seed=given[0].seed,
            samples=len(self._runs),
        )

    def __len__(self) -> int:
        """Samples."""
        return len(self._runs)

    def effects(self, plan: Plan, among: Sequence[int] | None = None) -> tuple[Effect, ...]:
        """What ``plan`` does to each sample, or to those of the indices ``among``.

        Raises:
            PlanMismatchError: the plan is for another architecture.
            ModelError: it ranks by the vision tower, and this family's is not followed to visual tokens.
        """
        plan.check(self.geometry)
        self._located.reads_tower(plan)
        live = plan.live().layers
        self.evaluations += live not in self._known
        known = self._known.setdefault(live, {})
        wanted = range(len(self._runs)) if among is None else among
        for index in wanted:
            if index not in known:
                known[index] = _effect(self._model, self._located, self._runs[index], plan, self._distance)
                self.passes += 1
        return tuple(known[index] for index in wanted)

    def knows(self, plan: Plan) -> bool:
        """Whether a plan with the same live work was run on every sample."""
        return len(self._known.get(plan.live().layers, ())) == len(self._runs)

    def per_sample(self, plan: Plan) -> tuple[float, ...]:
        """The distance of each sample. Raises: as :meth:`effects`."""
        return tuple(effect.distance for effect in self.effects(plan))

    def per_task(self, plan: Plan) -> Iterator[tuple[Effect, ...]]:
        """The effects on the samples of each task. Raises: as :meth:`effects`."""
        effects = self.effects(plan)
        return (effects[task.start : task.stop] for task in self.tasks)

    def __call__(self, plan: Plan) -> float:
        """The mean over tasks of the mean over samples of each."""
        return fmean(fmean(effect.distance for effect in task) for task in self.per_task(plan))

    def kept(self, plan: Plan) -> float:
        """The share of the full model's prefill FLOPs."""
        return share_kept(plan, self.geometry, self.visual, self.text)

    def made_by(self, method: str, **knobs: int | float | str) -> Provenance:
        """The provenance of what ``method`` found here."""
        return self.provenance.model_copy(update={"method": method, "knobs": {**self.provenance.knobs, **knobs}})


def effects_of(
    loaded: Loaded, samples: Samples, plans: Sequence[Plan], *, position: Position = "answer", progress: bool = True
) -> list[list[Effect]]:
    """What each plan does to each sample, ``[plans][samples]``: for many samples and few plans, as a full run is held
    only while the plans run on its sample.

    Raises:
        DataError, ModelError: as :class:`Objective`.
    """
    located = locate(loaded.model)
    found: list[list[Effect]] = [[] for _ in plans]
    for run in full_runs(loaded, samples, f"{len(plans)} plans on {samples.name}", position, progress):
        for plan, effects in zip(plans, found, strict=True):
            effects.append(_effect(loaded.model, located, run, plan, kl))
    return found


def _effect(model: nn.Module, located: Located, run: FullRun, plan: Plan, distance: Distance) -> Effect:
    first = next((layer for layer, row in enumerate(plan.layers) if not row.is_full), None)
    if first is None:
        return Effect(0.0, 0.0, False)
    changed = run_from(model, located, run, first, plan)
    whole = float(kl(run.logits, changed).sum())
    is_changed = bool((run.logits.argmax(-1) != changed.argmax(-1)).any())
    return Effect(float(distance(run.logits, changed).mean()), -math.expm1(-whole), is_changed)


def joint_distance(
    loaded: Loaded, samples: Samples, plan: Plan, *, position: Position = "last", progress: bool = True
) -> float:
    """Mean KL(full || plan) over samples, in nats. For more than one plan keep an :class:`Objective`.

    Raises:
        DataError, PlanError: as :class:`Objective`.
    """
    return Objective(loaded, samples, position=position, progress=progress)(plan)


def share_kept(plan: Plan, geometry: Geometry, visual: float, text: float) -> float:
    """FLOPs of a prefill under ``plan``, as a share of the full model's."""
    dense = flops.prefill(geometry, visual=visual, text=text).total
    return flops.prefill(geometry, visual=visual, text=text, plan=plan).total / dense
