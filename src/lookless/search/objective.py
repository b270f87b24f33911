"""How far the next-token distribution moves under a whole plan: what every search over plans minimises.

``lookless.calibrate`` changes one layer at a time. The effect of several changes is not the sum of their effects.
"""

from __future__ import annotations

import math
import secrets
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from statistics import fmean
from typing import NamedTuple

from .. import flops
from ..calibration.distances import Distance, kl
from ..calibration.replay import FullRun, Named, Position, run_from, runs_from, with_images
from ..data import Samples
from ..each import each
from ..errors import DataError
from ..geometry import Geometry
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..plan import Plan
from ..processes import Worker, team_of
from ..provenance import Provenance
from ..runtime.families import Located, locate

#: Samples that each process runs ahead of a caller who may stop.
AHEAD = 2


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
    hidden`` numbers per sample. Of several processes each holds its share of them, and runs plans on those. A plan runs
    from its first changed layer on, and not at all if a plan with the same live work was run before. Cells of
    ``decode`` have no effect here, as nothing is decoded.

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
        self._located, self._distance = locate(loaded.model), distance
        self._team, self._key = team_of(loaded), secrets.token_hex(8)
        weakref.finalize(self, self._team.release, self._key)
        named = [with_images(task) for task in given]
        ends = list(accumulate(map(len, named), initial=0))
        self.tasks = [range(first, end) for first, end in pairwise(ends)]
        lengths = each(
            self._team,
            [one for task in named for one in task],
            partial(_holding, key=self._key, position=position),
            what=f"full runs on {' + '.join(task.name for task in given)}",
            progress=progress,
        )
        self._samples = len(lengths)
        self.visual, self.text = map(fmean, zip(*lengths, strict=True))
        self.evaluations = self.passes = 0
        self.geometry: Geometry = self._located.geometry
        self._full = Plan.full(self.geometry).live().layers
        self._known: dict[tuple[LayerPlan, ...], dict[int, Effect]] = {
            self._full: dict.fromkeys(range(self._samples), Effect(0.0, 0.0, False))
        }
        self.count_anew(())
        together = Samples(" + ".join(task.name for task in given), tuple(item for task in given for item in task))
        self.provenance = Provenance(
            knobs={"distance": getattr(distance, "__name__", "distance"), "position": position},
            model=loaded.name,
            revision=loaded.revision,
            data=together.name,
            data_hash=together.hash,
            sample_hashes=together.hashes,
            seed=given[0].seed,
            samples=self._samples,
        )

    def __len__(self) -> int:
        """Samples."""
        return self._samples

    def effects(self, plan: Plan, among: Sequence[int] | None = None) -> tuple[Effect, ...]:
        """What ``plan`` does to each sample, or to those of the indices ``among``.

        Raises:
            PlanMismatchError: the plan is for another architecture.
            ModelError: it ranks by the vision tower, and this family's is not followed to visual tokens.
        """
        known = self._begin(plan)
        wanted = range(self._samples) if among is None else among
        missing = [index for index in wanted if index not in known]
        self.passes += len(missing)
        known |= self._run(plan, missing)
        return tuple(known[index] for index in wanted)

    def in_turn(self, plan: Plan, order: Sequence[int]) -> Iterator[tuple[int, Effect]]:
        """What ``plan`` does to each sample of ``order``, for a caller who may stop.

        Several processes run some samples ahead. What the caller does not ask for is forgotten, so that all is as if
        one sample had been run after the other.

        Raises: as :meth:`effects`.
        """
        known = self._begin(plan)
        ahead = self._team.size * AHEAD if self._team.size > 1 else 1
        for first in range(0, len(order), ahead):
            some = order[first : first + ahead]
            found = self._run(plan, [index for index in some if index not in known])
            for index in some:
                if index in found:
                    self.passes += 1
                    known[index] = found[index]
                yield index, known[index]

    def _begin(self, plan: Plan) -> dict[int, Effect]:
        """What is known of ``plan``, which is to be run."""
        plan.check(self.geometry)
        self._located.reads_tower(plan)
        live = plan.live().layers
        self.evaluations += live not in self._counted
        self._counted.add(live)
        return self._known.setdefault(live, {})

    def count_anew(self, but: Iterable[tuple[LayerPlan, ...]]) -> None:
        """From here on plans count as evaluations again, ``but`` some live rows: so that a search that goes on counts
        as one that was not interrupted, which remembers more of what it ran."""
        self._counted = {self._full, *but}

    def _run(self, plan: Plan, samples: Sequence[int]) -> dict[int, Effect]:
        """The effect on each sample, run where its full run is held."""
        run = partial(_running, key=self._key, plan=plan, distance=self._distance)
        places, owners = (
            zip(*(divmod(index, self._team.size) for index in samples), strict=True) if samples else ((), ())
        )
        return dict(zip(samples, each(self._team, places, run, at=owners), strict=True))

    def knows(self, plan: Plan) -> bool:
        """Whether a plan with the same live work was run on every sample."""
        return len(self._known.get(plan.live().layers, ())) == self._samples

    def per_sample(self, plan: Plan) -> tuple[float, ...]:
        """The distance of each sample under ``plan``. Raises: as :meth:`effects`."""
        return tuple(effect.distance for effect in self.effects(plan))

    def per_task(self, plan: Plan) -> Iterator[tuple[Effect, ...]]:
        """The effects of ``plan`` on the samples of each task. Raises: as :meth:`effects`."""
        effects = self.effects(plan)
        return (effects[task.start : task.stop] for task in self.tasks)

    def __call__(self, plan: Plan) -> float:
        """The mean over tasks of the mean over samples of each."""
        return fmean(fmean(effect.distance for effect in task) for task in self.per_task(plan))

    def kept(self, plan: Plan) -> float:
        """The share of the full model's prefill FLOPs that ``plan`` keeps."""
        return share_kept(plan, self.geometry, self.visual, self.text)

    def made_by(self, method: str, **knobs: int | float | str) -> Provenance:
        """The provenance of what ``method`` found here with ``knobs``."""
        return self.provenance.model_copy(update={"method": method, "knobs": {**self.provenance.knobs, **knobs}})


def effects_of(
    loaded: Loaded, samples: Samples, plans: Sequence[Plan], *, position: Position = "answer", progress: bool = True
) -> list[list[Effect]]:
    """What each plan does to each sample, ``[plans][samples]``: for many samples and few plans, as a full run is held
    only while the plans run on its sample.

    Raises:
        DataError, ModelError: as :class:`Objective`.
    """
    named = with_images(samples)
    compare = partial(_comparing, plans=plans, position=position)
    what = f"{len(plans)} plans on {samples.name}"
    rows = each(team_of(loaded), named, compare, what=what, progress=progress)
    return [list(of_plan) for of_plan in zip(*rows, strict=True)]


class _Held(NamedTuple):
    """Full runs that a process holds: of n processes every n-th sample's."""

    located: Located
    runs: list[FullRun]


def _holding(worker: Worker, named: Iterable[Named], *, key: str, position: Position) -> Iterator[tuple[int, int]]:
    """Make the full run of each sample, hold it under ``key``, and tell the prompt's lengths."""
    held = _Held(locate(worker.loaded.model), [])
    worker.held[key] = held
    for run in runs_from(worker.loaded, named, position):
        held.runs.append(run)
        yield run.prompt.lengths


def _running(worker: Worker, places: Iterable[int], *, key: str, plan: Plan, distance: Distance) -> Iterator[Effect]:
    """The effect of ``plan`` on the full runs at ``places`` of those held under ``key``."""
    located, runs = worker.held[key]
    for place in places:
        yield _effect(worker.loaded, located, runs[place], plan, distance)


def _comparing(
    worker: Worker, named: Iterable[Named], *, plans: Sequence[Plan], position: Position
) -> Iterator[list[Effect]]:
    """The effect of each of ``plans`` on each sample."""
    located = locate(worker.loaded.model)
    for run in runs_from(worker.loaded, named, position):
        yield [_effect(worker.loaded, located, run, plan, kl) for plan in plans]


def _effect(loaded: Loaded, located: Located, run: FullRun, plan: Plan, distance: Distance) -> Effect:
    first = next((layer for layer, row in enumerate(plan.layers) if not row.is_full), None)
    if first is None:
        return Effect(0.0, 0.0, False)
    changed = run_from(loaded.model, located, run, first, plan)
    whole = float(kl(run.logits, changed).sum())
    is_changed = bool((run.logits.argmax(-1) != changed.argmax(-1)).any())
    return Effect(float(distance(run.logits, changed).mean()), -math.expm1(-whole), is_changed)


def joint_distance(
    loaded: Loaded, samples: Samples, plan: Plan, *, position: Position = "last", progress: bool = True
) -> float:
    """Mean KL(full || plan) over samples, in nats. For more than one plan keep an :class:`Objective`.

    ``loaded``, ``position`` and ``progress`` are as there.

    Raises:
        DataError, PlanError: as :class:`Objective`.
    """
    return Objective(loaded, samples, position=position, progress=progress)(plan)


def share_kept(plan: Plan, geometry: Geometry, visual: float, text: float) -> float:
    """FLOPs of a prefill under ``plan``, as a share of the full model's."""
    dense = flops.prefill(geometry, visual=visual, text=text).total
    return flops.prefill(geometry, visual=visual, text=text, plan=plan).total / dense
