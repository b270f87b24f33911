"""The least a plan can cost: its matrix products and attention calls at its shapes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import PlanError
from ..geometry import GATED
from ..layer_plan import LIVE, VISUAL, AttentionPart, LayerWork, RowSet
from ..plan import Plan
from ..runtime.affine import on
from ..runtime.calls import Call, attend, causal_calls, scaled_dot_product, sliding_calls, window_calls
from ..runtime.delta import asked_rows
from ..runtime.families import Located
from ..runtime.inplace import is_mixture, matrices, output_projection, projections
from ..runtime.mixers import is_convolution, is_delta, mixer_of
from ..runtime.prompts import Prompts
from ..runtime.rows import Rows

#: Projections of rows that read and of rows that write, besides the one of what was read. A gated delta rule has one
#: more, of which rows that do not read make a part; so is the only one of a short convolution.
ATTENTION, CONVOLUTION = (("q_proj",), ("k_proj", "v_proj")), ((), ())
DELTA = (("in_proj_z",), ("in_proj_a", "in_proj_b"))


def lower_bound_of(located: Located, prompts: Prompts, plan: Plan | None) -> Callable[[], None]:
    """A function that does the unavoidable work of one prefill: every projection on its rows by the layer's own
    weights, and every attention call, on random numbers. No norm, rotary embedding, residual, gather, mask or cache,
    and no scan of a state.

    ``plan`` None is the stock model. Under a plan the text rows of the last layer are those of ``prompts.kept``, where
    it says some. What a rank decides is decided at random, and its own cost is not unavoidable.

    Raises:
        PlanError: the plan filters by what it sees, so its shapes are not known.
    """
    if plan is not None and not plan.is_static:
        raise PlanError("a plan that filters has no shapes known beforehand, so its lower bound cannot be timed.")
    steps: list[Callable[[], Any]] = []
    run_plan = (plan or Plan.full(located.geometry)).as_run
    works, alive_in = run_plan.works(kept=prompts.kept is not None), run_plan.alive(len(prompts.first[0]))
    for layer, work, alive in zip(located.layers, works, alive_in, strict=True):
        if alive < len(prompts.alive[0]):
            generator = torch.Generator().manual_seed(0)
            prompts.keep(
                tuple(
                    rows[torch.randperm(len(rows), generator=generator)[: int(alive)].sort().values]
                    for rows in prompts.alive
                )
            )
        for choice in work.choices:  # which tokens a rank chooses changes no shape
            chosen = int(choice.of(len(prompts.first[0])))
            prompts.choose(choice, tuple(rows[:chosen] for rows in prompts.alive))
        steps += _layer(layer, work, prompts)
        prompts.clear_choices()

    def run() -> None:
        for step in steps:
            step()

    return run


def _layer(layer: Any, work: LayerWork, prompts: Prompts) -> list[Callable[[], Any]]:
    batch, mixer, mlp = len(prompts.text), mixer_of(layer), prompts.block.ffn_of(layer)

    def count(rows: RowSet) -> int:
        return len(prompts.rows(rows).prompts[0])

    query, key, ffn = sum(count(part.query) for part in work.attention), count(work.key), count(work.ffn)
    reads, writes = DELTA if is_delta(layer) else CONVOLUTION if is_convolution(layer) else ATTENTION
    steps = [_linear(getattr(mixer, name), batch, query) for name in reads]
    steps.append(_linear(output_projection(mixer), batch, query))
    made = (getattr(mixer, name, None) for name in writes)  # some layers make no keys, or no values
    steps += [_linear(linear, batch, key) for linear in made if linear is not None]
    if is_delta(layer):  # the scan of a state is no matrix product of its own
        asked = len(asked_rows(work, prompts, mixer.conv_kernel_size).prompts[0])
        weight, width = mixer.in_proj_qkv.weight, mixer.key_dim
        steps += [_product(weight[:width], batch, asked), _product(weight[width:], batch, key)]
    elif is_convolution(layer):
        asked = len(asked_rows(work, prompts, mixer.conv_kernel_size).prompts[0])
        gate_in, gate, value = mixer.in_proj.weight.chunk(3)
        steps += [_product(gate_in, batch, asked), _product(value, batch, asked), _product(gate, batch, query)]
    else:
        reach = prompts.block.reach(mixer, prompts.length)
        both_ways = prompts.both_ways and prompts.block.is_both_ways(mixer)
        for part in work.attention:
            is_masked = both_ways and part.query.visual != "none"
            steps += (_masked if is_masked else partial(_attention, reach=reach))(mixer, part, prompts, batch)
    steps += _ffn(mlp, batch, ffn)
    if getattr(layer, "router", None) is not None:  # experts beside the FFN
        steps += _routed(layer.router, layer.router.proj.weight, layer.experts, batch * ffn)
    steps += [_linear(getattr(layer, name), batch, count(LIVE)) for name in prompts.block.embeds(layer)]
    if work.neurons is not None:
        visual = count(VISUAL)
        (gate, _), (up, _), (down, _) = matrices(mlp)
        probes, channels = int(work.neurons.probes(visual)), work.neurons.channels(gate.shape[0])
        steps += [_product(weight, batch, probes) for weight in (gate, up)]
        steps += [_product(part, batch, visual) for part in (gate[:channels], up[:channels], down[:, :channels])]
    for cell in work.affine:
        if cell.inner:
            maps = on(cell.weights, prompts.block.norm(layer).weight)[1:]
            steps += [_product(matrix, batch, count(VISUAL)) for matrix in maps]
    return steps


def _ffn(mlp: Any, batch: int, rows: int) -> list[Callable[[], Tensor]]:
    """A gated FFN; of a mixture, the router and each expert that it picks for random rows, whose weights must be
    read."""
    if not is_mixture(mlp):
        return [_linear(linear, batch, rows) for linear in projections(mlp)]
    shared = getattr(mlp, "shared_expert", None) or getattr(mlp, "shared_experts", None)
    steps = [] if shared is None else _ffn(shared, batch, rows)
    steps += [_linear(mlp.shared_expert_gate, batch, rows)] if hasattr(mlp, "shared_expert_gate") else []
    return steps + _routed(mlp.gate, mlp.gate.weight, mlp.experts, batch * rows)


def _routed(router: Any, weight: Tensor, experts: Any, rows: int) -> list[Callable[[], Tensor]]:
    """A router, whose projection is ``weight``, and the experts that it picks."""
    x = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        *_, picked = router(x)  # [rows, experts of a row]
    steps = [_product(weight, 1, rows)]
    for expert, mine in enumerate(picked.flatten().bincount().tolist()):
        if mine:
            weights = (experts.gate_up_proj[expert], experts.down_proj[expert])
            steps += [_product(weight, 1, mine) for weight in weights]
    return steps


def _linear(linear: Any, batch: int, rows: int) -> Callable[[], Tensor]:
    return _product(linear.weight, batch, rows)


def _product(weight: Tensor, batch: int, rows: int) -> Callable[[], Tensor]:
    x = torch.randn(batch, rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return lambda: F.linear(x, weight)


def _masked(module: Any, part: AttentionPart, prompts: Prompts, batch: int) -> list[Callable[[], Any]]:
    """The one call of rows that see each other both ways, over all keys."""
    query, key = prompts.rows(part.query), prompts.rows(part.key)
    q, k = len(query.prompts[0]), len(key.prompts[0])
    calls = [Call(slice(0, q), (slice(0, k),), torch.ones(q, k, dtype=torch.bool, device=query.device))]
    return [_call(module, batch, query, key, calls)] if q else []


def _attention(
    module: Any, part: AttentionPart, prompts: Prompts, batch: int, reach: int | None
) -> list[Callable[[], Any]]:
    """The calls of one part of a layer's attention; a query is scored with its keys and what else its block needs."""
    key = prompts.rows(part.key)
    if part.window is None and reach is not None:
        query = prompts.rows(part.query)
        return [_call(module, batch, query, key, sliding_calls(query, key, reach))] if query.count else []
    if part.query == part.key == LIVE:
        return [_call(module, batch, key, key, None)]
    if part.window is not None:
        visual = prompts.rows(part.query)
        calls = window_calls(visual, key, prompts.visual, part.window.blocks, part.window.size, reach)
        return [_call(module, batch, visual, key, calls)] if visual.count else []
    # Rows that a rank scatters are scored with all keys; text queried with them need not be.
    together = part.query.text == "all" and part.query.choice is not None
    steps = []
    text = RowSet("all", "none", part.query.before)
    for wanted in (text, RowSet("none", part.query.visual)) if together else (part.query,):
        query = prompts.rows(wanted)
        if query.count:
            heads = (1 if query.packed else batch) * module.config.num_attention_heads
            calls = causal_calls(query, key, scattered=wanted.choice is not None, heads=heads)
            steps.append(_call(module, batch, query, key, calls))
    return steps


def _call(module: Any, batch: int, query: Rows, key: Rows, calls: list[Call] | None) -> Callable[[], Any]:
    weight, is_gated = module.q_proj.weight, module.config.model_type in GATED

    def heads(width: int, rows: int) -> Tensor:
        shape = (batch, rows, width // module.head_dim, module.head_dim)
        return torch.randn(shape, dtype=weight.dtype, device=weight.device)

    q = heads(weight.shape[0] // (1 + is_gated), len(query.prompts[0]))
    width = weight.shape[0] // (1 + is_gated) // module.num_key_value_groups  # a layer may have no keys of its own
    k, v = (heads(width, len(key.prompts[0])) for _ in range(2))
    if calls is None:
        args = [t.transpose(1, 2) for t in (q, k, v)]
        return lambda: scaled_dot_product(args[0], args[1], args[2], None, module.scaling)
    return lambda: attend(q, k, v, calls, module.scaling)
