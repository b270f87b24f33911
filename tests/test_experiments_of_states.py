"""Experiments that read what goes through the layers: their own arithmetic against a slow way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lookless import Skip
from lookless.calibration.replay import visual_prompts
from lookless.experiments import operator_criteria, redundancy_neurons
from lookless.experiments import visipruner_lens as lenses
from lookless.experiments.lab import Lab, Sizes
from lookless.experiments.report import FAILS, HOLDS, OPEN
from lookless.plan import Plan
from lookless.runtime.families import locate
from lookless.runtime.patching import applied

TASKS = ("reference:chart", "reference:counting")


@pytest.fixture(scope="module")
def lab(reference, tmp_path_factory) -> Lab:
    return Lab(reference, TASKS, tmp_path_factory.mktemp("lab"), Sizes(questions=2, samples=2, seeds=2))


@torch.no_grad()
def test_neurons_are_those_of_the_plan_s_cell(lab):
    """Token by token with numpy, and the probe's are what the runtime takes."""
    [item, _] = lab.draw(TASKS[0])
    found = redundancy_neurons.excited(lab, item)
    assert len(found) == lab.layers
    located, [prompt, _] = locate(lab.loaded.model), visual_prompts(lab.loaded, lab.draw(TASKS[0]), "", "last", False)
    inner = {}
    mlp = located.layers[3].mlp
    hook = mlp.down_proj.register_forward_pre_hook(lambda _, args: inner.update(x=args[0][0].abs().double().numpy()))
    located.inner(**prompt.inputs, use_cache=False)
    hook.remove()
    tokens, visual = inner["x"], prompt.visual.numpy()
    count = round(0.2 * tokens.shape[1])

    def most(rows):
        return set(np.argsort(rows.mean(0))[-count:])

    rows = tokens[visual]
    probes = rows[[round(i * (len(rows) - 1) / (len(rows) // 10 - 1)) for i in range(len(rows) // 10)]]
    sets = [set(one.nonzero().flatten().tolist()) for one in found[3][:3]]
    assert sets[0] == most(rows)
    assert sets[2] == most(tokens[~visual])
    assert len(sets[1] & most(probes)) >= count - 2  # evenly spaced tokens are rounded to others now and then
    assert found[3][3] == pytest.approx(rows.mean(0)[[*sets[0]]].sum() / rows.mean(0).sum(), rel=1e-4)
    a, b = (torch.tensor(mask).bool() for mask in ([1, 1, 1, 0], [0, 1, 1, 1]))
    assert redundancy_neurons.shared(a, b) == pytest.approx(2 / 3)


def test_what_neurons_say():
    shares = dict.fromkeys(redundancy_neurons.NAMES, (0.95, 0.95))
    said = [one.verdict for one in redundancy_neurons._findings(shares)]
    assert said == [HOLDS, HOLDS, FAILS, FAILS]
    alone = {redundancy_neurons.PROBE: (0.5,), redundancy_neurons.TEXT: (0.2,), redundancy_neurons.HELD: (0.4,)}
    assert [one.verdict for one in redundancy_neurons._findings(alone)] == [FAILS, FAILS, OPEN, HOLDS]


@torch.no_grad()
def test_the_lens_ends_in_the_model_s_own_logits(lab):
    """Stock and under a plan; and in the middle it is the state after that layer, normalised, through the head."""
    model, [item, _] = lab.loaded.model, lab.draw(TASKS[0])
    inputs, located = lab.loaded.inputs([item]), locate(lab.loaded.model)
    for plan in (None, Plan.full(lab.geometry).at([2, 7], attention=Skip(), ffn=Skip())):
        with applied(model, plan):
            found = lenses.lens(lab, inputs)
            last = model(**inputs, logits_to_keep=1).logits[0, -1]
        assert found.shape[0] == lab.layers
        assert torch.allclose(found[-1], last.float(), atol=1e-4)
    states = []
    hook = located.layers[5].register_forward_hook(
        lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)
    )
    stock = lenses.lens(lab, inputs)
    hook.remove()
    slow = model.get_output_embeddings()(located.decoder.norm(states[0][0, -1]))
    assert torch.allclose(stock[5], slow.float(), atol=1e-4)


def test_when_an_answer_is_there():
    assert lenses.formed([0.0, 0.6, 0.1, 0.5, 0.8]) == 3  # for good: it was there once before
    assert lenses.formed([0.9, 0.9]) == 0
    assert lenses.formed([0.5, 0.0]) is None
    assert lenses.steepest([0.0, 0.1, 0.7, 0.8], 1) == pytest.approx(0.6 / 0.8)
    assert lenses.steepest([0.4, 0.8], 1) == pytest.approx(0.5)


def test_a_lens_without_an_image_sees_no_answer(lab):
    """In the mean of a few prompts the stock model's answer is likelier than the blind one's."""
    curves = lenses._curves(lab, TASKS[0])
    assert [*curves] == [name for name in lenses.NAMES if name in curves]
    assert curves[lenses.STOCK][-1] > curves[lenses.BLIND][-1]
    assert lenses._curves(lab, TASKS[0]) == curves  # from the cell, in the same order


@pytest.mark.parametrize("name", [operator_criteria.SIZE, operator_criteria.INFLUENCE])
def test_criteria_choose_by_their_own_scores(lab, name):
    """Both operators of a layer count as their sum; so of each operator those of the lowest scores are skipped."""
    measures = [f"{operator}_{operator_criteria.SUFFIX[name]}" for operator in ("attention", "ffn")]
    attention, ffn = (lab.scores(TASKS[0], measure) for measure in measures)
    together = operator_criteria.both(attention, ffn)
    assert together.mean == pytest.approx([a + f for a, f in zip(attention.mean, ffn.mean, strict=True)])
    plan = operator_criteria.plan(lab, TASKS[0], name, 0.3)
    for operator, scores in (("attention", attention), ("ffn", ffn)):
        skipped = plan.skipped(operator)
        kept = [scores.mean[layer] for layer in range(lab.layers) if layer not in skipped]
        assert max((scores.mean[layer] for layer in skipped), default=0.0) <= min(kept, default=1.0)
    assert plan.skipped("attention") or plan.skipped("ffn")
