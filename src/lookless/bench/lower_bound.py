"""The least a plan can cost: its matrix products and attention calls at its shapes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cells import Full, Neurons, Skip, Top, Window
from ..errors import PlanError
from ..plan import Plan
from ..runtime.families import Located
from ..runtime.prompts import Prompts
from ..runtime.rows import Call, Rows, attend, causal_calls, scaled_dot_product, window_calls


def floor_of(located: Located, prompts: Prompts, plan: Plan | None) -> Callable[[], None]:
    """A function that does the unavoidable work of one prefill: every projection on its rows by the layer's own
    weights, and every attention call, on random numbers. No norm, rotary embedding, residual, gather, mask or cache.

    ``plan`` None is the stock model. What a rank decides is decided at random, and its own cost is not unavoidable.

    Raises:
        PlanError: the plan filters by what it sees, so its shapes are not known.
    """
    if plan is not None and not plan.is_static:
        raise PlanError("a plan that filters has no shapes known beforehand, so its floor cannot be timed.")
    steps: list[Callable[[], Any]] = []
    parts = (plan or Plan.full(located.geometry)).as_run
    whole = len(prompts.first[0])
    for layer, (row, alive, _) in zip(located.layers, parts.parts(whole), strict=True):
        if alive < len(prompts.alive[0]):
            generator = torch.Generator().manual_seed(0)
            prompts.keep(
                tuple(
                    rows[torch.randperm(len(rows), generator=generator)[: int(alive)].sort().values]
                    for rows in prompts.alive
                )
            )
        steps += _layer(layer, row, prompts)

    def run() -> None:
        for step in steps:
            step()

    return run


def _layer(layer: Any, row: Any, prompts: Prompts) -> list[Callable[[], Any]]:
    text, visual, live = (len(prompts.rows(kind).prompts[0]) for kind in ("text", "visual", "live"))  # type: ignore[arg-type]
    batch = len(prompts.text)
    attention, mlp = layer.self_attn, layer.mlp
    asking = text + _some(row.attention, prompts, visual)
    readable = live if row.reads_visual_keys else text
    steps = [
        _linear(attention.q_proj, batch, asking),
        _linear(attention.k_proj, batch, readable),
        _linear(attention.v_proj, batch, readable),
        _linear(attention.o_proj, batch, asking),
        *_attention(attention, row, prompts, batch),
    ]
    transformed = text + (0 if isinstance(row.ffn, Neurons) else _some(row.ffn, prompts, visual))
    for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        steps.append(_linear(linear, batch, transformed))
    if isinstance(row.ffn, Neurons):
        probes, channels = int(row.ffn.probes(visual)), row.ffn.channels(mlp.gate_proj.weight.shape[0])
        steps += [_linear(mlp.gate_proj, batch, probes), _linear(mlp.up_proj, batch, probes)]
        for weight in (
            mlp.gate_proj.weight[:channels],
            mlp.up_proj.weight[:channels],
            mlp.down_proj.weight[:, :channels],
        ):
            steps.append(_product(weight, batch, visual))
    return steps


def _some(cell: Any, prompts: Prompts, visual: int) -> int:
    if isinstance(cell, Top):
        return min(visual, int(cell.of(len(prompts.first[0]))))
    return 0 if cell == Skip() else visual


def _linear(linear: Any, batch: int, rows: int) -> Callable[[], Tensor]:
    return _product(linear.weight, batch, rows)


def _product(weight: Tensor, batch: int, rows: int) -> Callable[[], Tensor]:
    x = torch.randn(batch, rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return lambda: F.linear(x, weight)


def _attention(module: Any, row: Any, prompts: Prompts, batch: int) -> list[Callable[[], Any]]:
    """The attention calls of one layer, each query scored with the keys it reads and no others than a block needs."""
    text, visual, live = prompts.rows("text"), prompts.rows("visual"), prompts.rows("live")
    shared = row.visible == Full() and (row.attention == Full() or isinstance(row.attention, Top))
    if shared and row.attention == Full():
        return [_call(module, batch, live, live, None)]
    reads = text if row.visible == Skip() else live
    steps = [_call(module, batch, text, reads, causal_calls(text, reads))]
    if isinstance(row.attention, Window) and visual.count:
        calls = window_calls(visual, live, prompts.visual, row.attention.blocks, row.attention.size)
        steps.append(_call(module, batch, visual, live, calls))
    elif row.attention != Skip() and visual.count:
        chosen = visual
        if isinstance(row.attention, Top):
            count = _some(row.attention, prompts, len(visual.prompts[0]))
            chosen = Rows(tuple(r[:count] for r in visual.prompts), visual.length, visual.packed, visual.device)
        steps.append(_call(module, batch, chosen, live, causal_calls(chosen, live, scattered=chosen is not visual)))
    return steps


def _call(module: Any, batch: int, query: Rows, key: Rows, calls: list[Call] | None) -> Callable[[], Any]:
    weight = module.q_proj.weight

    def heads(width: int, rows: int) -> Tensor:
        shape = (batch, rows, width // module.head_dim, module.head_dim)
        return torch.randn(shape, dtype=weight.dtype, device=weight.device)

    q = heads(weight.shape[0], len(query.prompts[0]))
    k, v = (heads(module.k_proj.weight.shape[0], len(key.prompts[0])) for _ in range(2))
    if calls is None:
        args = [t.transpose(1, 2) for t in (q, k, v)]
        return lambda: scaled_dot_product(args[0], args[1], args[2], None, module.scaling)
    return lambda: attend(q, k, v, calls, module.scaling)
