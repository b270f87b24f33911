"""Visual tokens alone, or all tokens: the control of arXiv 2501.19036, in which reducing text collapses.

No plan reduces text, so that it is a diagnostic on the stock model's prefill: in the same layers every token attends
through the window alone, and passes a fifth of the neurons, chosen by a tenth of all tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cells import Neurons
from ..errors import ModelError
from ..loading import Loaded
from ..methods.redundancylens import window_at
from ..runtime.inplace import gated, matrices
from ..runtime.mixers import ATTENTION
from .answers import HEADS, Curves, Outcomes, curve_rows, lines_of
from .charts import kept_figure
from .claims import beats
from .definition import Experiment
from .hooks import Prompt, removed, watched
from .lab import Lab
from .redundancy import on_tasks, one_layer
from .report import Finding, Found, Table

VISUAL, ALL = "visual tokens", "all tokens"
COUNTS = (8, 16, 24)
CELL = Neurons(0.2, probe=0.1)


@contextmanager
def text_too(loaded: Loaded, attention: Collection[int], ffn: Collection[int], window: int) -> Iterator[None]:
    """In a prefill, every token of layers ``attention`` attends at most ``window - 1`` positions back, and every token
    of layers ``ffn`` passes the neurons that evenly spaced tokens of its prompt excite most."""
    with watched(loaded) as (located, prompt):

        def narrowed(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            return (args, {**kwargs, "attention_mask": _mask(prompt, window, kwargs)}) if prompt.is_prefill else None

        def thinned(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return _thinned(module, args[0], prompt) if prompt.is_prefill else None

        if not all(hasattr(layer, ATTENTION) for layer in located.layers):
            raise ModelError(
                f"redundancy-text narrows the attention of any layer, and in {located.geometry.model_type} some layers "
                f"have none: run the other experiments on it."
            )
        hooks = [
            *(located.layers[i].self_attn.register_forward_pre_hook(narrowed, with_kwargs=True) for i in attention),
            *(located.block.ffn_of(located.layers[i]).register_forward_hook(thinned) for i in ffn),
        ]
        with removed(hooks):
            yield


def _mask(prompt: Prompt, window: int, kwargs: dict[str, Any]) -> Tensor:
    """What is added to the scores, ``[batch, 1, queries, keys]``: causal, no padding, and the window."""
    assert prompt.real is not None
    x: Tensor = kwargs["hidden_states"]
    at = torch.arange(prompt.real.shape[1], device=x.device)
    near = (at[None] <= at[:, None]) & (at[None] > at[:, None] - window)
    allowed = near[None] & prompt.real.to(x.device)[:, None]
    allowed = allowed | torch.eye(len(at), dtype=torch.bool, device=x.device)  # padding has itself, and not nothing
    return torch.zeros_like(allowed, dtype=x.dtype).masked_fill(~allowed, torch.finfo(x.dtype).min)[:, None]


def _thinned(mlp: Any, x: Tensor, prompt: Prompt) -> Tensor:
    """The gated FFN of every token on the neurons of its prompt, ``[batch, sequence, hidden]``."""
    assert prompt.real is not None
    inner, (*_, down) = gated(mlp, x), matrices(mlp)
    kept = torch.zeros_like(inner[:, :1])
    for b, real in enumerate(prompt.real.to(x.device)):
        rows = real.nonzero().flatten()
        probes = rows[torch.linspace(0, len(rows) - 1, CELL.probes(len(rows))).round().long().to(rows.device)]
        best = inner[b, probes].abs().float().mean(0).topk(CELL.channels(inner.shape[-1])).indices
        kept[b, 0, best] = 1
    return F.linear(inner * kept, *down)


def run(lab: Lab) -> Found:
    counts = lab.scaled(*COUNTS)
    curves: dict[str, dict[float, Outcomes]] = {
        VISUAL: {n: on_tasks(lab, VISUAL, one_layer, n, n) for n in counts},
        ALL: {n: _all(lab, n) for n in counts},
    }
    table = Table(
        title="Answers kept when attention and FFN are reduced, for whom",
        heads=("reduced", "layers", *HEADS),
        rows=curve_rows(curves),
        note="All tokens: a diagnostic, which saves nothing. The layers are the same.",
    )
    figure = kept_figure(
        {lab.loaded.name: lines_of(curves)},
        title="Right answers kept when visual tokens are reduced, or text as well",
        x=f"reduced layers, of {lab.layers}",
    )
    return Found((table,), _findings(lab, curves, counts), figure)


def _all(lab: Lab, count: int) -> Outcomes:
    found = []
    for task in lab.tasks:
        orders = [order[:count] for order in one_layer(lab, task)]
        window = window_at(lab.work.visual)
        setting = f"{window}; {orders}"
        hooks = partial(text_too, lab.loaded, orders[0], orders[1], window)
        found.append(lab.answers_with(ALL, task, hooks, setting=setting))
    return tuple(found)


def _findings(lab: Lab, curves: Curves, counts: tuple[int, ...]) -> tuple[Finding, ...]:
    [half] = lab.scaled(16)
    return tuple(
        beats(
            "Sec. 2",
            "reducing text too loses far more than reducing visual tokens alone",
            curves[VISUAL][n],
            curves[ALL][n],
            f"with visual tokens alone above all tokens, {n} of {lab.layers} layers",
        )
        for n in dict.fromkeys((half, counts[-1]))
    )


EXPERIMENT = Experiment(run, "2501.19036", "visual tokens alone against all tokens", "Sec. 2 (ChartQA)")
