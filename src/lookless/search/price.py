"""What a plan costs, as a sum over layers: a choice in one layer has a price of its own.

A layer's price depends on its cells, on how many visual tokens are alive in it, and on whether a later layer reads them
(dead work costs nothing, as it does not run). So the price of a plan is a sum over a table, which is what a knapsack
and thousands of proposals need. The unit is FLOPs by :mod:`lookless.flops`, or milliseconds by a latency table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .. import flops
from ..cells import Full, Keep, Skip
from ..geometry import Geometry
from ..layer_plan import LayerPlan
from ..plan import Plan
from ..ranks import RANKS

#: From a layer and its cells, with ``keep`` saying how many tokens are alive, to its price.
LayerPrice = Callable[[int, LayerPlan], float]


@dataclass(frozen=True)
class Pricing:
    """Prices of plans for one prompt, as shares of the stock model's.

    Attributes:
        visual: visual tokens of the prompt.
        of_layer: the price of one layer.
        stock: that of all layers of the stock model.
        fixed: what every plan costs besides, in the same unit.
        like: of each layer, the first one with its shape, which has its prices; empty where all are alike.
    """

    visual: float
    of_layer: LayerPrice
    stock: float
    fixed: float = 0.0
    like: tuple[int, ...] = ()
    _known: dict[tuple[int, LayerPlan, float, type, bool], float] = field(default_factory=dict, compare=False)

    def cell(self, layer: int, row: LayerPlan, alive: float, *, is_read: bool = True) -> float:
        """The share of ``layer`` with ``row``, in which ``alive`` visual tokens are alive; ``is_read``: some row of a
        later layer reads one of them. Of the row's own ``keep`` the rank is priced alone."""
        layer = self.like[layer] if self.like else 0
        key = (layer, row, alive, type(alive), is_read)  # 8 tokens are not a mean of 8.0: whole ones are probed of them
        if key not in self._known:
            keep = kept_alive(alive, self.visual, row.keep.ranks_by)
            cells = {"keep": keep} if is_read else {"keep": keep, "attention": Skip(), "ffn": Skip()}
            self._known[key] = self.of_layer(layer, alone(LayerPlan(**{**dict(row), **cells}))) / self.stock
        return self._known[key]

    def share(self, rows: Sequence[LayerPlan]) -> float:
        """The share of a whole plan, without its dead work: as :attr:`lookless.Plan.as_run`."""
        if all(row.is_full for row in rows):
            return 1.0
        alive = self.alive(rows)
        is_read, total = False, self.fixed / self.stock
        for layer in reversed(range(len(rows))):
            row, there = rows[layer], alive[layer]
            total += self.cell(layer, row, there, is_read=is_read)
            run = row if is_read else row.model_copy(update={"attention": Skip(), "ffn": Skip()})
            ranks = bool(run.ranks) and there > 0
            is_read = not row.keep.withdraws and (is_read or run.work.reads_visual_keys or ranks)
        return total

    def alive(self, rows: Sequence[LayerPlan]) -> list[float]:
        """Visual tokens alive in each layer."""
        counts, alive = [], self.visual
        for row in rows:
            alive = row.keep.alive_after(self.visual, alive)
            counts.append(alive)
        return counts


def kept_alive(alive: float, visual: float, rank: str | None) -> Full | Keep:
    """The ``keep`` of a plan of one layer in which ``alive`` of ``visual`` tokens are alive; ``rank`` is computed at
    its input, None for none. A whole number is every prompt's, a float a mean over prompts, as in ``alive_after``."""
    if not alive:
        return Keep(0)
    if alive >= visual:
        return Full()
    amount = {"count": alive} if isinstance(alive, int) else {"ratio": alive / visual}
    return Keep(**amount, rank=rank or "random")


def alone(row: LayerPlan) -> LayerPlan:
    """``row`` as of a plan of one layer: a rank that reads the layer before, which is not there, is replaced by one
    that does not. The price is the same."""
    cells = {
        name: cell.model_copy(update={"rank": "diversity"})
        for name, cell in row
        if cell.ranks_by and RANKS[cell.ranks_by].reads == "previous" and "rank" in type(cell).model_fields
    }
    return row.model_copy(update=cells) if cells else row


def by_flops(geometry: Geometry, visual: float, text: float) -> Pricing:
    """Shares of the stock model's prefill FLOPs, for ``geometry`` and prompts of ``visual`` and ``text`` tokens."""
    ones = {layer: geometry.only(layer) for layer in geometry.like}

    def of_layer(layer: int, row: LayerPlan) -> float:
        return flops.prefill(ones[layer], visual=visual, text=text, plan=Plan(layers=(row,))).total

    stock = sum(of_layer(layer, LayerPlan()) for layer in geometry.like)
    return Pricing(visual, of_layer, stock, like=geometry.like)
