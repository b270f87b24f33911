"""Three readings of Eq. 6 of arXiv 2606.08511, measured: what a visual token gets where its attention is bypassed.

1. Nothing: the residual stream as it was. The only reading that gives the paper's FLOPs, and the one of this library.
2. As printed, ``LN(H) + H``: the layer's own normalised input is added. No plan says this, so that it is a diagnostic
   on the stock model.
3. A "heterogeneous mask": the token attends to itself and to the text before it. ``Window(1)`` is that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.distances import kl
from ..calibration.replay import visual_prompts
from ..calibration.sweep import sweep
from ..cells import Window
from ..comparison.statistics import retention_by_task
from ..layer_plan import LayerPlan
from ..loading import Loaded
from ..plan import Plan
from ..runtime.mixers import added_by, mixer_of
from ..scores import Scores
from .agreement import jaccard
from .answers import HEADS, Outcomes, row_of
from .charts import Line, curves_figure
from .claims import beats, counted
from .definition import Experiment
from .hooks import removed, watched
from .lab import Lab
from .report import Found, Table

GAIN = "visual_information_gain"
READINGS = ("1: nothing is added", "2: LN(H) is added", "3: itself and earlier text")


@contextmanager
def literal(loaded: Loaded, layers: Collection[int]) -> Iterator[None]:
    """Reading 2 in ``layers``: in a prefill, the attention's output at visual tokens is its own (normalised) input."""
    with watched(loaded) as (located, prompt):

        def added(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            if not prompt.is_prefill:
                return None
            normed: Tensor = args[0] if args else kwargs["hidden_states"]
            assert prompt.visual is not None
            changed = torch.where(prompt.visual[..., None].to(normed.device), normed, added_by(output))
            return changed if isinstance(output, Tensor) else (changed, *output[1:])

        with removed([mixer_of(located.layers[i]).register_forward_hook(added, with_kwargs=True) for i in layers]):
            yield


def run(lab: Lab) -> Found:
    [count] = lab.scaled(19)
    gains = {task: _gains(lab, task) for task in lab.tasks}
    chosen = {task: {r: s.lowest(count) for r, s in readings.items()} for task, readings in gains.items()}
    first, second, third = READINGS

    def window(task: str, reading: str) -> Plan:
        return lab.plan("v-skip", task, layers=0).at(chosen[task][reading], attention=Window(1))

    def literally(reading: str) -> Outcomes:
        return tuple(
            lab.answers_with(
                second,
                task,
                lambda task=task: literal(lab.loaded, chosen[task][reading]),  # type: ignore[misc]
                setting=" ".join(map(str, chosen[task][reading])),
            )
            for task in lab.tasks
        )

    rows: dict[tuple[str, str], Outcomes] = {
        (first, "1"): lab.on_tasks(first, lambda task: lab.plan("v-skip", task, layers=count)),
        (second, "1"): literally(first),
        (second, "2"): literally(second),
        (third, "1"): lab.on_tasks(third, lambda task: window(task, first)),
        (third, "3"): lab.on_tasks(third, lambda task: window(task, third)),
    }
    mean = {r: [fmean(gains[t][r].mean[i] for t in lab.tasks) for i in range(lab.layers)] for r in READINGS}
    tables = (
        Table(
            title=f"Answers kept, {count} of {lab.layers} layers",
            heads=("reading", "layers chosen by the gain of reading", *HEADS),
            rows=tuple((*name, *row_of(outcomes)) for name, outcomes in rows.items()),
            note="Reading 2 is measured by a diagnostic, which saves nothing; it would cost what reading 1 costs.",
        ),
        Table(
            title="Gain of one layer, nats, mean of the tasks",
            heads=("layer", *READINGS),
            rows=tuple((i, *(mean[r][i] for r in READINGS)) for i in range(lab.layers)),
        ),
    )
    same = fmean(jaccard(chosen[t][first], chosen[t][third]) for t in lab.tasks)
    kept = {name: retention_by_task(outcomes) for name, outcomes in rows.items()}
    findings = (
        beats(
            "Eq. 6",
            "reading 1 keeps more than the equation as printed (reading 2)",
            rows[first, "1"],
            rows[second, "1"],
            "above reading 2 in the same layers",
        ),
        beats(
            "Eq. 6",
            "the same, where reading 2 has layers of its own gain",
            rows[first, "1"],
            rows[second, "2"],
            "above reading 2 in its own layers",
        ),
        beats(
            "Eq. 7",
            "reading 3 keeps more than reading 1, as it computes more",
            rows[third, "1"],
            rows[first, "1"],
            "above reading 1 in the same layers",
        ),
        counted(
            "Eq. 7",
            "bypass and mask are equivalent (here: they choose the same layers on every task)",
            f"a Jaccard index of {same:.2f} in the mean of the tasks; "
            + ", ".join(
                f"{name[0][0]}: {100 * e.value:.1f} %" for name, e in kept.items() if e and name[0][0] == name[1]
            )
            + " kept.",
            same == 1,
        ),
    )
    figure = curves_figure(
        {lab.loaded.name: {r: Line([*range(lab.layers)], mean[r]) for r in READINGS}},
        title="Information gain of one layer, by what a visual token gets in it (mean of the tasks)",
        x="decoder layer",
        y="nats",
        log=True,
    )
    return Found(tables, findings, figure)


def _gains(lab: Lab, task: str) -> dict[str, Scores]:
    """The gain of each layer under each reading."""
    one, samples = lab.scores(task, GAIN), lab.draw(task)

    def windowed() -> Scores:
        return sweep(lab.loaded, samples, LayerPlan(attention=Window(1)), name="window_1_effect", progress=False)

    third = lab.store.cell(f"{task} gain of reading 3", ("reading 3", samples.hash), Scores, windowed)
    literally = lab.numbers(f"{task} gain of reading 2", ("reading 2", samples.hash), lambda: _literal_gains(lab, task))
    rows = tuple(zip(*(literally[str(layer)] for layer in range(lab.layers)), strict=True))
    second = one.model_copy(update={"per_sample": rows, "name": "literal_bypass_effect"})
    return dict(zip(READINGS, (one, second, third), strict=True))


@torch.no_grad()
def _literal_gains(lab: Lab, task: str) -> dict[str, tuple[float, ...]]:
    """By layer, KL(full || reading 2 in it) of each sample; passes of the whole model, as hooks begin at its start."""
    model = lab.loaded.model
    found: dict[str, list[float]] = {str(layer): [] for layer in range(lab.layers)}
    for prompt in visual_prompts(lab.loaded, lab.draw(task), f"reading 2 on {task}", "last", False):
        full = model(**prompt.inputs, logits_to_keep=1).logits[0, -1].float()
        for layer in range(lab.layers):
            with literal(lab.loaded, [layer]):
                changed = model(**prompt.inputs, logits_to_keep=1).logits[0, -1].float()
            found[str(layer)].append(float(kl(full, changed)))
    return {layer: tuple(values) for layer, values in found.items()}


EXPERIMENT = Experiment(run, "2606.08511", "three readings of the bypass, measured", "Eqs. 6, 7")
