"""Where VisiPruner filters and exits, what it keeps, and how much attention work it removes: arXiv 2510.17205.

Prompt by prompt, on calibration samples. Rows are counted where they run. The stock model beside it: how far the last
token's attention output turns without its most important visual token (the filter's test), and how few tokens make up
nine tenths of what the image gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import flops
from ..calibration.attention_maps import eager_attention
from ..calibration.replay import visual_prompts
from ..cells import Filter
from ..plan import Plan
from ..runtime.families import locate
from ..runtime.patching import apply
from ..runtime.tracing import trace
from .charts import Line, curves_figure
from .claims import counted
from .definition import Experiment
from .hooks import removed
from .lab import Lab
from .report import Finding, Found, Table

TURN, FEW = "turn without the most important token (1 - cos)", "tokens for nine tenths"
MOST = 0.9


def run(lab: Lab) -> Found:
    plan = lab.plan("visipruner", lab.tasks[0])
    traced = {task: _traced(lab, task, plan) for task in lab.tasks}
    read = {task: _read(lab, task) for task in lab.tasks}
    first = next(layer for layer, row in enumerate(plan.layers) if isinstance(row.keep, Filter))
    seen = {task: _seen(lab, each, first) for task, each in traced.items()}
    tables = (
        Table(
            title="By task, mean over prompts",
            heads=(
                "task",
                "filtered, %",
                "filter layer",
                "tokens kept",
                "of",
                "withdrawn, %",
                "exit layer",
                "attention work removed, %",
                "FLOPs of visual tokens saved, %",
            ),
            rows=tuple((lab.short[task], *list(vars(each).values())[:-1]) for task, each in seen.items()),
            note="Layers: of prompts that are filtered, or exit. Work: pairs of query and key, one of them visual.",
            digits=1,
        ),
        Table(
            title="The stock model, mean of the tasks",
            heads=("layer", TURN, f"{FEW} of what the image gives the last token"),
            rows=tuple(
                (i, *(fmean(fmean(read[t][f"{name} {i}"]) for t in lab.tasks) for name in (TURN, FEW)))
                for i in range(lab.layers)
            ),
        ),
    )
    layers = [*range(lab.layers)]
    panels = {
        "visual tokens left, share": {lab.short[task]: Line(layers, each.alive) for task, each in seen.items()},
        TURN: {lab.short[task]: Line(layers, [fmean(read[task][f"{TURN} {i}"]) for i in layers]) for task in lab.tasks},
    }
    figure = curves_figure(
        panels,
        title="VisiPruner, layer by layer, and what its filter looks at",
        x="decoder layer",
        y="",
        share=False,
        columns=2,
    )
    return Found(tables, _findings(lab, [*seen.values()], read), figure)


@dataclass(frozen=True)
class _Seen:
    """What VisiPruner did to the prompts of a task.

    Attributes:
        filtered, exited: shares of the prompts.
        filter_layer, exit_layer, kept: means of those prompts; None where there are none.
        visual: tokens of a prompt.
        removed: share of the attention work.
        saved: share of the FLOPs of visual tokens alone.
        alive: visual tokens left, as a share, by layer.
    """

    filtered: float
    filter_layer: float | None
    kept: float | None
    visual: float
    exited: float
    exit_layer: float | None
    removed: float
    saved: float
    alive: list[float]


def _seen(lab: Lab, traced: dict[str, tuple[float, ...]], first: int) -> _Seen:
    """Layers before ``first`` have no filter."""
    visual = traced["visual"]
    alive = [*zip(*(traced[f"alive {i}"] for i in range(lab.layers)), strict=True)]  # [prompts][layers]
    filters = [_first(each, first, below=count) for each, count in zip(alive, visual, strict=True)]
    exits = [_first(each, first, below=1) for each in alive]
    kept = [each[at] for each, at in zip(alive, filters, strict=True) if at is not None]
    return _Seen(
        filtered=len(kept) / len(visual),
        filter_layer=_mean(filters),
        kept=_mean(kept),
        visual=fmean(visual),
        exited=1 - exits.count(None) / len(visual),
        exit_layer=_mean(exits),
        removed=1 - sum(traced["pairs"]) / sum(traced["dense pairs"]),
        saved=1 - sum(traced["FLOPs"]) / sum(traced["dense FLOPs"]),
        alive=[fmean(a / v for a, v in zip(layer, visual, strict=True)) for layer in zip(*alive, strict=True)],
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _first(alive: Sequence[float], start: int, *, below: float) -> int | None:
    """The first layer from ``start`` on with fewer tokens than ``below``."""
    return next((layer for layer in range(start, len(alive)) if alive[layer] < below), None)


def _traced(lab: Lab, task: str, plan: Plan) -> dict[str, tuple[float, ...]]:
    samples = lab.draw(task)
    return lab.numbers(f"{task} visipruner", ("rows", plan.hash, samples.hash), lambda: _trace(lab, task, plan))


@torch.no_grad()
def _trace(lab: Lab, task: str, plan: Plan) -> dict[str, tuple[float, ...]]:
    """Of each prompt: its visual tokens, those alive in each layer, and its pairs with a visual token in them."""
    model, names = lab.loaded.model, ("visual", "pairs", "dense pairs", "FLOPs", "dense FLOPs")
    found: dict[str, list[float]] = {name: [] for name in (*names, *(f"alive {i}" for i in range(lab.layers)))}
    for prompt in visual_prompts(lab.loaded, lab.draw(task), "", "last", False):
        visual, text = prompt.lengths
        with apply(model, plan), trace(model) as counted:
            model(**prompt.inputs, logits_to_keep=(~prompt.visual).nonzero().flatten())  # all text is read
        alive = _alive(plan, counted.layers, visual, text)
        found["visual"].append(float(visual))
        found["dense pairs"].append(float(lab.layers * ((visual + text) ** 2 - text**2)))
        found["pairs"].append(
            float(sum(_pairs(row, rows, text) for row, rows in zip(plan.live().layers, counted.layers, strict=True)))
        )
        found["FLOPs"].append(sum(_visual_flops(lab, rows, text) for rows in counted.layers))
        found["dense FLOPs"].append(flops.prefill(lab.geometry, visual=visual, text=text).visual)
        for layer, count in enumerate(alive):
            found[f"alive {layer}"].append(float(count))
    return {name: tuple(values) for name, values in found.items()}


def _alive(plan: Plan, counted: list[dict[str, int]], visual: int, text: int) -> list[int]:
    """Living visual tokens by layer: key rows beside text, where keys are read; before the filter, all."""
    alive, left = [], visual
    for row, rows in zip(plan.layers, counted, strict=True):
        if isinstance(row.keep, Filter):
            left = rows["key"] - text
        alive.append(left)
    return alive


def _visual_flops(lab: Lab, rows: dict[str, int], text: int) -> float:
    """Of one layer, spent on visual rows alone, as the paper counts (but 2 for a multiply-add)."""
    query, key, ffn = (max(0, rows[operator] - text) for operator in ("query", "key", "ffn"))
    return flops.layer(lab.geometry, query=query, key=key, ffn=ffn)


def _pairs(row: Any, rows: dict[str, int], text: int) -> int:
    """Query times key of one layer, without those of text and text."""
    visual_queries, alive = rows["query"] - text, rows["key"] - text
    read_by_text = 0 if row.visible.skips else text * alive
    return read_by_text + visual_queries * rows["key"]


def _read(lab: Lab, task: str) -> dict[str, tuple[float, ...]]:
    samples = lab.draw(task)
    return lab.numbers(f"{task} contributions", ("contributions", samples.hash), lambda: _contributions(lab, task))


@torch.no_grad()
def _contributions(lab: Lab, task: str) -> dict[str, tuple[float, ...]]:
    """Of each layer and prompt of the stock model: :data:`TURN` and :data:`FEW`."""
    located = locate(lab.loaded.model)
    found: dict[str, list[float]] = {f"{name} {i}": [] for name in (TURN, FEW) for i in range(lab.layers)}
    for prompt in visual_prompts(lab.loaded, lab.draw(task), "", "last", False):
        watches = [_Watch(prompt.visual) for _ in located.layers]
        hooks = [h for layer, watch in zip(located.layers, watches, strict=True) for h in watch.hooks(layer.self_attn)]
        with removed(hooks), eager_attention(located):
            located.inner(**prompt.inputs, use_cache=False)
        for index, watch in enumerate(watches):
            found[f"{TURN} {index}"].append(watch.turn)
            found[f"{FEW} {index}"].append(watch.few)
    return {name: tuple(each) for name, each in found.items()}


@dataclass
class _Watch:
    """One layer's attention in one pass: what :func:`concentration` says of its last row."""

    visual: Tensor
    value: Tensor | None = None
    turn: float = 0.0
    few: float = 0.0

    def hooks(self, attention: Any) -> list[Any]:
        return [attention.v_proj.register_forward_hook(self._keep), attention.register_forward_hook(self._weigh)]

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.value = output[0]

    def _weigh(self, module: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
        assert self.value is not None
        self.turn, self.few = concentration(output[1][0, :, -1], self.value, self.visual, module.head_dim)
        self.value = None


def concentration(weights: Tensor, value: Tensor, visual: Tensor, head_dim: int) -> tuple[float, float]:
    """How far the attention's output turns at the most without one visual token, and how many visual tokens make up
    nine tenths of the lengths of their contributions.

    Args:
        weights: of one query row, ``[heads, keys]``.
        value: ``[keys, kv_heads * head_dim]``.
        visual: bool ``[keys]``.
    """
    heads, keys = weights.shape
    value = value.float().view(keys, -1, head_dim).transpose(0, 1)
    each = (weights.float()[..., None] * value.repeat_interleave(heads // len(value), dim=0)).transpose(0, 1).flatten(1)
    whole, mine = each.sum(0), each[visual.to(each.device)]
    turn = 1 - F.cosine_similarity(whole - mine, whole[None], dim=-1).amin()
    lengths = mine.norm(dim=-1).sort(descending=True).values.cumsum(0)
    few = int((lengths < MOST * lengths[-1]).sum()) + 1
    return float(turn), float(few)


def _findings(lab: Lab, seen: list[_Seen], read: dict[str, dict[str, tuple[float, ...]]]) -> tuple[Finding, ...]:
    visual, kept, exits = (
        fmean(each.visual for each in seen),
        _mean([each.kept for each in seen]),
        _mean([each.exit_layer for each in seen]),
    )
    filtered, gone = fmean(each.filtered for each in seen), fmean(each.exited for each in seen)
    removed = [each.removed for each in seen]
    few = min(fmean(fmean(read[t][f"{FEW} {i}"]) for t in lab.tasks) for i in range(lab.layers)) / visual
    return (
        counted(
            "Sec. 4",
            "the filter keeps 10.3 of 576 tokens (here: at most a twentieth)",
            f"{100 * filtered:.0f} % of the prompts are filtered"
            + ("." if kept is None else f", and {kept:.1f} of {visual:.0f} tokens kept."),
            kept is not None and kept / visual <= 0.05,
        ),
        counted(
            "Sec. 4",
            "all visual tokens leave before the end (layer 23.9 of 32; here: in most prompts)",
            f"{100 * gone:.0f} % of the prompts exit"
            + ("." if exits is None else f", at layer {exits:.1f} of {lab.layers}."),
            gone > 0.5,
        ),
        counted(
            "abstract",
            "99 % of the attention work that visual tokens cause is removed (here: 95 % or more)",
            f"{100 * fmean(removed):.1f} %, by task {100 * min(removed):.1f} to {100 * max(removed):.1f} %.",
            fmean(removed) >= 0.95,
        ),
        counted(
            "abstract",
            "53.9 % of the FLOPs are saved (the paper's count: of visual tokens alone; here: half or more)",
            f"{100 * fmean(each.saved for each in seen):.1f} %, dead work included.",
            fmean(each.saved for each in seen) >= 0.5,
        ),
        counted(
            "abstract",
            "a few tokens carry the fusion (here: in some layer a tenth of them makes up nine tenths)",
            f"at the least {100 * few:.0f} % of the tokens.",
            few <= 0.1,
        ),
    )


EXPERIMENT = Experiment(
    run, "2510.17205", "where it filters and exits, what is kept, what is removed", "Sec. 4; abstract"
)
