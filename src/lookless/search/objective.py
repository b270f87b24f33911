"""How far the answer moves under a whole plan: what searches over plans ask again and again.

``lookless.calibrate`` changes one layer at a time; what several changes do together is not the sum of what each does.
"""

from __future__ import annotations

from statistics import fmean

from .. import flops
from ..calibration.distances import Distance, kl
from ..calibration.replay import Dense, Position, moved, run_dense, visual_prompts
from ..cells import RANKS
from ..data import Samples
from ..errors import PlanError
from ..geometry import Geometry
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..plan import Plan, Provenance
from ..runtime.families import locate


class Objective:
    """How far the answer moves under any plan, in nats: ``objective(plan)``, or ``objective.per_sample(plan)``.

    The full runs are made once and kept, on the model's device: the input of every layer, so ``layers x tokens x
    hidden`` numbers a sample. A plan then runs from its first changed layer on, and not at all if it does the same live
    work as one before it. Cells of ``decode`` are not seen, as nothing is decoded; nor are samples without an image.

    Attributes:
        evaluations: plans run so far; each is one pass, or the end of one, of each sample.
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
        self._dense: list[Dense] = []
        lengths = []
        prompts = visual_prompts(loaded, self._located, samples, f"full runs on {samples.name}", position, progress)
        for prompt in prompts:
            self._dense.append(run_dense(self._model, self._located, prompt))
            lengths.append(prompt.lengths)
        self.visual, self.text = map(fmean, zip(*lengths, strict=True))
        self.evaluations = 0
        self.geometry: Geometry = self._located.geometry
        self._full = Plan.full(self.geometry).live().layers
        self._known: dict[tuple[LayerPlan, ...], tuple[float, ...]] = {self._full: (0.0,) * len(self._dense)}
        self.provenance = Provenance(
            knobs={"distance": getattr(distance, "__name__", "distance"), "position": position},
            model=loaded.name,
            revision=loaded.revision,
            data=samples.name,
            data_hash=samples.hash,
            sample_hashes=samples.hashes,
            seed=samples.seed,
            samples=len(self._dense),
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
                raise PlanError(f"the plan ranks by {rank}, and a search begins behind the tower: rank by diversity.")
        live = plan.live().layers
        if live not in self._known:
            first = next(layer for layer, row in enumerate(plan.layers) if not row.is_full)
            self._known[live] = tuple(
                moved(self._model, self._located, dense, first, plan, self._distance) for dense in self._dense
            )
            self.evaluations += 1
        return self._known[live]

    def __call__(self, plan: Plan) -> float:
        """Mean over samples."""
        return fmean(self.per_sample(plan))

    def kept(self, plan: Plan) -> float:
        """The share of the dense prefill's FLOPs."""
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
    """FLOPs of a prefill under ``plan`` by those of the dense one."""
    dense = flops.prefill(geometry, visual=visual, text=text).total
    return flops.prefill(geometry, visual=visual, text=text, plan=plan).total / dense
