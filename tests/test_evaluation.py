"""Accuracy, retention and fidelity, and time measured in turn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from lookless import Plan, Skip, evaluate, load_data
from lookless.bench import time_prefill
from lookless.bench import timing as measure
from lookless.data import Samples
from lookless.evaluation import mean_estimate, normal, retention_estimate
from lookless.runtime.families import geometry_of


def test_what_is_compared():
    assert normal(" Red. ") == normal("red")
    assert normal("3AJ") != normal("3A J")


def test_retention_is_the_ratio_of_paired_means():
    dense = np.array([1.0] * 80 + [0.0] * 20)
    plan = np.array([1.0] * 72 + [0.0] * 28)
    estimate = retention_estimate(plan, dense)
    assert estimate.value == pytest.approx(0.9)
    # by hand: resample questions, not answers
    rng = np.random.default_rng(1)
    ratios = [plan[i].mean() / dense[i].mean() for i in (rng.integers(0, 100, 100) for _ in range(4000))]
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert estimate.low == pytest.approx(low, abs=0.015)
    assert estimate.high == pytest.approx(high, abs=0.015)
    assert retention_estimate(plan, np.zeros(100)) is None


def test_mean_interval_is_near_the_normal_one():
    values = np.array([1.0] * 60 + [0.0] * 40)
    estimate = mean_estimate(values)
    half = stats.norm.ppf(0.975) * (0.6 * 0.4 / 100) ** 0.5
    assert (estimate.low, estimate.high) == (pytest.approx(0.6 - half, abs=0.02), pytest.approx(0.6 + half, abs=0.02))
    assert mean_estimate(np.ones(10)) == mean_estimate(np.ones(10)).model_copy(update={"low": 1.0, "high": 1.0})
    assert mean_estimate(np.ones(1)).high == 1.0


def test_evaluate_dense_and_full_plan(reference):
    samples = load_data("reference", limit=12)
    alone = evaluate(reference, samples, progress=False)
    assert (alone.accuracy_plan, alone.retention, alone.fidelity) == (None, None, None)
    both = evaluate(reference, samples, Plan.full(geometry_of(reference.model)), batch=5, progress=False)
    assert both.fidelity.value == 1.0
    assert both.accuracy_plan == both.accuracy_dense
    assert both.accuracy_dense == alone.accuracy_dense
    right = [normal(a.dense) == normal(a.expected) for a in both.answers]
    assert both.accuracy_dense.value == pytest.approx(sum(right) / 12)


def test_evaluate_sees_a_harmful_plan(reference):
    samples = load_data("reference:counting", limit=60)
    blind = Plan.full(geometry_of(reference.model)).at(range(12), attention=Skip(), ffn=Skip())
    result = evaluate(reference, samples, blind, progress=False)
    assert result.fidelity.value == pytest.approx(
        sum(normal(a.dense) == normal(a.plan) for a in result.answers) / len(samples)
    )
    assert result.fidelity.value < 1.0


def test_batch_size_changes_no_answer(reference):
    """Padding must not: prompts of the reference tasks differ in length."""
    samples = load_data("reference", limit=18)
    plan = Plan.full(geometry_of(reference.model)).at([3, 5, 8], attention=Skip())
    one = evaluate(reference, samples, plan, batch=1, progress=False)
    many = evaluate(reference, samples, plan, batch=18, progress=False)
    assert one.answers == many.answers


def test_time_is_measured_for_each_plan(reference, monkeypatch):
    """By a clock that counts rows: what is timed is the work of the decoder's layers, in turn."""
    inputs = reference.inputs(load_data("reference:chart", limit=1).items)
    tokens, visual = (
        inputs["input_ids"].numel(),
        int((inputs["input_ids"] == reference.model.config.image_token_id).sum()),
    )
    freeze = Plan.full(geometry_of(reference.model)).at(range(12), attention=Skip(), ffn=Skip())
    rows = [0]

    def work(module, arguments):
        rows[0] += arguments[0].shape[:-1].numel()

    hooks = [layer.mlp.register_forward_pre_hook(work) for layer in reference.model.model.language_model.layers]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: rows[0] / 1e3))
    dense, plan = time_prefill(reference, inputs, [None, freeze], repeats=3, warm_up=1)
    for hook in hooks:
        hook.remove()
    left = 11 * (tokens - visual) + 1  # of the last layer one row is read
    assert rows[0] == 4 * (12 * tokens + left)
    assert dense.values_ms == pytest.approx([12 * tokens] * 3)
    assert plan.values_ms == pytest.approx([left] * 3)
    assert plan.median_ms == pytest.approx(left)
    assert "forward" not in reference.model.model.language_model.layers[0].__dict__
    assert not reference.model.model.language_model._forward_pre_hooks


def test_text_only_questions_are_answered(reference):
    plain = Samples(
        "words", tuple(s.__class__((), "which fruit is red?", "cherry") for s in load_data("reference", limit=1))
    )
    plan = Plan.full(geometry_of(reference.model)).at(range(12), attention=Skip(), ffn=Skip())
    result = evaluate(reference, plain, plan, progress=False)
    assert result.fidelity.value == 1.0
    assert torch.is_tensor(reference.inputs(plain.items)["input_ids"])
