"""How far the next-token distribution moves under a whole plan: what every search over plans minimises.

``lookless.calibrate`` changes one layer at a time. The effect of several changes is not the sum of their effects.
"""

from __future__ import annotations

from statistics import fmean

from .. import flops
from ..calibration.distances import Distance, kl
from ..calibration.replay import Position, divergence_under, full_runs
from ..data import Samples
from ..errors import PlanError
from ..geometry import Geometry
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..plan import Plan, Provenance
from ..ranks import RANKS
from ..runtime.families import locate


class Objective:
    """How far the distribution moves under a plan, in nats: ``objective(plan)``, or ``objective.per_sample(plan)``.

    The full runs are made once and stay on the model's device: the input of every layer, so ``layers x tokens x
    hidden`` numbers per sample. A plan runs from its first changed layer on, and not at all if a plan with the same
    live work was run before. Cells of ``decode`` have no effect here, as nothing is decoded.

    Args:
        loaded: the model, without a plan on it.
        samples: those without an image are left out.
        distance: between the full model's logits and the plan's, as in :func:`lookless.sweep`.
        position: where logits are read, as in :func:`lookless.calibrate`.
        progress: show a bar on standard error.

    Attributes:
        evaluations: plans run so far; each is at most one pass per sample.
        visual, text: tokens of a prompt, mean over samples.
        provenance: the model and the samples.

    Raises:
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """

    def __init__(
        self,
        loaded: Loaded,
        samples: Samples,
        *,
        distance: Distance = kl,
        position: Position = "last",
        progress: bool = True,
    ) -> None:
        self._model, self._located, self._distance = loaded.model, locate(loaded.model), distance
        self._runs = list(full_runs(loaded, samples, f"full runs on {samples.name}", position, progress))
        self.visual, self.text = map(fmean, zip(*(run.prompt.lengths for run in self._runs), strict=True))
        self.evaluations = 0
        self.geometry: Geometry = self._located.geometry
        self._full = Plan.full(self.geometry).live().layers
        self._known: dict[tuple[LayerPlan, ...], tuple[float, ...]] = {self._full: (0.0,) * len(self._runs)}
        self.provenance = Provenance(
            knobs={"distance": getattr(distance, "__name__", "distance"), "position": position},
            model=loaded.name,
            revision=loaded.revision,
            data=samples.name,
            data_hash=samples.hash,
            sample_hashes=samples.hashes,
            seed=samples.seed,
            samples=len(self._runs),
        )

    def per_sample(self, plan: Plan) -> tuple[float, ...]:
        """The distance of each sample.

        Raises:
            PlanMismatchError: the plan is for another architecture.
            PlanError: it ranks by the vision tower, which does not run again.
        """
        plan.check(self.geometry)
        ranks = {rank for row in plan.layers for rank in row.ranks}
        for rank in sorted(ranks):
            if RANKS[rank].reads == "tower":
                raise PlanError(f"the plan ranks by {rank}, and a search starts after the tower: rank by diversity.")
        live = plan.live().layers
        if live not in self._known:
            first = next(layer for layer, row in enumerate(plan.layers) if not row.is_full)
            self._known[live] = tuple(
                divergence_under(self._model, self._located, run, first, plan, self._distance) for run in self._runs
            )
            self.evaluations += 1
        return self._known[live]

    def __call__(self, plan: Plan) -> float:
        """Mean over samples."""
        return fmean(self.per_sample(plan))

    def kept(self, plan: Plan) -> float:
        """The share of the full model's prefill FLOPs."""
        return share_kept(plan, self.geometry, self.visual, self.text)

    def made_by(self, method: str, **knobs: int | float | str) -> Provenance:
        """The provenance of what ``method`` found here."""
        return self.provenance.model_copy(update={"method": method, "knobs": {**self.provenance.knobs, **knobs}})


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
