"""Better cells than zero: what visual tokens do not compute is replaced by a constant or a map of low rank.

Where a plan skips an operator, visual tokens get nothing. :func:`refit` gives them what the operator would have added,
as well as a constant (:class:`~lookless.fitted.Mean`) or a map of low rank (:class:`~lookless.fitted.Linear`) of the
operator's input can say it: least squares over the visual tokens of calibration samples, in closed form. Operators are
fitted in the order in which they run, each on the states that the cells before it leave.

A token counts as much as it is read: by the length of the gradient, at what the operator adds to it, of the full
model's logits in a random direction. Unweighted, background drowns the few tokens that matter.

The parts are known: linear maps in place of a visual FFN from CAPA (arXiv 2602.00247), in place of attention by the
linear minimum mean squared error from NBL (arXiv 2505.21077), and fitted without training from ReplaceMe (arXiv
2505.02819). What is measured here is in docs/cells.md.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from ..plan import Plan, Provenance
from ..progress import track
from ..ranks import RANKS
from ..runtime.families import locate
from ..runtime.forward import ForwardPass, Step, steps_of
from ..runtime.inplace import rms_norm
from ..runtime.layer import run_layer
from .gradients import frozen_parameters, update_gradients
from .regression import Moments
from .replay import Position, VisualPrompt, full_run_of, record_activations, visual_prompts

Operator = Literal["attention", "ffn"]
OPERATORS: tuple[Operator, ...] = ("attention", "ffn")
RIDGE = 1e-2
DRAWS = 2  # directions of the logits whose gradients say how much a token is read


@torch.no_grad()
def refit(
    loaded: Loaded,
    samples: Samples,
    plan: Plan,
    *,
    rank: int = 8,
    ridge: float = RIDGE,
    position: Position = "answer",
    progress: bool = True,
) -> Plan:
    """``plan`` with a fitted cell in place of each :class:`~lookless.Skip` of ``attention`` and ``ffn``.

    A skip that is dead work stays one: nothing reads what it would give. Fitted cells are fitted anew. To fit one
    operator of one layer alone, give a plan that skips it alone::

        cell = refit(loaded, samples, Plan.full(geometry).at([3], ffn=Skip()), rank=8).layers[3].ffn

    For each sample one forward pass and two backward; then each layer once, and once more for each operator that is
    fitted in it. In memory are the states of all samples at one layer.

    Args:
        loaded: the model, without a plan on it.
        samples: those without an image are left out.
        plan: for the model's architecture.
        rank: of the maps; 0 for the mean.
        ridge: see :meth:`lookless.calibration.regression.Moments.fit`.
        position: what reads: the ``last`` prompt token, or every token of the full model's own ``answer``.
        progress: show a bar on standard error.

    Raises:
        DataError: no sample has an image, or the processor puts no visual token into a prompt.
        ModelError: a plan is applied to the model, or its logits are not finite; the message names the sample.
        PlanError: the plan skips nothing that is read, it ranks by the vision tower, or there is no such rank.
        PlanMismatchError: the plan is for another architecture.
    """
    located = locate(loaded.model)
    plan.check(located.geometry)
    _check(plan, rank, located.geometry.hidden)
    fitted, walks = plan, _walks(loaded, samples, plan, position, progress)
    for index, layer in enumerate(track(located.layers, "fitting", progress)):
        for walk in walks:
            walk.enter(layer, index)
        for operator in _wanted(plan, index):
            moments = _moments(walks, layer, index, fitted.layers[index], operator)
            if moments.count:  # else every visual token was withdrawn before, or none is read
                fitted = fitted.at([index], **{operator: _cell(moments, rank, ridge)})
        for walk in walks:
            walk.leave(layer, index, steps_of(fitted))
    return fitted.made_by(**_provenance(plan.provenance, loaded, samples, rank, ridge))


@torch.no_grad()
def cells_alone(
    loaded: Loaded,
    samples: Samples,
    *,
    ranks: Sequence[int] = (0, 8),
    ridge: float = RIDGE,
    position: Position = "answer",
    progress: bool = True,
) -> dict[tuple[int, Operator], dict[int, Affine]]:
    """For each layer and operator of the full model, and by rank, the cell that would take its place if nothing else
    were planned: what a search chooses from. Its plan is then to be fitted in order, by :func:`refit`::

        cell = cells_alone(loaded, samples)[3, "ffn"][8]  # Linear of rank 8
        plan = Plan.full(geometry).at([3], ffn=cell)

    An operator that nothing reads after it has none. Costs, arguments and errors are those of :func:`refit`.
    """
    located = locate(loaded.model)
    plan = Plan.full(located.geometry)
    for rank in ranks:
        _check_rank(rank, located.geometry.hidden)
    cells: dict[tuple[int, Operator], dict[int, Affine]] = {}
    steps, walks = steps_of(plan), _walks(loaded, samples, plan, position, progress)
    for index, layer in enumerate(track(located.layers, "fitting", progress)):
        for operator in OPERATORS:
            moments = _moments(walks, layer, index, plan.layers[index], operator)
            if moments.count:  # else nothing reads it
                cells[index, operator] = {rank: _cell(moments, rank, ridge) for rank in ranks}
        for walk in walks:
            walk.leave(layer, index, steps)
    return cells


def _walks(loaded: Loaded, samples: Samples, plan: Plan, position: Position, progress: bool) -> list[_Walk]:
    what = f"full runs on {samples.name}"
    directions = torch.Generator().manual_seed(0)
    prompts = visual_prompts(loaded, samples, what, position, progress)
    return [_walk(loaded, prompt, plan, directions) for prompt in prompts]


def _walk(loaded: Loaded, prompt: VisualPrompt, plan: Plan, directions: torch.Generator) -> _Walk:
    """``prompt`` at the first layer, and how much what is read depends on each visual token."""
    model, located, squares = loaded.model, locate(loaded.model), []
    with frozen_parameters(model), record_activations(located) as recorded, torch.enable_grad():
        last = located.inner(**prompt.inputs, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(last[0, prompt.read]).float()  # type: ignore[operator]
        for _ in range(DRAWS):
            direction = torch.randn(logits.shape, generator=directions).to(logits.device)
            attention, ffn = update_gradients((direction * logits).sum(), recorded, keep_graph=True)
            squares.append([torch.stack([g[0].float().square().sum(-1) for g in part]) for part in (attention, ffn)])
    reads = {o: torch.stack(part).mean(0).sqrt() for o, part in zip(OPERATORS, zip(*squares, strict=True), strict=True)}
    full = full_run_of(model, located, prompt, recorded)
    arguments = [given for _, given in full.inputs]
    return _Walk(ForwardPass(steps_of(plan), full.prompts()), full.inputs[0][0], arguments, full.added, reads)


def _moments(walks: Sequence[_Walk], layer: nn.Module, index: int, row: LayerPlan, operator: Operator) -> Moments:
    """Of what goes in and comes out of ``operator`` at the visual tokens of all prompts."""
    moments = Moments(walks[0].x.shape[-1], walks[0].x.device)
    for walk in walks:
        moments.add(*walk.seen(layer, index, row, operator))
    return moments


def _cell(moments: Moments, rank: int, ridge: float) -> Affine:
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
    for name in (name for row in plan.layers for name in row.ranks):
        if RANKS[name].reads == "tower":
            raise PlanError(f"the plan ranks by {name}, and fitting starts after the tower: rank by diversity.")


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
    """One prompt on its way through the layers of the plan, as far as that is fitted.

    Attributes:
        running: the pass.
        x: the states at the layer reached, ``[1, sequence, hidden]``.
        arguments: of each layer.
        added: what the model adds after each layer, as in :class:`~lookless.calibration.replay.FullRun`.
        reads: of each operator, how much the logits change with what it adds to a token, ``[layers, sequence]``.
    """

    running: ForwardPass
    x: Tensor
    arguments: Sequence[dict[str, Any]]
    added: Sequence[Tensor | None]
    reads: dict[Operator, Tensor]

    def enter(self, layer: nn.Module, index: int) -> None:
        """Drop and choose visual tokens at the layer's input, as the plan says."""
        self.x = self.running.enter(layer, index, self.x, self.arguments[index])

    def seen(self, layer: Any, index: int, row: LayerPlan, operator: Operator) -> tuple[Tensor, Tensor, Tensor]:
        """What goes into ``operator`` at the living visual tokens, what it would add to each, both ``[alive, hidden]``,
        and how much that is read, ``[alive]``.

        ``row`` is the plan's; where the FFN is looked at, with the cell that its attention got."""
        prompts = self.running.prompts
        visual = prompts.rows(VISUAL)

        def after(**cells: Cell) -> Tensor:
            work = row.model_copy(update=cells).work
            return visual.gather(run_layer(layer, work, prompts, self.x, **self.arguments[index])[0])

        if operator == "attention":
            before = visual.gather(self.x)
            normed = rms_norm(layer.input_layernorm, before)
            added = after(attention=Full(), ffn=Skip()) - before
        else:
            normed = rms_norm(layer.post_attention_layernorm, after(ffn=Skip()))
            added = layer.mlp(normed)
        return normed[0], added[0], visual.gather(self.reads[operator][index][None])[0]

    def leave(self, layer: nn.Module, index: int, steps: Sequence[Step]) -> None:
        """On to the next layer, under the plan as it is fitted so far."""
        self.running.steps = steps
        x, added = self.running.compute(layer, index, self.x, **self.arguments[index]), self.added[index]
        self.x = x if added is None else x + added
