"""Which neurons visual tokens excite: what the probe of arXiv 2501.19036 rests on, layer by layer.

Its dynamic FFN takes the fifth of the neurons that a tenth of a prompt's visual tokens excites most. So a few tokens
have to find what all of them excite; these neurons have to hold most of what visual tokens excite at all; and they have
to differ from prompt to prompt, or a set that is fixed would do without a probe. Sets of one size are compared by what
they share of that size; two drawn at random share a fifth.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..cells import Neurons
from ..layer_plan import LayerPlan
from ..limits import check_cells
from ..runtime.families import locate
from ..runtime.inplace import gated
from .charts import Line, curves_figure
from .claims import counted
from .definition import Experiment
from .hooks import removed, watched
from .lab import Lab
from .report import Finding, Found, Table

CELL = Neurons(0.2, probe=0.1)
PROBE, TEXT, WITHIN, ACROSS, HELD = (
    "the probe's",
    "those of text",
    "those of another prompt",
    "those of another task",
    "share of the activation",
)
NAMES = (PROBE, TEXT, WITHIN, ACROSS, HELD)
#: Of one prompt: by layer, the sets of all visual tokens, of the probe and of text, and what the first set holds.
Excited = list[tuple[Tensor, Tensor, Tensor, float]]


def run(lab: Lab) -> Found:
    samples = tuple(lab.draw(task).hash for task in lab.tasks)
    known = lab.numbers("neurons", ("neurons", samples, repr(CELL)), lambda: _shares(lab))
    shares = {name: known[name] for name in NAMES if name in known}
    table = Table(
        title="What the visual tokens' neurons share with other sets, and what they hold",
        heads=("layer", *(f"{name}, %" for name in shares)),
        rows=tuple((layer, *(each[layer] for each in shares.values())) for layer in range(lab.layers)),
        note=f"The {CELL.ratio:.0%} of the neurons that a prompt's visual tokens excite most, in the mean of the "
        f"prompts. Sets drawn at random share {CELL.ratio:.0%}.",
    )
    figure = curves_figure(
        {lab.loaded.name: {name: Line([*range(lab.layers)], each) for name, each in shares.items()}},
        title="Neurons that visual tokens excite: shared with other sets (dashed: by chance)",
        x="decoder layer",
        y="share",
        level=CELL.ratio,
        height=4.2,
    )
    return Found((table,), _findings(shares), figure)


def _shares(lab: Lab) -> dict[str, tuple[float, ...]]:
    """By layer, in the mean of the prompts, or of the pairs of prompts."""
    by_task = [[excited(lab, item) for item in lab.draw(task) if item.pictures] for task in lab.tasks]
    every = [one for prompts in by_task for one in prompts]
    within = [pair for prompts in by_task for pair in combinations(prompts, 2)]
    across = [(a, b) for mine, others in combinations(by_task, 2) for a in mine for b in others]
    found = {
        PROBE: _mean(lab, ([shared(a, b) for a, b, _, _ in one] for one in every)),
        TEXT: _mean(lab, ([shared(a, b) for a, _, b, _ in one] for one in every)),
        WITHIN: _mean(lab, (_between(*pair) for pair in within)),
        ACROSS: _mean(lab, (_between(*pair) for pair in across)),
        HELD: _mean(lab, ([held for *_, held in one] for one in every)),
    }
    return {name: each for name, each in found.items() if each}


def _between(one: Excited, other: Excited) -> list[float]:
    return [shared(a, b) for (a, *_), (b, *_) in zip(one, other, strict=True)]


def _mean(lab: Lab, rows: Iterable[list[float]]) -> tuple[float, ...]:
    """By layer; empty where there is no row."""
    return tuple(map(fmean, zip(*rows, strict=True)))


def shared(a: Tensor, b: Tensor) -> float:
    """What two sets of one size have in common, as a share of it; bool ``[neurons]`` each."""
    return float((a & b).sum()) / float(a.sum())


@torch.no_grad()
def excited(lab: Lab, item: Any) -> Excited:
    """The neurons of one prompt.

    Raises:
        PlanMismatchError: an FFN is a mixture of experts.
    """
    located = locate(lab.loaded.model)
    check_cells([LayerPlan(ffn=CELL)] * lab.layers, lab.geometry)
    found: Excited = []
    with watched(lab.loaded) as (_, prompt):

        def record(mlp: Any, args: tuple[Tensor, ...]) -> None:
            assert prompt.visual is not None
            visual, x = prompt.visual[0].to(args[0].device), args[0][0]
            found.append(_sets(gated(mlp, x).abs().float(), visual))

        mlps = [located.block.ffn_of(layer) for layer in located.layers]
        with removed([mlp.register_forward_pre_hook(record) for mlp in mlps]):
            located.inner(**lab.loaded.inputs([item]), use_cache=False)
    return found


def _sets(inner: Tensor, visual: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Of absolute activations ``inner [tokens, neurons]``."""
    mine, text = inner[visual], inner[~visual]
    probes = torch.linspace(0, len(mine) - 1, int(CELL.probes(len(mine)))).round().long()
    whole = mine.mean(0)
    chosen = _most(whole)
    return chosen, _most(mine[probes].mean(0)), _most(text.mean(0)), float(whole[chosen].sum() / whole.sum())


def _most(magnitude: Tensor) -> Tensor:
    """The cell's share of the neurons, those of the largest ``magnitude [neurons]``."""
    chosen = torch.zeros_like(magnitude, dtype=torch.bool)
    chosen[magnitude.topk(CELL.channels(len(magnitude))).indices] = True
    return chosen


def _findings(shares: dict[str, tuple[float, ...]]) -> tuple[Finding, ...]:
    mean = {name: fmean(each) for name, each in shares.items()}
    lowest = min(shares[PROBE])
    return (
        counted(
            "Sec. 1.1",
            "a few sampled tokens find the neurons that all visual tokens excite (here: nine of ten of them)",
            f"a tenth of the tokens finds {mean[PROBE]:.1%} of them; {lowest:.1%} in the worst layer.",
            mean[PROBE] >= 0.9,
        ),
        counted(
            "Sec. 1.1",
            "a fifth of the neurons does most of the work for visual tokens (here: over half of the activation)",
            f"{mean[HELD]:.1%} of the absolute activation.",
            mean[HELD] > 0.5,
        ),
        counted(
            "Sec. 1.1",
            "which neurons depends on the prompt, so they are probed on the fly (here: two prompts of a task share "
            "less than the probe finds)",
            f"two prompts of a task share {mean[WITHIN]:.1%}, a prompt's own probe finds {mean[PROBE]:.1%}."
            if WITHIN in mean
            else "there is one prompt of each task.",
            mean[WITHIN] < mean[PROBE] if WITHIN in mean else None,
        ),
        counted(
            "Sec. 1.1",
            "visual tokens excite other neurons than text (here: they share less than half)",
            f"{mean[TEXT]:.1%} are shared with text.",
            mean[TEXT] < 0.5,
        ),
    )


EXPERIMENT = Experiment(run, "2501.19036", "which neurons visual tokens excite, and if a probe finds them", "Sec. 1.1")
