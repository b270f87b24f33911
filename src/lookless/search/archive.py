"""Plans that are run once, and given up as soon as it is certain that they are no better."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from time import perf_counter

from ..layer_plan import LayerPlan
from ..plan import Plan, Provenance
from .additive import blend
from .front import Candidate, Front, Gain, Price, within
from .greedy import SLACK
from .objective import Effect, Objective
from .price import Pricing

SAVE_S = 20.0  #: seconds between two writings of the front


@dataclass
class Archive:
    """All plans of a search.

    Attributes:
        objective: measures plans; the search sees its samples alone.
        tasks: their names.
        kept, time: prices in FLOPs, and in milliseconds where they were measured.
        price: what budgets are of.
        path: where the front is written as it grows; None: nowhere.
        candidates: plans that were run on all samples.
        gains: what each step of the search reached.
    """

    objective: Objective
    tasks: tuple[str, ...]
    kept: Pricing
    time: Pricing | None = None
    price: Price = "kept"
    path: Path | None = None
    candidates: dict[tuple[LayerPlan, ...], Candidate] = field(default_factory=dict)
    gains: list[Gain] = field(default_factory=list)
    provenance: Provenance | None = None
    spent: int = 0  #: evaluations of earlier runs, which this one resumes
    seconds: float = 0.0
    _started: float = field(default_factory=perf_counter)
    _saved: float = field(default_factory=perf_counter)
    _sums: dict[int, float] = field(default_factory=dict)

    @property
    def pricing(self) -> Pricing:
        """Of the price that budgets are of."""
        return self.kept if self.price == "kept" or self.time is None else self.time

    @property
    def evaluations(self) -> int:
        return self.spent + self.objective.evaluations

    def share(self, plan: Plan) -> float:
        """The price of ``plan``."""
        return self.pricing.share(plan.layers)

    def best(self, budget: float) -> Candidate | None:
        """The plan of the lowest risk within ``budget``; None if there is none yet."""
        return within(self.candidates.values(), budget, self.price)

    def add(self, plan: Plan, found_by: str, *, than: float = float("inf")) -> Candidate | None:
        """Run ``plan`` on all samples, unless its risk is sure to be above ``than`` before: None then.

        Risks are not negative, so what the samples run so far add up to is a lower bound. The samples that tell most
        come first.

        Raises: as :meth:`lookless.search.Objective.effects`.
        """
        live = plan.live().layers
        if live in self.candidates:
            return self.candidates[live]
        effects: dict[int, Effect] = {}
        for index in self._order():
            [effects[index]] = self.objective.effects(plan, [index])
            if self._least(effects) > than + SLACK:
                break
        for index, effect in effects.items():
            self._sums[index] = self._sums.get(index, 0.0) + effect.risk
        if len(effects) < len(self.objective):
            return None
        made = self._candidate(plan, effects, found_by)
        self.candidates[live] = made
        if self.path is not None and perf_counter() - self._saved > SAVE_S:
            self.save()
        return made

    def _order(self) -> list[int]:
        """Samples, those first that plans so far have changed most; before that, one of each task in turn."""
        places = {index: place for task in self.objective.tasks for place, index in enumerate(task)}
        return sorted(places, key=lambda index: (-self._sums.get(index, 0.0), places[index]))

    def _least(self, effects: dict[int, Effect]) -> float:
        """The least that the risk can be, given those of some samples."""
        return blend([sum(effects[i].risk for i in task if i in effects) / len(task) for task in self.objective.tasks])

    def _candidate(self, plan: Plan, effects: dict[int, Effect], found_by: str) -> Candidate:
        tasks = [[effects[index] for index in task] for task in self.objective.tasks]
        distances = [fmean(effect.distance for effect in task) for task in tasks]
        return Candidate(
            plan=plan.model_copy(update={"provenance": Provenance(), "geometry": self.objective.geometry}),
            kept=self.kept.share(plan.layers),
            time=None if self.time is None else self.time.share(plan.layers),
            distance=fmean(distances),
            by_task=dict(zip(self.tasks, distances, strict=True)),
            risk=blend([fmean(effect.risk for effect in task) for task in tasks]),
            fidelity=fmean(fmean(not effect.changed for effect in task) for task in tasks),
            found_by=found_by,
        )

    def gained(self, step: str, budget: float, evaluations: int) -> None:
        """Note what has been reached within ``budget`` at the end of ``step``, which ran so many plans."""
        best = self.best(budget)
        if best is not None:
            gain = Gain(
                step=step,
                budget=budget,
                risk=best.risk,
                distance=best.distance,
                found_by=best.found_by,
                evaluations=evaluations,
            )
            self.gains.append(gain)
        self.save()

    def has(self, step: str, budget: float) -> bool:
        """Whether ``step`` is done for ``budget``."""
        return any(gain.step == step and gain.budget == budget for gain in self.gains)

    def front(self) -> Front:
        return Front(
            provenance=self.provenance or self.objective.made_by("joint"),
            evaluations=self.evaluations,
            seconds=self.seconds + perf_counter() - self._started,
            price=self.price,
            tasks=self.tasks,
            candidates=tuple(self.candidates.values()),
            gains=tuple(self.gains),
        )

    def save(self) -> Front:
        """The front, which is written too if there is a place for it."""
        self._saved, front = perf_counter(), self.front()
        if self.path is not None:
            front.save(self.path)
        return front

    def resume(self, front: Front, *, is_same: bool) -> None:
        """Take over plans that were run on the same samples, at this search's prices; and the steps of the same
        search."""
        for one in front.candidates:
            rows = one.plan.layers
            time = None if self.time is None else self.time.share(rows)
            priced = one.model_copy(update={"kept": self.kept.share(rows), "time": time})
            self.candidates[one.plan.live().layers] = priced
        self.spent, self.seconds = front.evaluations, front.seconds
        self.gains = list(front.gains) if is_same else []
