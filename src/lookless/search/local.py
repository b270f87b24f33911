"""Local search on the joint risk: changes that keep the budget, as EvoPress makes them (arXiv 2410.14649).

A proposal changes one or two layers, exchanges two, or moves a pruning or the withdrawal; then other layers are made
cheaper or dearer until the budget is used up, those first for which the additive risks say so, with noise on them. What
is proposed is run together, and taken only if its joint risk is lower: interactions are measured, not assumed. Of many
proposals the one is run of which a model of the plans run so far expects most (:mod:`lookless.search.surrogate`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..cells import Keep
from ..errors import PlanError
from ..layer_plan import LayerPlan
from ..plan import Plan
from ..progress import track
from .additive import Additive, frame_prices
from .archive import Archive
from .front import Candidate
from .greedy import SLACK
from .menu import FULL, Frame, Menu, frame_of, framed

NOISE = 0.7  #: standard deviation of the logarithm that multiplies each additive risk, in one proposal
TRIES = 10  #: changes tried for a proposal
PROPOSED = 16  #: proposals of which one is run
BLIND = 0.15  #: how often the first of them is run, whatever is expected of it
PARENTS = 5  #: plans within the budget that proposals change
MILDER = 2  #: plans that cost a little more, and are made cheaper
ABOVE = 0.15  #: so much more, as a share of the stock model's price
BEST = 0.7  #: how often that is the best one
ENOUGH = 1e-5  #: a risk below which nothing is left to gain

#: The chosen row of each layer.
Rows = list[LayerPlan]


def improve(
    archive: Archive,
    menu: Menu,
    additive: Additive,
    budget: float,
    *,
    proposals: int,
    patience: int,
    rng: random.Random,
    progress: bool = True,
) -> Candidate | None:
    """Propose changes to the best plan within ``budget``, and keep what is better.

    Args:
        archive: runs plans; its best plan within the budget is where the search starts.
        menu: what layers may be given.
        additive: the risks by which the rest of a proposal is chosen.
        budget: the largest price.
        proposals: how many plans are tried at most.
        patience: stop after so many in a row that are no better.
        rng: makes the choices.
        progress: show a bar on standard error.

    Returns:
        The best plan; never one of a higher risk than before. None if no plan within the budget is known.
    """
    archive.begin()
    maker = Proposals(archive, menu, additive, budget, rng)
    tried: set[tuple[LayerPlan, ...]] = set()
    stale = 0
    for _ in track(range(proposals), f"plans of {budget:.0%}", progress):
        best = archive.best(budget)
        if best is None or best.risk < ENOUGH or stale >= patience:
            break
        plan = _promising(archive, maker, budget, tried, rng)
        if plan is None:
            stale += 1
            continue
        tried.add(plan.layers)
        archive.add(plan, "joint", against=best)
        now = archive.best(budget)
        stale = 0 if now is not None and now.risk < best.risk else stale + 1
    return archive.best(budget)


def _promising(
    archive: Archive, maker: Proposals, budget: float, tried: set[tuple[LayerPlan, ...]], rng: random.Random
) -> Plan | None:
    """Of some proposals not run so far the one of the lowest guess, now and then another; None if there is none."""
    milder = archive.ranked(budget + ABOVE, above=budget)
    parents = [*archive.ranked(budget)[:PARENTS], *milder[:MILDER]]
    made: dict[tuple[LayerPlan, ...], Plan] = {}
    for _ in range(PROPOSED):
        parent = parents[0] if rng.random() < BEST else rng.choice(parents)
        plan = maker.of(parent.plan)
        if plan is not None and plan.layers not in tried and not archive.has_run(plan):
            made[plan.layers] = plan
    if not made:
        return None
    plans = list(made.values())
    guesses = archive.surrogate.guess([plan.layers for plan in plans], budget)
    if guesses is None or rng.random() < BLIND:
        return plans[0]
    return plans[int(guesses.argmin())]


@dataclass(frozen=True)
class Proposals:
    """Makes plans that are near another, and within the budget.

    Attributes:
        archive: knows prices.
        menu, additive: what may be chosen, and what it risks alone.
        budget: the largest price.
        rng: makes the choices.
    """

    archive: Archive
    menu: Menu
    additive: Additive
    budget: float
    rng: random.Random

    def of(self, plan: Plan) -> Plan | None:
        """A plan near ``plan``; None if none of a few tried is within the budget."""
        made = (self._near(plan) for _ in range(TRIES))
        return next((one for one in made if one is not None and one.layers != plan.layers), None)

    def _near(self, plan: Plan) -> Plan | None:
        rows, frame = list(framed(plan.layers, ())), frame_of(plan)
        change: Callable[[], tuple[Frame, set[int]]] = self.rng.choices(
            (lambda: self._some(rows, frame), lambda: self._exchange(rows, frame), lambda: self._reframed(frame)),
            weights=(5, 2, 3 if self.menu.ranks else 0),
        )[0]
        frame, fixed = change()
        fitted = self._fitted(rows, frame, fixed)
        if fitted is None:
            return None
        try:
            made = Plan(layers=framed(fitted, frame), geometry=plan.geometry)
        except PlanError:  # a rank that cannot be read there
            return None
        return made if self.archive.share(made) <= self.budget + SLACK else None

    def _some(self, rows: Rows, frame: Frame) -> tuple[Frame, set[int]]:
        """One or two layers get other rows."""
        free = [layer for layer in range(len(rows)) if set(self.menu.at(layer)) - {rows[layer]}]
        layers = self.rng.sample(free, min(len(free), self.rng.choice((1, 1, 2))))
        for layer in layers:
            rows[layer] = self.rng.choice([row for row in self.menu.at(layer) if row != rows[layer]])
        return frame, set(layers)

    def _exchange(self, rows: Rows, frame: Frame) -> tuple[Frame, set[int]]:
        """Two layers with different rows exchange them; rows that are one layer's alone are not exchanged."""
        free = [i for i, row in enumerate(rows) if row in self.menu.rows]
        pairs = [(i, j) for i in free for j in free if i < j and rows[i] != rows[j]]
        if not pairs:
            return self._some(rows, frame)
        i, j = self.rng.choice(pairs)
        rows[i], rows[j] = rows[j], rows[i]
        return frame, {i, j}

    def _reframed(self, frame: Frame) -> tuple[Frame, set[int]]:
        """A pruning is added, moved, made stronger or weaker, or ends; or the withdrawal is."""
        keeps = dict(frame)
        prunings = [layer for layer, keep in frame if not keep.withdraws]
        withdrawal = next((layer for layer, keep in frame if keep.withdraws), None)
        if prunings and self.rng.random() < 0.6:
            layer = self.rng.choice(prunings)
            keep = keeps.pop(layer)
            for place, changed in self._pruned_otherwise(layer, keep):
                keeps[place] = changed
        elif len(prunings) < 2 and self.rng.random() < 0.5:
            layer = self.rng.choice((0, self.rng.randrange(self.menu.layers)))
            keeps[layer] = Keep(self.rng.choice(self.menu.shares), rank=self.rng.choice(self.menu.ranks_at(layer)))
        elif withdrawal is None:
            keeps[self.rng.randrange(max(1, self.menu.layers // 2), self.menu.layers)] = Keep(0)
        else:
            keeps.pop(withdrawal)
            place = withdrawal + self.rng.choice((-2, -1, 1, 2))
            if 0 < place < self.menu.layers:
                keeps[place] = Keep(0)
        return self._falling(keeps), set()

    def _pruned_otherwise(self, layer: int, keep: Keep) -> list[tuple[int, Keep]]:
        """The pruning at another layer, of another share or by another rank; or none."""
        kind, shares, share = self.rng.random(), self.menu.shares, keep.of(self._visual) / self._visual
        if kind < 0.15:
            return []
        if kind < 0.45:
            place = min(self.menu.layers - 1, max(0, layer + self.rng.choice((-2, -1, 1, 2))))
            ranks = self.menu.ranks_at(place)
            return [(place, keep if keep.rank in ranks else Keep(share, rank=self.rng.choice(ranks)))]
        if kind < 0.75:
            now = min(range(len(shares)), key=lambda i: abs(shares[i] - share))
            other = shares[min(len(shares) - 1, max(0, now + self.rng.choice((-1, 1))))]
            return [(layer, Keep(other, rank=keep.rank))]
        return [(layer, Keep(share, rank=self.rng.choice(self.menu.ranks_at(layer))))]

    def _falling(self, keeps: dict[int, Keep]) -> Frame:
        """Without prunings that drop nothing more, or come after the withdrawal."""
        alive, made = self._visual, []
        for layer in sorted(keeps):
            left = keeps[layer].alive_after(self._visual, alive)
            if left < alive:
                made.append((layer, keeps[layer]))
                alive = left
        return tuple(made)

    @property
    def _visual(self) -> float:
        return self.archive.kept.visual

    def _fitted(self, rows: Rows, frame: Frame, fixed: set[int]) -> Rows | None:
        """``rows`` with other layers than ``fixed`` made cheaper until the price is within the budget, and dearer while
        it stays there; None if it cannot be."""
        options = [self._options(layer, row) for layer, row in enumerate(rows)]
        prices = frame_prices(options, frame, self.archive.pricing)
        risks = [[self._risk(layer, row, rows[layer]) for row in choices] for layer, choices in enumerate(options)]
        now = [choices.index(row) for choices, row in zip(options, rows, strict=True)]
        free = [layer for layer in range(len(rows)) if layer not in fixed]
        total = self.archive.pricing.fixed / self.archive.pricing.stock + sum(
            prices[layer][index] for layer, index in enumerate(now)
        )
        while total > self.budget + SLACK:
            step = _cheapest(prices, risks, now, free)
            if step is None:
                return None
            total += prices[step[0]][step[1]] - prices[step[0]][now[step[0]]]
            now[step[0]] = step[1]
        while (step := _dearer(prices, risks, now, free, self.budget + SLACK - total)) is not None:
            total += prices[step[0]][step[1]] - prices[step[0]][now[step[0]]]
            now[step[0]] = step[1]
        return [choices[index] for choices, index in zip(options, now, strict=True)]

    def _options(self, layer: int, row: LayerPlan) -> list[LayerPlan]:
        choices = list(self.menu.at(layer))
        return choices if row in choices else [*choices, row]

    def _risk(self, layer: int, row: LayerPlan, current: LayerPlan) -> float:
        """With noise; a row that is not of the menu is a seed's, and is taken to risk half of what freezing does."""
        known = self.additive.risk(layer, row)
        if known is None:
            known = max(self.additive.risks[layer]) / 2
        return float((known + ENOUGH) * self.rng.lognormvariate(0, NOISE)) if row != FULL else 0.0


def _cheapest(
    prices: Sequence[Sequence[float]], risks: Sequence[Sequence[float]], now: Sequence[int], free: Sequence[int]
) -> tuple[int, int] | None:
    """The cheaper row that adds least risk for what it saves: layer and index."""
    best: tuple[float, int, int] | None = None
    for layer in free:
        price, risk = prices[layer][now[layer]], risks[layer][now[layer]]
        for index, (other, its_risk) in enumerate(zip(prices[layer], risks[layer], strict=True)):
            if other < price - SLACK:
                rate = (its_risk - risk) / (price - other)
                if best is None or rate < best[0]:
                    best = rate, layer, index
    return None if best is None else best[1:]


def _dearer(
    prices: Sequence[Sequence[float]],
    risks: Sequence[Sequence[float]],
    now: Sequence[int],
    free: Sequence[int],
    slack: float,
) -> tuple[int, int] | None:
    """The row that takes most risk away for what it costs, of those that ``slack`` pays for: layer and index."""
    best: tuple[float, int, int] | None = None
    for layer in free:
        price, risk = prices[layer][now[layer]], risks[layer][now[layer]]
        for index, (other, its_risk) in enumerate(zip(prices[layer], risks[layer], strict=True)):
            if its_risk < risk and other - price <= slack:
                rate = (risk - its_risk) / max(other - price, SLACK)
                if best is None or rate > best[0]:
                    best = rate, layer, index
    return None if best is None else best[1:]
