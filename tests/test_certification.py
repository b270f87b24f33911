"""Bounds on a loss, against other libraries and by enumeration; chains of plans, by simulation with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from lookless import Evaluation, LooklessError, Plan
from lookless.certification import Loss, Tried, bound, certify, drop
from lookless.certification.bounds import (
    betting_needed,
    betting_p_value,
    betting_upper,
    exact_least,
    exact_needed,
    exact_p_value,
    exact_upper,
)
from lookless.certification.losses import LOSSES, losses_of
from lookless.evaluation import Answer, Estimate


@pytest.mark.parametrize(("bad", "n", "level"), [(0, 100, 0.05), (2, 300, 0.02), (5, 400, 0.03), (0, 0, 0.1)])
def test_the_exact_p_value_is_a_sum_of_binomial_terms(bad, n, level):
    by_hand = sum(math.comb(n, k) * level**k * (1 - level) ** (n - k) for k in range(bad + 1))
    assert exact_p_value(bad, n, level) == pytest.approx(by_hand, rel=1e-9)


def test_the_exact_p_value_is_below_that_of_hoeffding_and_bentkus():
    """MAPIE 1.6.0's: ``risk_control.methods.compute_hoeffding_bentkus_p_value(array([k / n]), n, a, binary=True)``.
    Without a loss the two are the same test."""
    assert exact_p_value(0, 100, 0.05) == pytest.approx(0.00592053, rel=1e-5)
    assert exact_p_value(2, 300, 0.02) <= 0.0601837 + 1e-7
    assert exact_p_value(5, 400, 0.03) <= 0.01901679 + 1e-7


def test_the_exact_bound_is_where_the_p_value_is_one_minus_confidence():
    for bad, n, confidence in ((0, 59, 0.95), (3, 200, 0.9), (199, 200, 0.95)):
        assert exact_p_value(bad, n, exact_upper(bad, n, confidence)) == pytest.approx(1 - confidence, rel=1e-6)
    assert (exact_upper(5, 5, 0.95), exact_upper(0, 0, 0.95)) == (1.0, 1.0)


def test_how_many_questions_would_do():
    assert [exact_least(level, 0.95) for level in (0.01, 0.02, 0.05, 0.1)] == [299, 149, 59, 29]

    def passes(bad, n, level=0.02):
        return sum(math.comb(n, k) * level**k * (1 - level) ** (n - k) for k in range(bad + 1)) <= 0.05

    assert exact_needed(0, 40, 0.02, 0.95) == 149
    assert exact_needed(0, 0, 0.02, 0.95) == 149
    found = exact_needed(1, 100, 0.02, 0.95)
    assert found == next(n for n in range(101, 3000) if passes(math.ceil(n / 100), n))
    assert exact_needed(3, 20, 0.02, 0.95) == 149  # too few to say anything, and at least so many would be needed
    assert exact_needed(6, 200, 0.02, 0.95) is None
    assert exact_needed(19999, 1_000_000, 0.02, 0.95) is None


def slow_capital(losses, level, confidence):
    """The highest capital, one bet at a time, as arXiv 2010.09686 has it."""
    n, capital, best = len(losses), 1.0, 1.0
    for i, loss in enumerate(losses):
        mean = [(0.5 + sum(losses[: j + 1])) / (j + 2) for j in range(i)]
        variance = (0.25 + sum((losses[j] - mean[j]) ** 2 for j in range(i))) / (i + 1)
        stake = min(math.sqrt(2 * math.log(1 / (1 - confidence)) / (n * variance)), 0.75 / (1 - level))
        capital *= 1 - stake * (loss - level)
        best = max(best, capital)
    return best


GRADED = np.array([0, 0, 0.5, 0, 0, 0.25, 0, 0, 0, 1] * 12) * 0.3


def test_the_betting_p_value():
    """Confseq 0.0.11's, 1 / the maximum of ``betting_mart(GRADED, level, alpha=0.05, theta=0, trunc_scale=0.75,
    lambdas_fn_negative=lambda x, m: lambda_predmix_eb(x, alpha=0.05, fixed_n=len(x)))``; and a slow one."""
    theirs = {0.05: 1.1662878720070098, 0.08: 11.43892223973707, 0.1: 81.12339171578961, 0.2: 3325798.076763808}
    for level, capital in theirs.items():
        assert 1 / betting_p_value(GRADED, level, 0.95) == pytest.approx(capital)
        assert slow_capital(GRADED.tolist(), level, 0.95) == pytest.approx(capital)
    assert betting_p_value(np.ones(5), 0.1, 0.95) == 1.0
    assert betting_p_value(np.zeros(0), 0.1, 0.95) == 1.0


def test_the_betting_bound_is_the_first_level_of_a_grid_that_passes():
    for losses in (GRADED, np.zeros(200), GRADED[:30]):
        grid = np.arange(0.001, 1, 0.001)
        first = next(level for level in grid if betting_p_value(losses, level, 0.95) <= 0.05)
        assert betting_upper(losses, 0.95) == pytest.approx(first, abs=0.001)
    assert (betting_upper(np.ones(5), 0.95), betting_upper(np.zeros(0), 0.95)) == (1.0, 1.0)


def test_how_many_graded_questions_would_do():
    few = GRADED[:60]
    n = betting_needed(few, 0.08, 0.95)
    assert n > 60
    assert betting_p_value(np.resize(few, n), 0.08, 0.95) <= 0.05 < betting_p_value(np.resize(few, n - 1), 0.08, 0.95)
    assert betting_needed(GRADED, 0.05, 0.95) is None
    least = betting_needed(np.zeros(3), 0.02, 0.95)
    assert betting_p_value(np.zeros(least), 0.02, 0.95) <= 0.05 < betting_p_value(np.zeros(least - 1), 0.02, 0.95)
    assert betting_needed(np.ones(3), 0.02, 0.95) == least


def rarely(count, of, share):
    """Whether ``count`` of ``of`` is no more than a probability of ``share`` explains, with a wide margin."""
    return binom.sf(count - 1, of, share) > 1e-4


def test_bounds_hold_as_often_as_they_say():
    rng, n, trials = np.random.default_rng(0), 300, 2000
    bad = rng.binomial(n, 0.02, trials)
    assert rarely((exact_p_value(bad, n, 0.02) <= 0.1).sum(), trials, 0.1)
    assert rarely(sum(exact_upper(int(b), n, 0.9) < 0.02 for b in bad), trials, 0.1)
    graded = (rng.random((600, n)) < 0.08) * rng.beta(1, 1, (600, n))  # of mean 0.04
    assert rarely(sum(betting_p_value(losses, 0.04, 0.9) <= 0.1 for losses in graded), 600, 0.1)


def evaluation(losses, task="chart", plan="a", **fields):
    """Answers of which those with a 1 are lost; the dense model answers all right."""
    answers = [
        Answer(question="q", expected="x", dense="x", plan="y" if bad else "x", sample_hash=f"{task}{i}")
        for i, bad in enumerate(losses)
    ]
    plain = Estimate(value=1, low=1, high=1)
    known = {"data_hash": task, "model": "tiny", "seen": 0, "plan_hash": plan} | fields
    return Evaluation(data=task, samples=len(answers), accuracy_dense=plain, answers=answers, **known)


def lost(bad, n=400):
    return [1] * bad + [0] * (n - bad)


def chain(*bads, **fields):
    return [Tried(str(i), (evaluation(lost(bad), plan=str(i), **fields),)) for i, bad in enumerate(bads)]


def test_the_sequence_stops_at_the_first_failure():
    made = certify(chain(0, 1, 9, 0), level=0.02)
    assert [(test.plan, test.passed) for test in made.tests] == [("0", True), ("1", True), ("2", False)]
    assert (made.chosen.plan_hash, made.failed.plan_hash, made.untested) == ("1", "2", 1)
    assert [test.p_value for test in made.tests] == [pytest.approx(exact_p_value(bad, 400, 0.02)) for bad in (0, 1, 9)]
    assert made.failed.verdict == "loses too much"
    assert made.model == "tiny"
    assert certify(chain(0, 1), level=0.02).failed is None


def test_later_plans_are_not_run():
    def plans():
        yield from chain(0, 30)
        raise AssertionError("a plan was run after the first that failed")

    assert certify(plans(), level=0.02, length=5).untested == 3


def test_a_chain_stops_where_mapie_stops():
    """``control_fwer(p, 0.05, "fixed_sequence")`` of MAPIE 1.6.0 rejects so many of the first of these p-values."""
    from lookless.certification import sequence

    for p_values, rejected in (
        ([0.001, 0.02, 0.04, 0.2, 0.001], 3),
        ([0.2, 0.001], 0),
        ([0.01, 0.05, 0.05, 0.051], 3),
        ([0.04, 0.01], 2),
    ):
        given = iter(p_values)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequence, "p_value", lambda *_, given=given: next(given))
            assert len(certify(chain(*[0] * len(p_values)), level=0.02).certified) == rejected


def test_every_task_has_to_pass():
    both = Tried("a", (evaluation(lost(0)), evaluation(lost(6), "text")))
    made = certify([both], level=0.02)
    assert [task.passed for task in made.tests[0].tasks] == [True, False]
    assert (made.chosen, made.tests[0].worst.task) == (None, "text")
    pooled = certify([both], level=0.02, pooled=True)
    assert (pooled.verdict, pooled.tests[0].tasks[0].n, pooled.tests[0].tasks[0].bad) == ("certified", 800, 6)


def test_not_enough_data_and_how_much_would_be():
    few = certify([Tried("a", (evaluation(lost(0, 100)),))], level=0.01)
    assert (few.verdict, few.tests[0].needed) == ("not enough data", 299)
    half = evaluation(lost(0, 100))
    answers = [Answer(question="q", expected="x", dense="z", plan="z", sample_hash=f"w{i}") for i in range(100)]
    half = half.model_copy(update={"answers": (*half.answers, *answers), "samples": 200})
    assert certify([Tried("a", (half,))], level=0.01).tests[0].needed == 598  # as only every second one counts
    none = half.model_copy(update={"answers": tuple(answers), "samples": 100})
    nothing = certify([Tried("a", (none,))], level=0.01).tests[0]
    assert (nothing.tasks[0].n, nothing.p_value, nothing.upper, nothing.needed) == (0, 1.0, 1.0, 299)
    assert certify([Tried("a", (evaluation(lost(8)),))], level=0.01).verdict == "loses too much"


def test_what_counts_as_a_loss():
    answers = [("x", "X.", "x "), ("x", "x", "y"), ("x", "y", "x"), ("x", "y", "y"), ("x", "y", "z")]
    record = evaluation([0])
    made = [
        Answer(question="q", expected=e, dense=d, plan=p, sample_hash=str(i)) for i, (e, d, p) in enumerate(answers)
    ]
    record = record.model_copy(update={"answers": (*made, made[1])})  # a prompt that comes twice counts once
    assert losses_of([record], LOSSES["lost"]).tolist() == [0, 1]
    assert losses_of([record], LOSSES["changed"]).tolist() == [0, 1, 1, 0, 1]
    graded = drop("likeness", lambda expected, answer: 1.0 if answer == expected else 0.5 * (answer == "y"))
    assert losses_of([record], graded).tolist() == [0, 0.5, 0, 0, 0.5]
    with pytest.raises(LooklessError, match=r"not in \[0, 1\]"):
        losses_of([record], Loss("points", lambda answer: 7.0, binary=False))


def test_a_graded_loss_is_tested_by_betting():
    graded = drop("likeness", lambda expected, answer: 1.0 if answer == expected else 0.5)
    made = certify(chain(4), level=0.02, loss=graded)
    values = np.array(lost(4)) / 2
    [task] = made.tests[0].tasks
    assert (task.p_value, task.upper) == (betting_p_value(values, 0.02, 0.95), betting_upper(values, 0.95))
    assert (made.loss, task.bad, task.loss) == ("drop in likeness", 4, 0.005)


def test_the_bound_of_one_plan():
    made = bound(Tried("a", (evaluation(lost(2)), evaluation(lost(5), "text"))))
    assert made.level == pytest.approx(exact_upper(5, 400, 0.95))
    assert (made.asked, made.verdict, made.tests[0].upper) == (False, "certified", made.level)


def test_what_cannot_be_certified():
    ok = evaluation(lost(0))
    alone = ok.model_copy(update={"answers": (ok.answers[0].model_copy(update={"plan": None}),)})
    for wrong, words in (
        ([], "no plan to certify"),
        ([Tried("a", ())], "a has no answers"),
        ([Tried("a", (evaluation(lost(0), seen=3),))], "calibrated on 3 of the 400 samples of chart"),
        ([Tried("a", (evaluation(lost(0), seen=None),))], "calibrated on some of the 400"),
        ([Tried("a", (ok,)), Tried("b", (evaluation(lost(0), "text"),))], "other samples or another model"),
        ([Tried("a", (ok,)), Tried("b", (ok, ok))], "2 tasks and a on 1"),
        ([Tried("a", (ok, evaluation(lost(0), "text", "b")))], "those of different plans"),
        ([Tried("a", (alone,))], "dense model's alone"),
    ):
        with pytest.raises(LooklessError, match=words):
            certify(wrong, level=0.02)
    for fields in ({"level": 0}, {"level": 0.02, "confidence": 1}, {"level": 0.02, "loss": "harm"}):
        with pytest.raises(LooklessError):
            certify([Tried("a", (ok,))], **fields)


def test_the_promise_is_broken_as_rarely_as_it_says():
    """The chain's third plan loses a little more than promised on one of its tasks; the order is its true one."""
    rng, trials = np.random.default_rng(1), 200
    rates, broken = [(0.0, 0.0), (0.005, 0.01), (0.0501, 0.02), (0.05, 0.0502)], 0
    for _ in range(trials):
        plans = (
            Tried(str(i), tuple(evaluation(rng.random(120) < r, t, str(i)) for t, r in zip("ab", pair, strict=True)))
            for i, pair in enumerate(rates)
        )
        broken += len(certify(plans, level=0.05, confidence=0.8).certified) > 2
    assert rarely(broken, trials, 0.2)
    assert broken > 0  # or the simulation would not try it


def test_evaluations_name_their_plan(reference):
    from lookless import evaluate, load_data
    from lookless.runtime.families import geometry_of

    plan = Plan.full(geometry_of(reference.model))
    found = evaluate(reference, load_data("reference:chart", limit=2), plan, progress=False)
    read = Evaluation.model_validate_json(found.model_dump_json())  # as `lookless eval --json` prints it
    made = certify([Tried("all of it", (read,))], level=0.5)
    assert (made.tests[0].plan_hash, made.verdict, made.tests[0].tasks[0].bad) == (plan.hash, "not enough data", 0)
