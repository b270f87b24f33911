"""Which plans of a front are tested, and in which order.

The search compares hundreds of plans on a few samples, so the best of them are in part lucky. A few of each price are
compared again, on more samples that the search has not seen. What these say chooses the chain and orders it; that the
chain holds is tested on others still.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..calibration.replay import Position
from ..data import Samples
from ..loading import Loaded
from ..search.additive import blend
from ..search.front import Candidate, Front, Price
from ..search.objective import Effect, effects_of
from .folder import Chain, Target

POINTS = 8  #: plans of a chain at most
MILD = 0.97  #: a plan of a higher price saves nothing worth a test
BINS = 14  #: of prices
EACH = 2  #: plans compared again of each bin
#: How far below what is wanted the fidelity on samples already seen may be, for a plan to be worth a test.
BELOW = 0.02


def finalists(front: Front, target: Target) -> tuple[Candidate, ...]:
    """The plans of the lowest risk in each bin of prices; of a budget, the best within it in front of all."""
    price, limit = target.price, target.value if target.kind != "retention" else 0.0
    cheap = front.ranked(MILD, price)
    bins: dict[int, list[Candidate]] = {}
    for one in cheap:
        bins.setdefault(int(BINS * one.price(price)), []).append(one)
    kept = [one for found in bins.values() for one in found[:EACH]]
    within = [one for one in cheap if one.price(price) <= limit][: 3 * EACH]
    unique = {one.plan.layers: one for one in (*within, *(one for one in kept if one.price(price) > limit))}
    return tuple(sorted(unique.values(), key=lambda c: -c.price(price)))


def compared(
    loaded: Loaded, parts: Sequence[Samples], plans: Sequence[Candidate], *, position: Position, progress: bool
) -> list[tuple[Candidate, float]]:
    """Each plan with its fidelity on the samples of each task, and what it loses there: the lower the better."""
    tasks = [effects_of(loaded, part, [c.plan for c in plans], position=position, progress=progress) for part in parts]
    found = []
    for one, effects in zip(plans, zip(*tasks, strict=True), strict=True):
        checked = fmean(fmean(not effect.changed for effect in task) for task in effects)
        found.append((one.model_copy(update={"checked": checked}), blend([_loss(task) for task in effects])))
    return found


def _loss(effects: Sequence[Effect]) -> float:
    """The share of answers changed; of equal shares, by the risk that they do."""
    return fmean(effect.changed + effect.risk / len(effects) for effect in effects)


def chain_of(found: Sequence[tuple[Candidate, float]], target: Target) -> Chain:
    """The plans to test, each cheaper than the one before and losing more.

    For a retention from the mildest that saves anything to the first that clearly loses too much; for a budget the plan
    that loses least within it, and milder ones before it.
    """
    price = target.price
    points = _falling(found, price)
    if target.kind == "retention":
        hopeless = [i for i, one in enumerate(points) if (one.checked or 0.0) < target.value - BELOW]
        points = points[: hopeless[0] + 1] if hopeless else points
        return Chain(price=price, points=_spread(points, POINTS))
    within = [pair for pair in found if pair[0].price(price) <= target.value]
    if not within:
        return Chain(price=price)
    best = min(within, key=lambda pair: pair[1])[0]
    milder = [one for one in points if one.price(price) > target.value]
    return Chain(price=price, points=(*_spread(milder, POINTS // 2 - 1), best))


def _falling(found: Sequence[tuple[Candidate, float]], price: Price) -> list[Candidate]:
    """The plans that no other beats in both price and loss, from mild to aggressive."""
    best: list[tuple[Candidate, float]] = []
    for one in sorted(found, key=lambda pair: (pair[0].price(price), pair[1])):
        if not best or one[1] < best[-1][1]:
            best.append(one)
    return [one for one, _ in reversed(best)]


def _spread(points: Sequence[Candidate], count: int) -> tuple[Candidate, ...]:
    """At most ``count`` of ``points``, the first and the last among them, evenly by place."""
    if len(points) <= count:
        return tuple(points)
    places = {round(i * (len(points) - 1) / (count - 1)) for i in range(count)} if count > 1 else {len(points) - 1}
    return tuple(points[place] for place in sorted(places))
