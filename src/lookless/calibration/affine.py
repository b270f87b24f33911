"""Better cells than zero: what visual tokens do not compute is replaced by a constant or a map of low rank.

Where a plan skips an operator, visual tokens get nothing. :class:`Fitter` gives them what the operator would have
added, as well as a constant (:class:`~lookless.fitted.Mean`) or a map of low rank (:class:`~lookless.fitted.Linear`) of
the operator's input can say it: least squares over the visual tokens of calibration samples, in closed form. Operators
are fitted in the order in which they run, each on the states that the cells before it leave.

A token counts as much as it is read: by the length of the gradient, at what the operator adds to it, of the full
model's logits in a random direction. Unweighted, background drowns the few tokens that matter.

The parts are known: linear maps in place of a visual FFN from CAPA (arXiv 2602.00247), in place of attention by the
linear minimum mean squared error from NBL (arXiv 2505.21077), and fitted without training from ReplaceMe (arXiv
2505.02819). What is measured here is in docs/cells.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..cells import Affine, Cell, Full, Skip
from ..data import Samples
from ..errors import PlanError
from ..fitted import Linear, Mean
from ..layer_plan import VISUAL, LayerPlan
from ..loading import Loaded
from ..plan import Plan
from ..progress import track
from ..provenance import Provenance
from ..runtime.families import Located, locate
from ..runtime.ffn import whole_ffn
from ..runtime.forward import ForwardPass, Step, steps_of
from ..runtime.inplace import rms_norm
from ..runtime.layer import run_layer
from ..runtime.prompts import Prompts
from .gradients import frozen_parameters, update_gradients
from .regression import Moments
from .replay import Position, VisualPrompt, full_run_of, record_activations, visual_prompts

Operator = Literal["attention", "ffn"]
Place = tuple[int, Operator]  # layer and operator
Fitted = Mean | Linear
OPERATORS: tuple[Operator, ...] = ("attention", "ffn")
RIDGE = 1e-2
DRAWS = 2  # directions of the logits whose gradients say how much a token is read


class Fitter:
    """Fits cells to one model on the same samples, as often as asked: :meth:`refit`, :meth:`alone`.

    Each sample is run once, one forward pass and two backward. In memory are its embedded prompt, and how much each of
    its tokens is read. A fit then runs each layer once for each sample, and once more for each operator that is fitted.

    Args:
        loaded: the model, without a plan on it.
        samples: those without an image are left out.
        position: what reads: the ``last`` prompt token, or every token of the full model's own ``answer``.
        progress: show a bar on standard error.

    Raises:
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
    """

    def __init__(
        self, loaded: Loaded, samples: Samples, *, position: Position = "answer", progress: bool = True
    ) -> None:
        self._loaded, self._samples, self._progress = loaded, samples, progress
        self._located = locate(loaded.model)
        directions = torch.Generator().manual_seed(0)
        prompts = visual_prompts(loaded, samples, f"full runs on {samples.name}", position, progress)
        self._starts = [_start(loaded.model, self._located, prompt, directions) for prompt in prompts]

    @torch.no_grad()
    def refit(self, plan: Plan, *, rank: int = 8, ridge: float = RIDGE) -> Plan:
        """``plan`` with a fitted cell in place of each :class:`~lookless.Skip` of ``attention`` and ``ffn``.

        A skip that is dead work stays one: nothing reads what it would give. Fitted cells are fitted anew.

        Args:
            plan: for the model's architecture.
            rank: of the maps; 0 for the mean.
            ridge: see :meth:`lookless.calibration.regression.Moments.fit`.

        Raises:
            PlanError: the plan skips nothing that is read, or there is no such rank.
            PlanMismatchError: the plan is for another architecture.
            ModelError: it ranks by the vision tower, and this family's is not followed to visual tokens.
        """
        plan.check(self._located.geometry)
        self._located.reads_tower(plan)
        _check(plan, rank, self._located.geometry.hidden)
        wanted = {(layer, operator): rank for layer in range(len(plan.layers)) for operator in _wanted(plan, layer)}
        fitted = self._in_order(plan, wanted, ridge)
        return fitted.made_by(**_provenance(plan.provenance, self._loaded, self._samples, rank, ridge))

    @torch.no_grad()
    def again(self, plan: Plan, *, ridge: float = RIDGE) -> Plan:
        """``plan`` with its fitted cells fitted anew, each of the rank that it has, and its skips as they are.

        Raises:
            PlanMismatchError, ModelError: as :meth:`refit`.
        """
        plan.check(self._located.geometry)
        self._located.reads_tower(plan)
        cells = {(layer, operator): row for layer, row in enumerate(plan.layers) for operator in OPERATORS}
        affine = {place: getattr(row, place[1]).affine for place, row in cells.items()}
        return self._in_order(plan, {place: cell.inner for place, cell in affine.items() if cell is not None}, ridge)

    def _in_order(self, plan: Plan, ranks: Mapping[Place, int], ridge: float) -> Plan:
        """``plan`` with fitted cells of ``ranks``, each fitted on the states that the cells before it leave."""
        fitted, walks = plan, [start.walk(plan) for start in self._starts]
        for index, layer in enumerate(track(self._located.layers, "fitting", self._progress)):
            for walk in walks:
                walk.enter(layer, index)
            for operator in (operator for operator in OPERATORS if (index, operator) in ranks):
                moments = _moments(walks, layer, index, fitted.layers[index], operator)
                if moments.count:  # else every visual token was withdrawn before, or none is read
                    fitted = fitted.at([index], **{operator: _cell(moments, ranks[index, operator], ridge)})
            for walk in walks:
                walk.leave(layer, index, steps_of(fitted.layers))
        return fitted

    @torch.no_grad()
    def alone(self, *, ranks: Sequence[int] = (0, 8), ridge: float = RIDGE) -> dict[Place, dict[int, Fitted]]:
        """For each layer and operator of the full model, and by rank, the cell that would take its place if nothing
        else were planned: what a search chooses from. What it chose is then to be fitted in order, by :meth:`refit`::

            cell = fitter.alone()[3, "ffn"][8]  # a Linear of rank 8
            plan = fitter.refit(Plan.full(geometry).at([3], ffn=cell))

        An operator that nothing reads after it has none. Raises: PlanError: there is no such rank.
        """
        plan = Plan.full(self._located.geometry)
        for rank in ranks:
            _check_rank(rank, self._located.geometry.hidden)
        cells: dict[Place, dict[int, Fitted]] = {}
        steps, walks = steps_of(plan.layers), [start.walk(plan) for start in self._starts]
        for index, layer in enumerate(track(self._located.layers, "fitting", self._progress)):
            for operator in OPERATORS:
                moments = _moments(walks, layer, index, plan.layers[index], operator)
                if moments.count:  # else nothing reads it
                    cells[index, operator] = {rank: _cell(moments, rank, ridge) for rank in ranks}
            for walk in walks:
                walk.leave(layer, index, steps)
        return cells


@dataclass(frozen=True)
class _Start:
    """One prompt before the first layer.

    Attributes:
        prompts: makes the state of one pass.
        x: its embedded tokens, ``[1, sequence, hidden]``.
        arguments: of each layer.
        added: what the model adds after each layer, as in :class:`~lookless.calibration.replay.FullRun`.
        reads: of each operator, how much the logits change with what it adds to a token, ``[layers, sequence]``.
        tower: as in :class:`~lookless.calibration.replay.Activations`.
    """

    prompts: Callable[[], Prompts]
    x: Tensor
    arguments: Sequence[dict[str, Any]]
    added: Sequence[Tensor | None]
    reads: dict[Operator, Tensor]
    tower: tuple[Tensor, ...]

    def walk(self, plan: Plan) -> _Walk:
        return _Walk(self, ForwardPass(steps_of(plan.layers), self.prompts(), list(self.tower)), self.x)


def _start(model: nn.Module, located: Located, prompt: VisualPrompt, directions: torch.Generator) -> _Start:
    """``prompt`` before the first layer; random ``directions`` of the logits say how much each token is read."""
    squares = []
    with frozen_parameters(model), record_activations(located) as recorded, torch.enable_grad():
        last = located.inner(**prompt.inputs, use_cache=False).last_hidden_state
        logits = located.logits(last[0, prompt.read])
        for _ in range(DRAWS):
            direction = torch.randn(logits.shape, generator=directions).to(logits.device)
            attention, ffn = update_gradients((direction * logits).sum(), recorded, keep_graph=True)
            squares.append([torch.stack([g[0].float().square().sum(-1) for g in part]) for part in (attention, ffn)])
    reads = {o: torch.stack(part).mean(0).sqrt() for o, part in zip(OPERATORS, zip(*squares, strict=True), strict=True)}
    full = full_run_of(model, located, prompt, recorded)
    arguments = [given for _, given in full.inputs]
    return _Start(full.prompts, full.inputs[0][0], arguments, full.added, reads, full.tower)


def _moments(walks: Sequence[_Walk], layer: nn.Module, index: int, row: LayerPlan, operator: Operator) -> Moments:
    """Of what goes in and comes out of ``operator`` at the visual tokens of all prompts."""
    moments = Moments(walks[0].x.shape[-1], walks[0].x.device)
    for walk in walks:
        moments.add(*walk.seen(layer, index, row, operator))
    return moments


def _cell(moments: Moments, rank: int, ridge: float) -> Fitted:
    weights = moments.fit(rank=rank, ridge=ridge)
    return Linear(weights) if rank else Mean(weights)


def _check_rank(rank: int, width: int) -> None:
    """Raises: PlanError: there is no map of ``rank``."""
    if not 0 <= rank <= width:
        raise PlanError(
            f"a map of rank {rank} was asked for, and hidden states have {width} numbers: give 0 to {width}."
        )


def _check(plan: Plan, rank: int, width: int) -> None:
    """Raises: PlanError: nothing can be fitted."""
    _check_rank(rank, width)
    if not any(_wanted(plan, layer) for layer in range(len(plan.layers))):
        raise PlanError("the plan skips no attention and no FFN whose result is read, so there is nothing to fit.")


def _wanted(plan: Plan, layer: int) -> tuple[Operator, ...]:
    """The operators of ``layer`` that get a fitted cell."""

    def is_read(operator: str) -> bool:
        run = plan.at([layer], **{operator: Full()}).live().layers[layer]
        return bool(getattr(run, operator).is_full)

    row = plan.layers[layer]
    return tuple(o for o in OPERATORS if isinstance(getattr(row, o), Skip | Affine) and is_read(o))


def _provenance(before: Provenance, loaded: Loaded, samples: Samples, rank: int, ridge: float) -> dict[str, Any]:
    """What the fitted plan's provenance has that the plan's has not."""
    seen = dict.fromkeys((*(before.sample_hashes or ()), *samples.hashes))
    return {
        "knobs": {**before.knobs, "fitted_rank": rank, "fitted_ridge": ridge, "fitted_on": samples.hash},
        "model": before.model or loaded.name,
        "revision": before.revision or loaded.revision,
        "data": before.data or samples.name,
        "sample_hashes": tuple(seen),
    }


@dataclass
class _Walk:
    """One prompt on its way through the layers of a plan, as far as that is fitted.

    Attributes:
        start: where it began.
        running: the pass.
        x: the states at the layer reached, ``[1, sequence, hidden]``.
    """

    start: _Start
    running: ForwardPass
    x: Tensor

    def enter(self, layer: nn.Module, index: int) -> None:
        """Drop and choose visual tokens at the layer's input, as the plan says."""
        self.x = self.running.enter(layer, index, self.x, self.start.arguments[index])

    def seen(self, layer: Any, index: int, row: LayerPlan, operator: Operator) -> tuple[Tensor, Tensor, Tensor]:
        """What goes into ``operator`` at the living visual tokens, what it would add to each, both ``[alive, hidden]``,
        and how much that is read, ``[alive]``.

        ``row`` is the plan's; where the FFN is looked at, with the cell that its attention got."""
        prompts = self.running.prompts
        visual = prompts.rows(VISUAL)

        def after(**cells: Cell) -> Tensor:
            work = row.model_copy(update=cells).work
            _, record = run_layer(layer, work, prompts, self.x, wants_record=True, **self.start.arguments[index])
            assert record is not None
            assert record.after_attention is not None
            return visual.gather(record.after_attention)

        if operator == "attention":
            before = visual.gather(self.x)
            normed = rms_norm(prompts.block.norm(layer), before)
            added = after(attention=Full(), ffn=Skip()) - before
        else:
            attended = after(ffn=Skip())
            normed = rms_norm(getattr(layer, prompts.block.before_ffn), attended)
            added = whole_ffn(layer, prompts, attended)
        return normed[0], added[0], visual.gather(self.start.reads[operator][index][None])[0]

    def leave(self, layer: nn.Module, index: int, steps: Sequence[Step]) -> None:
        """On to the next layer, under the plan as it is fitted so far."""
        self.running.steps = steps
        x, added = self.running.compute(layer, index, self.x, **self.start.arguments[index]), self.start.added[index]
        self.x = x if added is None else x + added
