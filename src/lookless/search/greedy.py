"""Greedy search: changes made one after the other, each the one that hurts least given those before it.

The order it gives serves every budget, from one layer to all. GSOP sorts operations so, RedundancyLens layers. The
distance of a plan is an :class:`~lookless.search.objective.Objective`'s, in nats, of all its changes together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from .. import files
from ..cells import Cell, Full, Neurons, Skip, Window
from ..errors import PlanError
from ..layer_plan import COLUMNS, LayerPlan
from ..plan import Plan, Provenance
from ..progress import shown
from .objective import Objective, share_kept

SCHEMA_VERSION = 1
SLACK = 1e-9  # of prices of one plan, summed in another order

_Found = TypeVar("_Found", bound="Found")


class Found(BaseModel):
    """What a search found; frozen.

    Attributes:
        provenance: method, knobs, model and samples.
        evaluations: plans run for it.
        seconds: what it took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    provenance: Provenance
    evaluations: int = 0
    seconds: float = 0.0

    def save(self, path: str | Path) -> Path:
        """Write ``path`` whole or not at all."""
        files.write_text(Path(path), files.dump(self))
        return Path(path)

    @classmethod
    def load(cls: type[_Found], path: str | Path) -> _Found:
        """Raises: PlanError: no such file, an unknown key, or a newer schema."""
        return files.load(Path(path), cls, PlanError, SCHEMA_VERSION)


class Move(BaseModel):
    """Cells to set in one layer: those of ``cells`` that are not ``Full``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    cells: LayerPlan

    @property
    def set(self) -> dict[str, Cell]:
        return {column: cell for column in COLUMNS if (cell := getattr(self.cells, column)) != Full()}

    def on(self, plan: Plan) -> Plan:
        """``plan`` with this move made."""
        return plan.at([self.layer], **self.set)

    def __str__(self) -> str:
        return f"layer {self.layer}: " + ", ".join(f"{column} {cell}" for column, cell in self.set.items())


class Order(Found):
    """Moves in the order in which they are made; its beginnings serve every budget.

    Attributes:
        start: the plan the first move is made on.
        moves: all there were to choose from; the first ``preranked`` were made first, as given.
        taken: indices of ``moves``, in order.
        distances: of the plan after each of ``taken``, all moves so far made.
        waiting: what is left by the last ranking, best first; ``ranked_at`` is the distance then.
    """

    start: Plan
    moves: tuple[Move, ...]
    preranked: int = 0
    taken: tuple[int, ...] = ()
    distances: tuple[float, ...] = ()
    waiting: tuple[int, ...] = ()
    ranked_at: float = 0.0

    def plan(self, steps: int | None = None) -> Plan:
        """The plan after ``steps`` moves, all by default.

        Raises:
            PlanError: the order has not so many.
        """
        steps = len(self.taken) if steps is None else steps
        if not 0 <= steps <= len(self.taken):
            raise PlanError(f"{steps} moves were asked for and the order has {len(self.taken)}.")
        plan = self.start
        for index in self.taken[:steps]:
            plan = self.moves[index].on(plan)
        knobs = {**self.provenance.knobs, "steps": steps}
        return plan.model_copy(update={"provenance": self.provenance.model_copy(update={"knobs": knobs})})

    def within(self, kept: float, *, visual: float, text: float) -> Plan:
        """The plan of the fewest moves that keeps at most ``kept`` of the FLOPs of a prompt of so many tokens.

        Raises:
            PlanError: all moves together keep more, or the order knows no geometry.
        """
        if self.start.geometry is None:
            raise PlanError(
                "the order's start has no geometry, so it cannot be priced: start from Plan.full(geometry)."
            )
        for steps in range(len(self.taken) + 1):
            plan = self.plan(steps)
            share = share_kept(plan, self.start.geometry, visual, text)
            if share <= kept + SLACK:
                return plan
        raise PlanError(f"all {len(self.taken)} moves keep {share:.1%} of the FLOPs, and {kept:.1%} were asked for.")

    def __str__(self) -> str:
        rows = zip(self.taken, self.distances, strict=True)
        return "\n".join(f"{i:>5}  {d:10.6f}  {self.moves[m]}" for i, (m, d) in enumerate(rows, start=1))


def greedy_order(
    objective: Objective,
    moves: Iterable[Move],
    *,
    method: str = "greedy",
    first: Sequence[Move] = (),
    start: Plan | None = None,
    steps: int | None = None,
    limit: float | None = None,
    penalty: float = 1.0,
    stride: float | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> Order:
    """Again and again the move that hurts least, given those already made; of equal ones, the deepest.

    Args:
        moves: to choose from.
        method: the order's name in its provenance.
        first: moves made first, as they come.
        start: the plan to begin from, full by default.
        steps: at most so many moves, with ``first``; all by default.
        limit: stop before the move that takes the distance above this many nats.
        penalty: a sample whose distance rises by a move counts this many times one whose distance falls by as much.
        stride: follow one ranking of the moves until the distance is this many nats above where it was ranked, and only
            then rank anew (GSOP's reuse of rankings); at 0, moves that cost nothing are taken together. None ranks
            before every move, ``n (n + 1) / 2`` evaluations for n moves.
        path: saved there after every move; an order found there goes on where it stopped.
        progress: show a bar on standard error.

    Raises:
        PlanError: at ``path`` is an order of something else; or a move that cannot be made.
    """
    knobs: dict[str, int | float | str] = {"penalty": penalty, **({} if stride is None else {"stride": stride})}
    order = fresh = Order(
        start=start or Plan.full(objective.geometry),
        moves=(*first, *moves),
        preranked=len(first),
        provenance=objective.made_by(method, **knobs),
    )
    if path is not None and Path(path).exists():
        order = Order.load(path)
        unset = ("taken", "distances", "waiting", "ranked_at", "evaluations", "seconds")
        if order.model_copy(update={name: getattr(fresh, name) for name in unset}) != fresh:
            raise PlanError(
                f"{path} holds an order by {order.provenance.method} of other moves, knobs, model or samples than this "
                f"one by {method}: give another path, or remove the file."
            )
    wanted = len(order.moves) if steps is None else min(steps, len(order.moves))
    for _ in shown(range(len(order.taken), wanted), f"{method} order", progress):
        started, evaluations = time.perf_counter(), objective.evaluations
        after = _extended(objective, order, penalty, stride)
        if limit is not None and after.distances[-1] > limit:
            break
        spent = {
            "evaluations": order.evaluations + objective.evaluations - evaluations,
            "seconds": order.seconds + time.perf_counter() - started,
        }
        order = after.model_copy(update=spent)
        if path is not None:
            order.save(path)
    return order


def _extended(objective: Objective, order: Order, penalty: float, stride: float | None) -> Order:
    """``order`` with one more move."""
    plan, waiting, ranked_at = order.plan(), order.waiting, order.ranked_at
    if len(order.taken) < order.preranked:
        chosen = len(order.taken)
    else:
        stale = not waiting or stride is None
        if not stale and stride is not None:
            stale = objective(order.moves[waiting[0]].on(plan)) - ranked_at > stride
        if stale:
            before = objective.per_sample(plan)
            cost = {}
            for index in sorted(set(range(len(order.moves))) - set(order.taken)):
                move = order.moves[index]
                rises = [b - a for a, b in zip(before, objective.per_sample(move.on(plan)), strict=True)]
                cost[index] = (fmean(penalty * rise if rise > 0 else rise for rise in rises), -move.layer, index)
            waiting, ranked_at = tuple(sorted(cost, key=cost.__getitem__)), fmean(before)
        chosen, waiting = waiting[0], waiting[1:]
    return order.model_copy(
        update={
            "taken": (*order.taken, chosen),
            "distances": (*order.distances, objective(order.moves[chosen].on(plan))),
            "waiting": waiting if stride is not None else (),
            "ranked_at": ranked_at if stride is not None else 0.0,
        }
    )


def gsop_order(
    objective: Objective,
    *,
    steps: int | None = None,
    limit: float | None = None,
    stride: float | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> Order:
    """GSOP (arXiv 2507.02909v1): operations of all layers sorted greedily; a layer has three for visual tokens.

    They are to be read (``visible``), to ask (``attention``) and to be transformed (``ffn``). Departures: distance in
    place of GQA's exact match; one group of visual tokens, not two by tower attention; no set of dangerous operations
    left out beforehand, and the free depths its code searches by bisection are what ``stride=0`` takes at once. That
    what nobody reads may go is no rule here but a result: such work is dead, and costs nothing.
    """
    operations = (LayerPlan(visible=Skip()), LayerPlan(attention=Skip()), LayerPlan(ffn=Skip()))
    moves = [Move(layer=layer, cells=cells) for layer, cells in product(range(objective.geometry.layers), operations)]
    return greedy_order(
        objective, moves, method="gsop", steps=steps, limit=limit, stride=stride, path=path, progress=progress
    )


def redundancylens_order(
    objective: Objective,
    operator: Literal["attention", "ffn"],
    *,
    preranked: int = 0,
    penalty: float = 2.0,
    window: int = 256,
    ratio: float = 0.2,
    probe: float = 0.1,
    steps: int | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> Order:
    """RedundancyLens' hybrid layer ranking (arXiv 2501.19036), an order for each operator; their plans join with ``|``.

    The last ``preranked`` layers come first, from the end backwards; the others by greedy search, in which a loss
    counts ``penalty`` times a gain. Departures: loss and gain are of each sample's distance by one more
    layer, where the paper takes benchmark scores of some 2350 samples; and probes are evenly spaced, not drawn.

    Raises:
        PlanError: ``preranked`` is negative or more than the model's layers.
    """
    layers = objective.geometry.layers
    if not 0 <= preranked <= layers:
        raise PlanError(f"{preranked} layers were to be ranked beforehand and the model has {layers}.")
    cells = (
        LayerPlan(attention=Window(window)) if operator == "attention" else LayerPlan(ffn=Neurons(ratio, probe=probe))
    )
    backwards = [Move(layer=layer, cells=cells) for layer in reversed(range(layers))]
    return greedy_order(
        objective,
        backwards[preranked:],
        method=f"redundancylens-{operator}",
        first=backwards[:preranked],
        penalty=penalty,
        steps=steps,
        path=path,
        progress=progress,
    )
