"""What a page is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import flops
from ..bench.latency import LatencyTable
from ..calibration.attention_maps import AttentionProfiles
from ..calibration.gradients import DIAGNOSTICS
from ..calibration.kept_tokens import KeptTokens
from ..certification.certificate import Certificate
from ..data import AS_IS, Reading
from ..errors import LooklessError
from ..evaluation import Evaluation
from ..geometry import Geometry
from ..optimize.folder import Run
from ..plan import Plan
from ..scores import Scores
from ..search.front import Candidate


@dataclass(frozen=True)
class Point:
    """A plan with what is known of it: one place of the slider.

    Attributes:
        name: ``point 3``, as in the certificate.
        evaluations: by task; empty where its answers were not compared.
    """

    name: str
    candidate: Candidate
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return self.candidate.plan


@dataclass(frozen=True)
class Other:
    """Another method on the same questions.

    Attributes:
        evaluations: by task.
        kept, time: the shares of the prefill's FLOPs and of its time that are left; None if they are not known.
    """

    name: str
    evaluations: Mapping[str, Evaluation]
    kept: float | None = None
    time: float | None = None


@dataclass(frozen=True)
class Material:
    """All that there is; everything may be missing.

    Attributes:
        name: of the run's folder, or of the files, as typed by the user.
        scores: by task and measure.
        points: plans from mild to aggressive: the chain, or else the Pareto front.
        candidates: every plan of the search.
        chosen: the point whose plan is served; None if it is not among them.
        plan: the plan that is served.
        plan_path: its folder or file, as the user would type it.
        examined: the plan whose answers are shown: ``plan``, or where that is the full model's the mildest one tested.
        evaluations: of ``examined``, by task.
        others: other methods on the same questions.
        kept_tokens: which visual tokens ``examined`` leaves alive.
        data: where samples are, by task: a file, or ``reference:TASK``.
        reading: how they are read and scored.
    """

    name: str
    run: Run | None = None
    scores: Mapping[str, Mapping[str, Scores]] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    chosen: int | None = None
    plan: Plan | None = None
    plan_path: str | None = None
    examined: Plan | None = None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    others: tuple[Other, ...] = ()
    latency: LatencyTable | None = None
    certificate: Certificate | None = None
    attention: AttentionProfiles | None = None
    kept_tokens: KeptTokens | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    reading: Reading = AS_IS

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the run; then those that only a file names."""
        named = [*(self.run.tasks if self.run else ()), *self.scores, *self.evaluations]
        named += [task for point in self.points for task in point.candidate.by_task]
        return tuple(dict.fromkeys(named))

    @property
    def all_scores(self) -> tuple[Scores, ...]:
        return tuple(scores for of_task in self.scores.values() for scores in of_task.values())

    @property
    def model(self) -> str | None:
        """The model's name, from whichever file has it."""
        named: list[str | None] = [self.run.model] if self.run else []
        named += [scores.model for scores in self.all_scores]
        named += [evaluation.model for evaluation in self.evaluations.values()]
        named += [self.plan.provenance.model] if self.plan else []
        return next((name for name in named if name), None)

    @property
    def examined_name(self) -> str:
        """``the plan``, or the name of the point that is shown in its place."""
        if self.examined is None or self.plan is None or self.examined.hash == self.plan.hash:
            return "the plan"
        return next((point.name for point in self.points if point.plan.hash == self.examined.hash), "a plan")

    @property
    def geometry(self) -> Geometry | None:
        return next(iter(self._geometries().values()), None)

    def _geometries(self) -> dict[str, Geometry]:
        """By what it is of."""
        found = {"the run": self.run.geometry} if self.run else {}
        found |= {f"the scores {scores.name} of {scores.data}": scores.geometry for scores in self.all_scores}
        plans = {"the plan": self.plan} | {point.name: point.plan for point in self.points}
        found |= {name: plan.geometry for name, plan in plans.items() if plan and plan.geometry}
        return found

    @property
    def tokens(self) -> tuple[float, float] | None:
        """Visual and text tokens of a prompt, mean over the tasks that were scored."""
        scored = [s for s in self.all_scores if s.name not in DIAGNOSTICS] or self.all_scores
        counts = [(s.visual, s.text) for s in scored if s.visual is not None and s.text is not None]
        return (sum(v for v, _ in counts) / len(counts), sum(t for _, t in counts) / len(counts)) if counts else None

    def candidate(self, plan: Plan | None) -> Candidate | None:
        """What a search knows of ``plan``; None if it did not run it."""
        known = (*(point.candidate for point in self.points), *self.candidates)
        return None if plan is None else next((one for one in known if one.plan.hash == plan.hash), None)

    def share(self, plan: Plan | None) -> float | None:
        """The share of the prefill's FLOPs that runs under ``plan``, as a search has it, or else for the mean prompt;
        None if that or the token counts are not known."""
        candidate = self.candidate(plan)
        if candidate is not None:
            return candidate.kept
        if self.geometry is None or self.tokens is None or plan is None or not plan.is_static:
            return None
        visual, text = self.tokens
        dense = flops.prefill(self.geometry, visual=visual, text=text).total
        return flops.prefill(self.geometry, visual=visual, text=text, plan=plan.live()).total / dense

    def time(self, plan: Plan | None) -> float | None:
        """The share of the prefill's time under ``plan``, by the latency table; None if it is not known."""
        candidate = self.candidate(plan)
        if candidate is not None and candidate.time is not None:
            return candidate.time
        return None if self.latency is None or plan is None or not plan.is_static else self.latency.share(plan)

    def other(self, name: str, plan: Plan, evaluations: Mapping[str, Evaluation]) -> Other:
        """Another method whose plan is known."""
        return Other(name, evaluations, self.share(plan), self.time(plan))

    def checked(self) -> Material:
        """This material, if all of it is of one model.

        Raises:
            LooklessError: two files are of different architectures.
        """
        known = self._geometries()
        first = next(iter(known), None)
        for name, geometry in known.items():
            if first is not None and geometry != known[first]:
                raise LooklessError(
                    f"{first} and {name} are of different architectures ({known[first]}; {geometry}): a page shows one "
                    f"model, so make one for each."
                )
        if self.plan and self.geometry and len(self.plan.layers) != self.geometry.layers:
            raise LooklessError(
                f"the plan has {len(self.plan.layers)} layers and the model {self.geometry.layers}: a page shows one "
                f"model, so give the plan that was made for it."
            )
        return self
