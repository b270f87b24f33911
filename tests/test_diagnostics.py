"""Influence is what finite differences say; update sizes and cosines are what the hidden states say."""

from __future__ import annotations

import pytest
import torch

from helpers.families import FAMILIES
from helpers.loaded import ONE, loaded_of, made
from helpers.models import tiny_llava
from lookless import Plan, Scores, Skip, apply, data, methods, screen
from lookless.calibration.gradients import DIAGNOSTICS, diagnose, scores_by_name, scores_of_names
from lookless.calibration.sweep import calibrate
from lookless.errors import DataError, ScoresError
from lookless.runtime.families import geometry_of, locate
from lookless.runtime.mixers import mixer_of
from lookless.runtime.prompts import prompts_of


def said(model, arguments, answer=None):
    """Log-probability of ``answer`` (by default the likeliest) at the last position."""
    with torch.no_grad():
        logits = model(**arguments).logits[0, -1].double()
    answer = int(logits.argmax()) if answer is None else answer
    return float(torch.log_softmax(logits, -1)[answer]), answer


def scaled(module, visual, by):
    """A hook that multiplies the visual rows of what ``module`` adds."""

    def hook(_, __, out):
        update = (out[0] if isinstance(out, tuple) else out).clone()
        update[0, visual] *= by
        return (update, *out[1:]) if isinstance(out, tuple) else update

    return module.register_forward_hook(hook)


@pytest.mark.parametrize("name", FAMILIES)
def test_influence_is_the_finite_difference(name):
    model, arguments = made(name)
    scores = diagnose(loaded_of(model, arguments), ONE, progress=False)
    located = locate(model)
    visual = prompts_of(located, arguments).visual[0]
    _, answer = said(model, arguments)
    # where a row goes to another expert there is a jump, and what a state remembers is bent
    eps, pairs = 1e-3 if "moe" in name or "3_5" in name else 1e-2, []
    for operator in ("attention", "ffn"):
        found = scores[f"{operator}_influence"].per_sample[0]
        for layer, module in enumerate(located.layers):
            ends = []
            for by in (1 - eps, 1 + eps):
                hook = scaled(mixer_of(module) if operator == "attention" else module.mlp, visual, by)
                ends.append(said(model, arguments, answer)[0])
                hook.remove()
            pairs.append((found[layer], abs(ends[1] - ends[0]) / (2 * eps)))
        assert found[-1] == 0.0  # nobody reads what the last layer does to visual tokens
    largest = max(expected for _, expected in pairs)
    assert largest > 0.01  # or nothing has been compared
    for mine, expected in pairs:
        assert mine == pytest.approx(expected, rel=0.01, abs=0.01 * largest)


def test_sizes_and_cosines_are_of_the_hidden_states():
    model, arguments = made("llava")
    scores = diagnose(loaded_of(model, arguments), ONE, progress=False)
    assert set(scores) == set(DIAGNOSTICS)
    visual = prompts_of(locate(model), arguments).visual[0]
    with torch.no_grad():
        states = model(**arguments, output_hidden_states=True).hidden_states
    layers = model.model.language_model.layers
    for layer in range(len(layers) - 1):  # the last one is told after the norm
        x, y = states[layer][0, visual], states[layer + 1][0, visual]
        cos = torch.nn.functional.cosine_similarity(x, y, dim=-1).mean()
        assert scores["state_cosine"].per_sample[0][layer] == pytest.approx(1 - float(cos), abs=1e-5)
        with torch.no_grad(), apply(model, Plan.full(len(layers)).at([layer], ffn=Skip())):
            half = model(**arguments, output_hidden_states=True).hidden_states[layer + 1][0, visual]
        for name, update in (("attention", half - x), ("ffn", y - half)):
            size = (update.norm(dim=-1) / x.norm(dim=-1)).mean()
            assert scores[f"{name}_update_size"].per_sample[0][layer] == pytest.approx(float(size), rel=1e-3)


def test_the_answers_own_tokens_can_be_told(reference, tmp_path):
    from lookless import load_data

    samples = load_data("reference:text", split="calibration", limit=2)
    last, answer = (diagnose(reference, samples, position=p, progress=False) for p in ("last", "answer"))
    assert answer["ffn_influence"].position == "answer"
    assert answer["ffn_influence"].per_sample != last["ffn_influence"].per_sample
    path = last["attention_influence"].save(tmp_path / "influence.json")
    assert Scores.load(path) == last["attention_influence"]
    inputs, target = reference.inputs([samples.items[0]]), None
    n = inputs["input_ids"].shape[1]
    ids = reference.model.generate(**inputs, max_new_tokens=32, do_sample=False)
    longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    target = ids[0, n:]
    visual = prompts_of(locate(reference.model), inputs).visual[0].nonzero().flatten()
    ends = []
    for by in (0.995, 1.005):
        hook = scaled(locate(reference.model).layers[0].mlp, visual, by)
        with torch.no_grad():
            logs = torch.log_softmax(reference.model(**longer).logits[0, n - 1 : -1].double(), -1)
        hook.remove()
        ends.append(float(logs.gather(-1, target[:, None]).mean()))
    assert answer["ffn_influence"].per_sample[0][0] == pytest.approx(abs(ends[1] - ends[0]) / 0.01, rel=0.05, abs=1e-4)


def hooks_on(model):
    return [(*m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize(
    "run",
    [
        lambda loaded: diagnose(loaded, ONE, progress=False),
        lambda loaded: screen(loaded, ONE, {"freeze_effect": 2}, progress=False),
    ],
    ids=["diagnose", "screen"],
)
def test_the_model_is_given_back_as_it_was(run):
    model, arguments = made("llava")
    frozen = next(model.parameters()).requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        logits = model(**arguments).logits
        hooks = hooks_on(model)  # transformers hangs its own there at the first call
        run(loaded_of(model, arguments))  # under no_grad, too
        assert torch.equal(model(**arguments).logits, logits)
    assert [p.requires_grad for p in model.parameters()] == before
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert hooks_on(model) == hooks


def test_refusals():
    model, _ = made("llava")
    blind = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    with pytest.raises(DataError, match="put no visual token"):
        diagnose(loaded_of(model, blind), ONE, progress=False)
    with pytest.raises(DataError, match="none of the 1 samples"):
        diagnose(loaded_of(model, blind), data.Samples("s", (data.Sample((), "q", ""),)), progress=False)


def scores_of(*means, name="risk", **fields):
    geometry = geometry_of(tiny_llava()).model_copy(update={"layers": len(means)})
    return Scores(name=name, per_sample=(means,), geometry=geometry, **fields)


def test_labels_of_measured_risks():
    model, arguments = made("llava")
    loaded = loaded_of(model, arguments)
    names = ("visual_information_gain", "ffn_effect", "freeze_effect")
    risks = [calibrate(loaded, ONE, measure=name, progress=False) for name in names]
    roles = methods.labels(*risks, tau=0.003)
    assert len(roles) == 5
    assert roles[-1] == "silent"


def test_scores_by_name():
    """Measures and diagnostics together are what each is alone, and no sample is run twice for two measures."""
    model, arguments = made("llava")
    loaded = loaded_of(model, arguments)
    names = ["ffn_effect", "state_cosine", "withdrawal"]
    runs = []
    counted = model.model.register_forward_pre_hook(lambda *_: runs.append(1))
    found = scores_of_names(loaded, ONE, names, progress=False)
    counted.remove()
    assert [*found] == names == [scores.name for scores in found.values()]
    assert len(runs) == 2  # a full run, and one for gradients
    for name in ("ffn_effect", "withdrawal"):
        assert found[name].per_sample == calibrate(loaded, ONE, measure=name, progress=False).per_sample
    assert found["state_cosine"].per_sample == diagnose(loaded, ONE, progress=False)["state_cosine"].per_sample
    with pytest.raises(ScoresError, match=r"no measure is called 'vibes'; choose one of .*state_cosine"):
        scores_by_name(loaded, ONE, "vibes", progress=False)
