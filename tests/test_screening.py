"""An estimate is what finite differences say, what is in doubt is measured, and the choice is the sweep's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.loaded import ONE, loaded_of, made
from lookless import Full, Scores, calibrate, load_data, screen
from lookless.calibration import screening
from lookless.calibration.screening import SCREENED, _in_doubt
from lookless.calibration.sweep import INTERVENTIONS
from lookless.errors import ScoresError
from lookless.layer_plan import LayerPlan
from lookless.methods import v_skip, v_skip_universal
from lookless.runtime.families import locate
from lookless.runtime.prompts import prompts_of
from lookless.unfinished import Unfinished

VIG, FFN = "visual_information_gain", "ffn_effect"


def log_odds(model, arguments, top=None, row=-1):
    """Of the likeliest token (or ``top``) against all others, in float64; and that token."""
    with torch.no_grad():
        probs = torch.softmax(model(**arguments).logits[0, row].double(), -1)
    top = int(probs.argmax()) if top is None else top
    return float(torch.log(probs[top] / (probs.sum() - probs[top]))), top


def weakened(layer, measure, visual, by):
    """Hooks that leave ``1 - by`` of what the measure's operators add to visual rows."""

    def fade(_, __, out):
        update = (out[0] if isinstance(out, tuple) else out).clone()
        update[0, visual] *= 1 - by
        return (update, *out[1:]) if isinstance(out, tuple) else update

    def fade_both(_, args, kwargs, out):
        x = args[0] if args else kwargs["hidden_states"]
        out = out.clone()
        out[0, visual] -= by * (out[0, visual] - x[0, visual])
        return out

    if measure == VIG:
        return layer.self_attn.register_forward_hook(fade)
    if measure == FFN:
        return layer.mlp.register_forward_hook(fade)
    return layer.register_forward_hook(fade_both, with_kwargs=True)


def pull(model, arguments, measure, layer, visual, top, row=-1, eps=1e-2):
    """How fast the log-odds fall as the update is taken away: a central difference."""
    ends = []
    for by in (-eps, eps):
        hook = weakened(locate(model).layers[layer], measure, visual, by)
        ends.append(log_odds(model, arguments, top, row)[0])
        hook.remove()
    return (ends[0] - ends[1]) / (2 * eps)


def of_two(odds):
    p = 1 / (1 + np.exp(-odds))
    return np.array([p, 1 - p])


def divergence(p, q):
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("measure", SCREENED)
def test_the_estimate_is_what_finite_differences_say(name, measure):
    model, arguments = made(name)
    found = screen(loaded_of(model, arguments), ONE, {measure: 1}, trust=1, progress=False)[measure]
    assert not any(map(any, found.measured))
    visual = prompts_of(locate(model), arguments).visual[0]
    odds, top = log_odds(model, arguments)
    expected = []
    for layer in range(len(locate(model).layers)):
        u = pull(model, arguments, measure, layer, visual, top)
        p, q = of_two(odds), of_two(odds - u)
        reverse = measure == "layer_contribution"
        expected.append(divergence(q, p) if reverse else divergence(p, q))
    assert found.per_sample[0] == pytest.approx(expected, rel=0.03, abs=0.003 * max(expected))
    assert max(expected) > 1e-6  # or nothing has been compared
    assert found.mean[-1] == 0.0  # nobody reads what the last layer does to visual tokens


def in_double(model, arguments):
    """Both in float64, all the way: transformers' own norms take a detour through float32."""
    model = model.double()
    decoder = locate(model).decoder
    for name, norm in [*decoder.named_modules()]:
        if hasattr(norm, "variance_epsilon"):
            double = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, dtype=torch.float64)
            double.load_state_dict(norm.state_dict())
            decoder.set_submodule(name, double)
    return model, {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}


@pytest.mark.parametrize("measure", SCREENED)
def test_the_smaller_a_skip_the_truer_its_estimate(measure):
    """Of two answers, as updates tend to zero, the estimate is the sweep's score: no term of first order is missing."""
    small = 1e-6  # the share of each update that is left; of first order, so is the estimate's error
    model, arguments = in_double(*made("llava"))
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features, dtype=torch.float64)
    with torch.no_grad():
        # What a skip moves shrinks with the square: its own update, and the attention by which it is read.
        head.weight.copy_(model.lm_head.weight * (0.2 / small**2))
        head.bias.zero_()
        for layer in locate(model).layers:
            layer.self_attn.o_proj.weight *= small
            layer.mlp.down_proj.weight *= small
        model.lm_head = head
        logits = model(**arguments).logits[0, -1]
        head.bias[:2] = torch.tensor([0.5, 0.0]) - logits[:2]  # two answers, neither is sure
        head.bias[2:] = -1e3 * logits.abs().max()  # and no others
    loaded = loaded_of(model, arguments)
    estimate = screen(loaded, ONE, {measure: 1}, trust=1, progress=False)[measure]
    exact = calibrate(loaded, ONE, measure=measure, progress=False)
    assert min(exact.mean[:-1]) > 1e-3  # float32 log-probabilities round scores by some 1e-7
    assert exact.mean[-1] == 0.0
    assert estimate.mean == pytest.approx(exact.mean, rel=0.01)


def test_scores_are_the_sweeps_where_measured_and_estimates_elsewhere(reference):
    samples = load_data("reference:chart", split="calibration", limit=6)
    wanted = {VIG: 7, FFN: 7}
    found = screen(reference, samples, wanted, progress=False)
    guessed = screen(reference, samples, wanted, trust=1, progress=False)
    for name, scores in found.items():
        exact = calibrate(reference, samples, measure=name, progress=False)
        assert scores.lowest(7) == exact.lowest(7)
        known = np.array(scores.measured)
        assert 0 < known.sum() < known.size / 2
        values, swept, estimated = (np.array(s.per_sample) for s in (scores, exact, guessed[name]))
        assert values[known] == pytest.approx(swept[known], rel=1e-3, abs=1e-9)
        assert np.array_equal(values[~known], estimated[~known])
        layers = known.shape[1]
        measured_layers = (known * np.arange(layers, 0, -1)).sum()
        assert scores.passes == pytest.approx(2 + measured_layers / layers / len(samples))
        assert scores.passes < 6  # of the papers' 13


def test_each_token_of_the_answer_is_told(reference):
    samples = load_data("reference:text", split="calibration", limit=1)
    found = screen(reference, samples, {FFN: 5}, position="answer", trust=1, progress=False)[FFN]
    arguments = reference.inputs(list(samples))
    n = arguments["input_ids"].shape[1]
    ids = reference.model.generate(**arguments, max_new_tokens=32, do_sample=False)
    longer = {**arguments, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    visual = prompts_of(locate(reference.model), longer).visual[0]
    each = []
    for row in range(n - 1, ids.shape[1] - 1):
        odds, top = log_odds(reference.model, longer, row=row)
        u = pull(reference.model, longer, FFN, 0, visual, top, row=row)
        each.append(divergence(of_two(odds), of_two(odds - u)))
    assert len(each) >= 3
    assert found.position == "answer"
    assert found.passes == 1 + len(each)
    assert found.per_sample[0][0] == pytest.approx(np.mean(each), rel=0.1, abs=1e-9)


def test_a_killed_screening_goes_on(reference, tmp_path, monkeypatch):
    """From every estimate and every measurement that it has finished, to the same scores."""
    samples = load_data("reference:chart", split="calibration", limit=3)
    wanted, kept = {VIG: 7, FFN: 7}, Unfinished(tmp_path / "kept")
    whole = screen(reference, samples, wanted, progress=False)
    measured = sum(np.sum(scores.measured) for scores in whole.values())
    made = {"_estimates": 0, "divergence_under": 0}

    def counted(name, limit):
        real, made[name] = getattr(screening, name), 0

        def call(*given):
            if made[name] == limit:
                raise KeyboardInterrupt
            made[name] += 1
            return real(*given)

        monkeypatch.setattr(screening, name, call)

    for name, limit in (("_estimates", 2), ("divergence_under", 4)):
        counted(name, limit)
        with pytest.raises(KeyboardInterrupt):
            screen(reference, samples, wanted, progress=False, kept=kept)
        monkeypatch.undo()
    counted("_estimates", None)
    counted("divergence_under", None)
    found = screen(reference, samples, wanted, progress=False, kept=kept)
    assert made == {"_estimates": 0, "divergence_under": measured - 4}
    assert measured > 5
    for name, scores in found.items():
        assert scores.model_copy(update={"seconds": whole[name].seconds}) == whole[name]


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_right_if_estimates_are_as_good_as_they_are_trusted(seed):
    """Scores of all sizes, estimates off by up to a factor of four, in the worst direction for half of them."""
    draw = np.random.default_rng(seed)
    exact = np.exp(draw.normal(0, 2, (9, 12)))
    estimates = exact * 4 ** draw.choice([-1, 1, *draw.uniform(-1, 1, 2)], exact.shape)
    for count in range(1, 12):
        scores, measured = estimates.copy(), np.zeros(exact.shape, dtype=bool)
        for at in _in_doubt(scores, measured, count, trust=4):
            assert not measured[at]
            scores[at], measured[at] = exact[at], True
        assert {*scores.mean(0).argsort()[:count]} == {*exact.mean(0).argsort()[:count]}
    assert not measured.all()  # the last count leaves out one layer: most need no run


def test_ties_at_zero_cost_nothing():
    scores, measured = np.zeros((3, 5)), np.zeros((3, 5), dtype=bool)
    scores[:, 0] = 1.0
    assert list(_in_doubt(scores, measured, 2, trust=4)) == []


def test_what_can_be_screened():
    assert SCREENED == (VIG, FFN, "freeze_effect", "layer_contribution")
    assert set(SCREENED) < set(INTERVENTIONS)


@pytest.mark.parametrize(
    ("lowest", "trust", "why"),
    [
        (
            {VIG: 0},
            4,
            "identifies the 0 lowest layers of visual_information_gain, and the model has 5: give 1",
        ),
        (
            {VIG: 2, FFN: 5},
            4,
            "identifies the 5 lowest layers of ffn_effect, and the model has 5: give 1 to 4",
        ),
        ({"withdrawal": 2}, 4, "'withdrawal' cannot be screened; choose one of visual_information_gain, ffn_effect"),
        ({VIG: 2}, 0.5, "trusted to a factor of 0.5: give 1 or more"),
    ],
)
def test_refusals(lowest, trust, why):
    model, arguments = made("llava")
    with pytest.raises(ScoresError, match=why) as refused:
        screen(loaded_of(model, arguments), ONE, lowest, trust=trust, progress=False)
    assert str(refused.value).count("\n") == 0


def test_another_number_of_layers_than_was_screened_for_is_refused(tmp_path):
    """Which layer comes next is not known: it may be an estimate's."""
    model, arguments = made("llava")
    found = screen(loaded_of(model, arguments), ONE, {VIG: 2}, progress=False)[VIG]
    found = Scores.load(found.save(tmp_path / "scores.json"))
    assert [*v_skip(found, layers=2).at(found.lowest(2), attention=Full()).layers] == [LayerPlan()] * 5
    assert found.lowest(0) == ()
    for count in (1, 3):
        with pytest.raises(ScoresError, match=f"screened for their 2 lowest layers, and {count} were asked for"):
            v_skip(found, layers=count)
    assert v_skip_universal(found, layers=2).layers == v_skip(found, layers=2).layers
    with pytest.raises(ScoresError, match="several tasks are averaged in every layer: calibrate without --screen"):
        v_skip_universal(found, found, layers=2)


def test_the_share_measured(tmp_path):
    model, arguments = made("llava")
    found = screen(loaded_of(model, arguments), ONE, {VIG: 2}, progress=False)[VIG]
    assert Scores.load(found.save(tmp_path / "s.json")) == found
    rows = {"per_sample": ((1.0, 0.0), (3.0, 2.0)), "measured": ((False, False), (True, False))}
    geometry = found.geometry.model_copy(update={"layers": 2})
    assert Scores(name="s", geometry=geometry, **rows).measured_share == (0.75, 0.0)
    assert Scores(name="s", geometry=geometry, per_sample=rows["per_sample"]).measured_share == (1.0, 1.0)
    with pytest.raises(ValueError, match="measured and the scores differ in shape"):
        Scores(name="s", geometry=geometry, per_sample=rows["per_sample"], measured=((True, True),))
