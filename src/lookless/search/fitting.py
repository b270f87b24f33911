"""Fitted cells as choices of a search: in each layer maps of low rank in place of attention, of the FFN, or of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..calibration.affine import Fitted, Fitter, Place
from ..cells import Skip
from ..layer_plan import LayerPlan
from ..weights import Weights
from .greedy import SearchResult
from .menu import Menu

#: Of the maps. What rank 8 cannot say, 32 often can; beyond, a map costs as much as what it replaces.
RANKS = (8, 32)
SKIP = Skip()


class Choices(SearchResult):
    """What each layer may be given, fitted cells among it.

    Attributes:
        rows: of each layer.
    """

    rows: tuple[tuple[LayerPlan, ...], ...]

    @property
    def weights(self) -> tuple[Weights, ...]:
        every = (cell.affine for layer in self.rows for row in layer for _, cell in row)
        return tuple(dict.fromkeys(affine.weights for affine in every if affine is not None))

    def bound(self, weights: Mapping[str, Weights]) -> Choices:
        rows = tuple(tuple(row.bound(weights) for row in layer) for layer in self.rows)
        return self.model_copy(update={"rows": rows})


def with_fitted(menu: Menu, fitter: Fitter, *, ranks: Sequence[int] = RANKS) -> Menu:
    """``menu`` with maps of ``ranks`` that were fitted to each layer of the full model alone, besides its rows.

    Raises: as :meth:`lookless.calibration.affine.Fitter.alone`.
    """
    cells = fitter.alone(ranks=ranks)
    return menu.having([(*menu.at(layer), *_rows(cells, layer)) for layer in range(menu.layers)])


def _rows(cells: dict[Place, dict[int, Fitted]], layer: int) -> tuple[LayerPlan, ...]:
    attention, ffn = cells.get((layer, "attention"), {}), cells.get((layer, "ffn"), {})
    alone = [LayerPlan(attention=cell) for cell in attention.values()] + [LayerPlan(ffn=cell) for cell in ffn.values()]
    if not attention or not ffn:
        return tuple(alone)
    most = max(attention)
    both = [
        LayerPlan(attention=attention[most], ffn=SKIP),
        LayerPlan(attention=SKIP, ffn=ffn[most]),
        LayerPlan(attention=attention[most], ffn=ffn[most]),
    ]
    return (*alone, *both)
