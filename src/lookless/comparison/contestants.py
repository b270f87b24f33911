"""Who is compared: methods, those that search for their knobs, the two that are no paper's method, and given plans.

Each says what it runs at its paper's setting, and at a strength from 0 (nothing) to 1 (all it can), which is what a
comparison at one price turns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from .. import files
from ..errors import LooklessError, PlanError
from ..methods import Method
from ..plan import Plan
from ..search.depthwise import dop_depths
from ..search.greedy import gsop_order
from .entry import Entry
from .workspace import Workspace

STEPS = 40  #: strengths to choose from
DRAWS = 5  #: of a method with random choices


class Contestant(ABC):
    """One row of every table.

    Attributes:
        name: of the row.
        draws: how many times it is run, with other random choices.
        is_prefix_cache_safe: see :attr:`lookless.Plan.is_prefix_cache_safe`.
        is_control: it has a row at every setting, however near its price is.
    """

    name: str
    draws = 1
    is_prefix_cache_safe = True
    is_control = False

    @abstractmethod
    def at_paper(self, work: Workspace, task: str, draw: int = 0) -> Entry:
        """At its paper's setting. Raises: LooklessError: there is none, with the reason."""

    @abstractmethod
    def at(self, work: Workspace, task: str, strength: float, draw: int = 0) -> Entry:
        """At a strength. Raises: LooklessError: out of its range."""

    def notes(self, work: Workspace, entry: Entry) -> list[str]:
        """What a reader of its row should know."""
        told = work.withdrew.get(entry.plan.layers) if entry.plan else None
        return [told] if told else []

    def prices(self, work: Workspace, task: str, draw: int = 0) -> dict[float, float]:
        """Strengths that give different plans, and the share of FLOPs that each keeps.

        Raises:
            PlanError: no strength gives a plan, with the reason of the last.
        """
        found: dict[Any, tuple[float, Entry]] = {}
        reason = ""
        for step in range(STEPS + 1):
            try:
                entry = self.at(work, task, step / STEPS, draw)
            except LooklessError as problem:  # out of the method's range
                reason = str(problem)
                continue
            found.setdefault(entry.plan and entry.plan.layers, (step / STEPS, entry))
        if not found:
            raise PlanError(f"no strength gives a plan for this model: {reason}")
        return {strength: work.kept(entry) for strength, entry in found.values()}

    def near(self, work: Workspace, task: str, budget: float, draw: int = 0) -> Entry:
        """What keeps the share of FLOPs nearest to ``budget``. Raises: LooklessError: as :meth:`at`."""
        prices = self.prices(work, task, draw)
        return self.at(work, task, min(prices, key=lambda strength: abs(prices[strength] - budget)), draw)


class Published(Contestant):
    """A method whose knobs are its paper's."""

    def __init__(self, method: Method) -> None:
        self.method, self.name = method, method.name
        self.draws = DRAWS if "seed" in method.knobs else 1

    @property
    def is_prefix_cache_safe(self) -> bool:  # type: ignore[override]
        return self.method.is_prefix_cache_safe

    def at_paper(self, work: Workspace, task: str, draw: int = 0) -> Entry:
        return self._made(work, task, draw, {})

    def at(self, work: Workspace, task: str, strength: float, draw: int = 0) -> Entry:
        if self.method.strength is None:
            raise PlanError("its published arguments are not one amount")
        return self._made(work, task, draw, self.method.strength(work.geometry.layers, strength))

    def prices(self, work: Workspace, task: str, draw: int = 0) -> dict[float, float]:
        if self.method.strength is None:
            raise PlanError("its published arguments are not one amount")
        return super().prices(work, task, draw)

    def notes(self, work: Workspace, entry: Entry) -> list[str]:
        """With the knobs whose values of the paper would do nothing in prompts this short."""
        known = {name: knob.default for name, knob in self.method.knobs.items() if not knob.is_required}
        scaled = [
            f"{name} is {value} and not {known[name]}, as there are {work.visual} visual tokens"
            for name, value in self._fixed(work).items()
            if known.get(name) is not None and known[name] != value
        ]
        return [*super().notes(work, entry), *scaled]

    def _fixed(self, work: Workspace) -> dict[str, Any]:
        """Knobs that are numbers of tokens, for the prompts at hand."""
        return self.method.prompt_arguments(work.visual, work.text) if self.method.prompt_arguments else {}

    def _made(self, work: Workspace, task: str, draw: int, knobs: Mapping[str, Any]) -> Entry:
        method = self.method
        if method.takes_many:  # one mask for all tasks
            scores: Any = [work.scores(each, need) for each in work.tasks for need in method.measures]
        else:
            scores = {need: work.scores(task, need) for need in method.measures}
        drawn = {"seed": draw} if draw else {}
        return Entry(method.build(work.geometry, scores, **{**self._fixed(work), **drawn, **knobs}))


class Searched(Contestant):
    """A method whose knobs are found by search, for a share of FLOPs, on a few samples of all tasks."""

    def __init__(self, method: Method, search: Callable[[Workspace, float], Plan]) -> None:
        self.method, self.name, self.search = method, method.name, search
        self.is_prefix_cache_safe = method.is_prefix_cache_safe

    def at_paper(self, work: Workspace, task: str, draw: int = 0) -> Entry:
        assert self.method.paper_kept is not None
        return self._found(work, self.method.paper_kept)

    def at(self, work: Workspace, task: str, strength: float, draw: int = 0) -> Entry:
        return self._found(work, 1 - strength)

    def prices(self, work: Workspace, task: str, draw: int = 0) -> dict[float, float]:
        """What is asked for, as a search is too long to be made for each."""
        return {step / STEPS: 1 - step / STEPS for step in range(STEPS)}

    def near(self, work: Workspace, task: str, budget: float, draw: int = 0) -> Entry:
        return self._found(work, budget)

    def _found(self, work: Workspace, kept: float) -> Entry:
        """Kept in the folder."""
        path = work.folder / "plans" / f"{self.name}.{kept:.3f}.json"
        if path.exists():
            plan = Plan.from_pretrained(path)
            if plan.provenance.sample_hashes == work.searched_on.hashes:
                return Entry(plan)
        plan = self.search(work, kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, plan.to_json())
        return Entry(plan)


class Liveness(Contestant):
    """Skip dead work, whose result nothing reads, and nothing else: every other row skips it, too."""

    name = "liveness"

    def at_paper(self, work: Workspace, task: str, draw: int = 0) -> Entry:
        return Entry(Plan.full(work.geometry).live())

    def at(self, work: Workspace, task: str, strength: float, draw: int = 0) -> Entry:
        raise PlanError("there is no amount of it")


class Downsampling(Liveness):
    """A smaller image, with a share of 1 - strength of its side: the control of what drops tokens.

    Its row in the papers' table has half of the visual tokens, as random tokens have there.
    """

    name = "down-sampling"
    is_control = True

    def at_paper(self, work: Workspace, task: str, draw: int = 0) -> Entry:
        sides = [1 - strength for strength in self.prices(work, task)]
        side = min(sides, key=lambda side: abs(work.lengths(side)[0] - work.visual / 2))
        return Entry(super().at_paper(work, task).plan, side)

    def notes(self, work: Workspace, entry: Entry) -> list[str]:
        return [f"{work.lengths(entry.side)[0]} visual tokens of {work.visual}"]

    def at(self, work: Workspace, task: str, strength: float, draw: int = 0) -> Entry:
        if strength == 1:
            raise PlanError("an image of no size")
        return Entry(super().at_paper(work, task).plan, 1 - strength)

    def prices(self, work: Workspace, task: str, draw: int = 0) -> dict[float, float]:
        by_tokens: dict[int, float] = {}
        for step in range(STEPS):
            by_tokens.setdefault(work.lengths(1 - step / STEPS)[0], step / STEPS)
        return {strength: work.kept(self.at(work, task, strength)) for strength in by_tokens.values()}


class Given(Contestant):
    """A plan as it is, at every setting; where its price is not near the setting's, it has no row."""

    def __init__(self, name: str, plan: Plan) -> None:
        self.name, self.plan = name, plan
        self.is_prefix_cache_safe = plan.is_prefix_cache_safe

    def at_paper(self, work: Workspace, task: str, draw: int = 0) -> Entry:
        return Entry(self.plan)

    def at(self, work: Workspace, task: str, strength: float, draw: int = 0) -> Entry:
        return Entry(self.plan)


LIVENESS, DOWNSAMPLING = Liveness(), Downsampling()
#: The plan that keeps at most a share of the FLOPs.
_SEARCHES: dict[str, Callable[[Workspace, float], Plan]] = {
    "gsop": lambda work, kept: gsop_order(work.objective, stride=0.01, path=work.folder / "gsop.json").within(
        kept, visual=work.visual, text=work.text
    ),
    "dop": lambda work, kept: dop_depths(work.objective, kept=kept, every=2).plan,
}


def contestants_of(methods: Mapping[str, Method], plans: Mapping[str, Plan] | None = None) -> dict[str, Contestant]:
    """Liveness and down-sampling, which are in every table, then ``methods`` and ``plans``, by name."""
    given = {name: Given(name, plan) for name, plan in (plans or {}).items()}
    known = {
        name: Searched(method, _SEARCHES[name]) if name in _SEARCHES else Published(method)
        for name, method in methods.items()
    }
    return {LIVENESS.name: LIVENESS, DOWNSAMPLING.name: DOWNSAMPLING, **known, **given}
