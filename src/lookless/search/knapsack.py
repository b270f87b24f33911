"""The multiple-choice knapsack: one row for each layer, the least summed risk within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

#: Added per unit of price, so that of choices of equal risk the cheapest is taken.
TIE = 1e-9
MULTIPLIERS = (0.0, *np.geomspace(1e-4, 1e3, 40))


def knapsack(risks: Sequence[Sequence[float]], prices: Sequence[Sequence[float]], budget: float) -> list[int] | None:
    """For each layer the index of its choice, so that the summed risk is least and the summed price within ``budget``.

    Args:
        risks, prices: of the choices of each layer; layers may have different numbers of them.
        budget: the largest sum of prices.

    Returns:
        One index per layer; None where even the cheapest choices cost more.
    """
    counts = [len(layer) for layer in risks]
    if sum(min(layer) for layer in prices) > budget:
        return None
    risk, price = (np.concatenate([np.asarray(layer, dtype=float) for layer in table]) for table in (risks, prices))
    starts = np.cumsum([0, *counts])
    once = np.zeros((len(counts), len(risk)))
    for layer, (first, last) in enumerate(itertools.pairwise(starts)):
        once[layer, first:last] = 1
    found = milp(
        risk + TIE * price,
        integrality=np.ones(len(risk)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(price[None], -np.inf, budget)],
        options={"presolve": False},  # what HiGHS says of a presolved solution goes to stdout, asked for or not
    )
    if found.x is None:
        return None
    return [int(found.x[first:last].argmax()) for first, last in itertools.pairwise(starts)]


def lower_bound(risks: np.ndarray, prices: np.ndarray, budget: float) -> float:
    """No choice within ``budget`` has a smaller summed risk: the best of a few Lagrange multipliers.

    Args:
        risks, prices: ``[layers, choices]``; infinite risk where a layer has no such choice.
    """
    most = -np.inf
    for multiplier in MULTIPLIERS:
        most = max(most, float((risks + multiplier * prices).min(axis=1).sum() - multiplier * budget))
    return most
