"""The joint search: an additive choice, the plans of published methods, and changes measured together.

For every budget of a ladder, from mild to aggressive. What one budget finds is there for all later ones, so the whole
front is one search's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import LooklessError, PlanError
from ..plan import Plan
from ..scores import Scores
from .additive import Additive
from .archive import Archive
from .front import Front, Price
from .local import improve
from .menu import Menu
from .objective import Objective
from .price import Pricing
from .seeds import method_plans, nearest

#: Makes the plan of a searched method within a budget.
Seed = Callable[[float], Plan]
#: Fits the fitted cells of a plan anew.
Refit = Callable[[Plan], Plan]

PROPOSALS, PATIENCE = 60, 40  #: at each budget of a ladder


def joint_search(
    objective: Objective,
    menu: Menu,
    additive: Additive,
    *,
    tasks: Sequence[str],
    budgets: Sequence[float],
    kept: Pricing,
    time: Pricing | None = None,
    price: Price = "kept",
    scores: Mapping[str, Scores] | None = None,
    searched: Mapping[str, Seed] | None = None,
    proposals: int | Mapping[float, int] = PROPOSALS,
    patience: int = PATIENCE,
    refit: Refit | None = None,
    seed: int = 0,
    path: Path | None = None,
    progress: bool = True,
) -> Front:
    """Search plans at each of ``budgets``.

    Three steps at each: the additive choice (a multiple-choice knapsack over single changes), the plans of published
    methods that cost as much, and local search from the best plan known. Each step keeps what was found before, so the
    risk never rises from step to step, nor from a budget to a larger one.

    Args:
        objective: the samples that the search sees; position ``answer`` reads whole answers.
        menu: what layers may be given.
        additive: of every single change, on other samples or on the same.
        tasks: names of the objective's tasks.
        budgets: the largest prices, as shares of the stock prefill's.
        kept, time: prices in FLOPs, and in milliseconds where they were measured.
        price: which of them the budgets are of.
        scores: of the measures that methods need; without them only those that need none are tried.
        searched: further methods by name, which make a plan for a budget themselves.
        proposals: plans tried at each budget in the last step; or by budget, the standard number at others.
        patience: the last step ends after so many plans in a row that are no better.
        refit: fits the fitted cells of a plan anew, at the end of each budget: where the menu has some.
        seed: of the proposals.
        path: the front is saved there as it grows, and one found there is resumed.
        progress: show bars on standard error.

    Raises:
        PlanError: at ``path`` is a front of another search; a budget is not a share.
    """
    if any(not 0 < budget <= 1 for budget in budgets):
        wrong = next(budget for budget in budgets if not 0 < budget <= 1)
        raise PlanError(f"a budget of {wrong:g} is no share of the stock prefill: give more than 0, at most 1.")
    archive = Archive(objective, tuple(tasks), menu, kept, time, price, path)
    archive.provenance = objective.made_by("joint", price=price, seed=seed)
    if path is not None and path.exists():
        _resume(archive, path)
    archive.add(Plan.full(objective.geometry), "full")
    lengths = {"visual": objective.visual, "text": objective.text}
    plans = method_plans(objective.geometry, scores or {}, **lengths, tower=bool(menu.tower))
    for budget in sorted(budgets, reverse=True):
        _additive(archive, additive, budget)
        _methods(archive, plans, searched or {}, budget)
        if not archive.has("joint", budget):
            count = proposals if isinstance(proposals, int) else proposals.get(budget, PROPOSALS)
            rng = random.Random(f"{seed}:{budget:g}")
            patient = patience if isinstance(proposals, int) else max(patience, count // 3)
            improve(archive, menu, additive, budget, proposals=count, patience=patient, rng=rng, progress=progress)
            archive.gained("joint", budget)
        if refit is not None:
            _refitted(archive, refit, budget)
    return archive.save()


def _refitted(archive: Archive, refit: Refit, budget: float) -> None:
    """The fitted cells of the best plan, which were fitted to the full model, fitted to the plan that they are in."""
    if archive.has("refitted", budget):
        return
    best = archive.best(budget)
    if best is not None and best.plan.weights:
        archive.add(refit(best.plan), "refitted", against=best)
    archive.gained("refitted", budget)


def _additive(archive: Archive, additive: Additive, budget: float) -> None:
    if archive.has("additive", budget):
        return
    full = Plan.full(archive.objective.geometry)
    tables = [additive, additive.without_fitted] if additive.weights else [additive]
    for table in tables:  # a fitted cell's risk alone promises more than it holds among others
        choice = table.plan(budget, archive.pricing, full)
        if choice is not None:
            archive.add(choice[0], "additive")
    archive.gained("additive", budget)


def _methods(archive: Archive, plans: Mapping[str, list[Plan]], searched: Mapping[str, Seed], budget: float) -> None:
    """Each method's dearest plan within the budget, run on all samples unless it is sure to be worse."""
    if archive.has("methods", budget):
        return
    for name, plan in _of_methods(archive, plans, searched, budget):
        archive.add(plan, name, against=archive.best(budget))
    archive.gained("methods", budget)


def _of_methods(
    archive: Archive, plans: Mapping[str, list[Plan]], searched: Mapping[str, Seed], budget: float
) -> Iterator[tuple[str, Plan]]:
    for name, growing in plans.items():
        plan = nearest(growing, budget, archive.pricing)
        if plan is not None:
            yield name, plan
    for name, make in searched.items():
        try:
            plan = make(budget)
        except LooklessError:  # it has none within the budget
            continue
        if archive.share(plan) <= budget + 1e-9:
            yield name, plan


def _resume(archive: Archive, path: Path) -> None:
    """Take over what is at ``path``; of a search for another price the plans, and not its steps."""
    front, made = Front.load(path), archive.provenance
    same = made is not None and (front.provenance.data_hash, front.provenance.model) == (made.data_hash, made.model)
    if not same or front.tasks != archive.tasks:
        raise PlanError(
            f"{path} holds a front of another model or other samples than this search's: give another folder, or "
            f"remove the file."
        )
    archive.resume(front, is_same=front.provenance == made and front.price == archive.price)
