"""What a plan probably risks, guessed from the plans that were run: which proposals are worth running.

Additive risks are of single changes, and changes interact. A linear model of the logarithm of the risk, fitted to the
plans that were run, knows the interactions near the budget at hand in the mean, costs a millisecond, and is only used
to choose among proposals: what is chosen is run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..layer_plan import LayerPlan
from .menu import Menu
from .price import Pricing

RIDGE = 1.0
FLOOR = 1e-3  #: added to a risk before its logarithm is taken: differences below are noise
NEAR = 0.12  #: of prices: plans so far from the budget count a third
LEAST = 0.02  #: how much a plan far from the budget counts
FEW = 20  #: plans below which there is no guess

Rows = Sequence[LayerPlan]


@dataclass
class Surrogate:
    """A ridge regression over the rows of each layer, the share of tokens alive in it, and the ranks.

    Attributes:
        menu: what plans are made of; a row that is not of it counts as unknown.
        pricing: says how many visual tokens are alive in each layer.
    """

    menu: Menu
    pricing: Pricing
    _plans: list[np.ndarray] = field(default_factory=list)
    _risks: list[float] = field(default_factory=list)
    _prices: list[float] = field(default_factory=list)

    def learn(self, rows: Rows, risk: float) -> None:
        """A plan that was run: on all samples, or on enough to say that it is worse."""
        self._plans.append(self.features(rows))
        self._risks.append(math.log(risk + FLOOR))
        self._prices.append(self.pricing.share(rows))

    def guess(self, plans: Sequence[Rows], budget: float) -> np.ndarray | None:
        """For each of ``plans`` a number that grows with its risk, ``[plans]``; None as long as little is known."""
        if len(self._plans) < FEW:
            return None
        seen = np.array(self._plans)
        weight = np.exp(-(((np.array(self._prices) - budget) / NEAR) ** 2)) + LEAST
        wanted = np.array([self.features(rows) for rows in plans])
        mean = np.average(self._risks, weights=weight)
        centre = np.average(seen, axis=0, weights=weight)
        x, y = seen - centre, np.array(self._risks) - mean
        kernel = x @ x.T  # fewer plans than features: the dual form
        dual = np.linalg.solve(kernel + RIDGE * np.diag(1 / weight), y)
        return mean + (wanted - centre) @ (x.T @ dual)

    def features(self, rows: Rows) -> np.ndarray:
        """``[features]``: which row each layer has, how many tokens are alive in it, and what ranks them."""
        most = max(len(self.menu.at(layer)) for layer in range(len(rows)))
        made = np.zeros((len(rows), most + 1))
        for layer, row in enumerate(rows):
            plain = row.model_copy(update={"keep": self.menu.rows[0].keep})
            choices = self.menu.at(layer)
            made[layer, choices.index(plain) if plain in choices else most] = 1
        alive = np.array(self.pricing.alive(rows)) / max(1.0, self.pricing.visual)
        ranks = (*self.menu.ranks, *self.menu.tower)
        by = [float(any(row.keep.ranks_by == rank for row in rows)) for rank in ranks]
        return np.concatenate([made.ravel(), alive, np.sqrt(alive), np.array(by)])
