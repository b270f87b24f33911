"""Plans that are run once, sample by sample, and given up as soon as they are worse than the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from time import perf_counter

from ..layer_plan import LayerPlan
from ..plan import Plan
from ..provenance import Provenance
from .additive import blend
from .front import Candidate, Front, Gain, Price, ranked
from .greedy import SLACK
from .menu import Menu
from .objective import Effect, Objective
from .price import Pricing
from .surrogate import Surrogate

SAVE_S = 20.0  #: seconds between two writings of the front
FEW = 6  #: samples before a race may end
ERRORS = 1.3  #: by how many standard errors a plan has to be behind


@dataclass(frozen=True)
class Race:
    """A plan to be beaten, sample by sample.

    Attributes:
        risk: of it.
        risks: on each sample.
        weights: how much the risk changes with that of each sample, if the worst task stays the worst.

        few: samples before it may end.
    """

    risk: float
    risks: tuple[float, ...]
    weights: tuple[float, ...]
    few: int

    @classmethod
    def against(cls, risk: float, tasks: Iterable[Sequence[Effect]]) -> Race:
        """A plan of ``risk``, with its effects on the samples of each task."""
        each = [[effect.risk for effect in task] for task in tasks]
        worst = max(range(len(each)), key=lambda i: fmean(each[i]))
        steep = 2 * (1 - fmean(each[worst]))  # the derivative of what blend makes of the worst
        shares = [(1 / len(each) + (i == worst) * steep) / 2 / len(task) for i, task in enumerate(each)]
        weights = tuple(share for share, task in zip(shares, each, strict=True) for _ in task)
        return cls(risk, tuple(one for task in each for one in task), weights, max(FEW, len(each)))

    def is_lost(self, effects: Mapping[int, Effect]) -> bool:
        """Whether the plan with ``effects`` is behind on these samples by more than chance."""
        if len(effects) < self.few:
            return False
        scatter = math.sqrt(sum(difference**2 for difference in self._differences(effects)))
        return self.behind(effects) > ERRORS * scatter

    def behind(self, effects: Mapping[int, Effect]) -> float:
        """By how much the risk is higher, of these samples alone."""
        return sum(self._differences(effects))

    def _differences(self, effects: Mapping[int, Effect]) -> list[float]:
        return [self.weights[i] * (effect.risk - self.risks[i]) for i, effect in effects.items()]


@dataclass
class Archive:
    """All plans of a search.

    Attributes:
        objective: measures plans; the search sees its samples alone.
        tasks: their names.
        menu: what plans are made of.
        kept, time: prices in FLOPs, and in milliseconds where they were measured.
        price: what budgets are of.
        path: where the front is written as it grows; None: nowhere.
        candidates: plans that were run on all samples.
        gains: what each step of the search reached.
        surrogate: guesses the risk of plans from those that were run.
    """

    objective: Objective
    tasks: tuple[str, ...]
    menu: Menu
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
    surrogate: Surrogate = field(init=False)
    _settled: int = 0  # evaluations up to the end of the last step

    def __post_init__(self) -> None:
        self.begin()
        self._settle()

    def begin(self) -> None:
        """At the begin of a step guesses are of the plans that were run on all samples: what a search that goes on
        knows, too."""
        self.surrogate = Surrogate(self.menu, self.pricing)
        for one in self.candidates.values():
            self.surrogate.learn(one.plan.layers, one.risk)

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
        return next(iter(self.ranked(budget)), None)

    def ranked(self, most: float, *, above: float = -1.0) -> list[Candidate]:
        """As :func:`lookless.search.front.ranked`, by the price that budgets are of."""
        return ranked(self.candidates.values(), most, self.price, above=above)

    def has_run(self, plan: Plan) -> bool:
        """Whether a plan of the same live work was run on all samples."""
        return plan.live().layers in self.candidates

    def add(self, plan: Plan, found_by: str, *, against: Candidate | None = None) -> Candidate | None:
        """Run ``plan`` on all samples, unless it loses a race ``against`` another plan before: None then.

        The samples on which plans differ most come first. A plan has lost when the samples run so far alone add up to a
        higher risk than the other's, as risks are not negative; or when it is behind on the same samples by more than
        their differences scatter.

        Raises: as :meth:`lookless.search.Objective.effects`.
        """
        live = plan.live().layers
        if live in self.candidates:
            return self.candidates[live]
        race = None if against is None else Race.against(against.risk, self.objective.per_task(against.plan))
        effects: dict[int, Effect] = {}
        for index, effect in self.objective.in_turn(plan, self._order(race)):
            effects[index] = effect
            if race is not None and (self._least(effects) > race.risk + SLACK or race.is_lost(effects)):
                break
        if len(effects) < len(self.objective):
            assert race is not None
            self.surrogate.learn(plan.layers, max(self._least(effects), race.risk + race.behind(effects)))
            return None
        made = self._candidate(plan, effects, found_by)
        self.candidates[live] = made
        self.surrogate.learn(plan.layers, made.risk)
        if self.path is not None and perf_counter() - self._saved > SAVE_S:
            self.save()
        return made

    def _order(self, race: Race | None) -> list[int]:
        """Samples, one of each task in turn, and of a task those first on which the plan to be beaten loses most."""
        risks = [0.0] * len(self.objective) if race is None else race.risks
        places: dict[int, int] = {}
        for task in self.objective.tasks:
            places |= {index: place for place, index in enumerate(sorted(task, key=lambda index: -risks[index]))}
        return sorted(places, key=lambda index: (places[index], -risks[index]))

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

    def gained(self, step: str, budget: float) -> None:
        """Note what has been reached within ``budget`` at the end of ``step``, and how many plans it ran."""
        best = self.best(budget)
        if best is not None:
            gain = Gain(
                step=step,
                budget=budget,
                risk=best.risk,
                distance=best.distance,
                found_by=best.found_by,
                evaluations=self.evaluations - self._settled,
                plans=len(self.candidates),
            )
            self.gains.append(gain)
        self._settle()
        self.save()

    def _settle(self) -> None:
        """A step has ended: one that is killed in the next goes on from here."""
        self._settled = self.evaluations
        self.objective.count_anew(self.candidates)

    def has(self, step: str, budget: float) -> bool:
        """Whether ``step`` is done for ``budget``."""
        return any(gain.step == step and gain.budget == budget for gain in self.gains)

    def front(self) -> Front:
        return Front(
            provenance=self.provenance or self.objective.made_by("joint"),
            evaluations=self._settled,
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
        """Take over plans that were run on the same samples, at this search's prices.

        Of the same search take over its steps, too, and the plans up to the last of them: a step that was not finished
        is taken again, from where it began, and so finds what it would have found.
        """
        candidates = front.candidates
        if is_same:
            candidates = candidates[: front.gains[-1].plans] if front.gains else ()
        for one in candidates:
            rows = one.plan.layers
            time = None if self.time is None else self.time.share(rows)
            priced = one.model_copy(update={"kept": self.kept.share(rows), "time": time})
            self.candidates[one.plan.live().layers] = priced
        self.spent, self.seconds = front.evaluations, front.seconds
        self.gains = list(front.gains) if is_same else []
        self._settle()
