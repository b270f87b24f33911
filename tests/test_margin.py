"""Non-inferiority: p-values by enumeration, how often they err, and the number of questions that would do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest, bootstrap, multinomial

from lookless.certification.bounds import betting_p_value
from lookless.certification.margin import LEFT_OUT, Counts, Sums, _statistic, exact_p_value, least_margin


def at_most(errors, runs, level):
    return binomtest(errors, runs, level, alternative="greater").pvalue > 0.001


def slow_statistic(lost, won, n, margin):
    """By search: the share won that makes the counts likeliest if lost less won is the margin."""
    shares = np.linspace(0, (1 - margin) / 2, 20_001)[:-1]
    rest = np.maximum(1 - 2 * shares - margin, 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        likely = lost * np.log(shares + margin) + (won * np.log(shares) if won else 0)
        likely += (n - lost - won) * np.log(rest)
    share = shares[np.nanargmax(likely)]
    return (lost - won - n * margin) / np.sqrt(n * (2 * share + margin - margin**2))


def test_the_score_statistic():
    for lost, won, n, margin in ((0, 0, 30, 0.1), (3, 1, 30, 0.1), (1, 5, 50, 0.02), (20, 20, 50, 0.3), (4, 0, 9, 0.5)):
        found = float(_statistic(lost, won, n, margin))
        assert found == pytest.approx(slow_statistic(lost, won, n, margin), abs=2e-3)


@pytest.mark.parametrize("n", [1, 7, 40, 300])
@pytest.mark.parametrize("margin", [0.001, 0.01, 0.1, 0.4])
def test_the_statistic_rises_with_what_is_lost(n, margin):
    """Of any number of answers that differ, which the search for the worst result that counts relies on."""
    for differ in range(1, n + 1):
        lost = np.arange(differ + 1)
        assert (np.diff(_statistic(lost, differ - lost, n, margin)) > 0).all()


def truths(margin, count=60):
    """Shares lost and won that differ by the margin."""
    for won in np.linspace(0, (1 - margin) / 2, count):
        yield won + margin, won


@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_p_values_are_the_largest_probability(margin):
    """Of a result at least as good, over all truths, each summed result by result; what is left out is added."""
    n = 14
    every = [(lost, won) for lost, won in itertools.product(range(n + 1), repeat=2) if lost + won <= n]
    seen = {pair: float(_statistic(*pair, n, margin)) for pair in every}
    chances = [
        (multinomial.pmf([(x, y, n - x - y) for x, y in every], n, [lost, won, max(0, 1 - lost - won)]))
        for lost, won in truths(margin, 400)
    ]
    for pair in ((0, 0), (0, 3), (1, 2), (2, 5), (4, 1), (6, 6)):
        good = np.array([seen[other] <= seen[pair] + 1e-9 for other in every])
        slow = max(chance[good].sum() for chance in chances)
        found = exact_p_value(*pair, n, margin)
        assert found <= slow + 2 * LEFT_OUT
        assert found >= slow - 0.02  # truths that the number of differing answers rules out are left out


@pytest.mark.parametrize(("n", "margin"), [(38, 0.08), (30, 0.1), (20, 0.3)])
def test_it_errs_no_more_than_it_says(n, margin):
    """For every truth with a loss of the margin or more, summed over every result."""
    every = [(lost, won) for lost, won in itertools.product(range(n + 1), repeat=2) if lost + won <= n]
    p = np.array([exact_p_value(*pair, n, margin) for pair in every])
    cells = [(x, y, n - x - y) for x, y in every]
    for alpha in (0.05, 0.01):
        errors = [
            multinomial.pmf(cells, n, [lost + more, won, max(0, 1 - lost - more - won)])[p <= alpha].sum()
            for lost, won in truths(margin, 12)
            for more in (0, 0.03)
            if lost + more + won <= 1
        ]
        assert max(errors) <= alpha
        assert max(errors) > alpha / 2  # and is not idle


def test_where_nothing_differs_it_is_the_binomial():
    for n in (100, 299, 1000):
        assert exact_p_value(0, 0, n, 0.01) == pytest.approx(binom.cdf(0, n, 0.01), rel=0.01, abs=2 * LEFT_OUT)
    assert exact_p_value(0, 0, 0, 0.01) == 1
    assert exact_p_value(0, 0, 5000, 0.3) == LEFT_OUT
    assert exact_p_value(60, 0, 60, 0.3) == 1


def test_upper_bounds_turn_the_test_round():
    counts = Counts(3, 1, 200)
    upper = least_margin(lambda margin: counts.p_value(margin, 0.95), 0.05)
    assert counts.p_value(upper, 0.95) <= 0.05 < counts.p_value(upper - 2e-4, 0.95)
    assert upper > 2 / 200


def test_how_many_questions_would_do():
    assert Counts(0, 0, 60).needed(0.01, 0.95) == 299
    assert Counts(10, 0, 100).needed(0.01, 0.95) is None
    assert Counts(30, 0, 300).needed(0.01, 0.95) is None
    enough = Counts(5, 5, 200).needed(0.02, 0.95)
    share = 5 / 200
    assert exact_p_value(-(-5 * enough // 200), 5 * enough // 200, enough, 0.02) <= 0.05
    assert enough == pytest.approx(1.645**2 * 2 * share / 0.02**2, rel=0.25)  # the normal approximation
    sizes = np.full(30, 4.0)
    pictures = Sums(np.zeros(30), sizes)
    found = pictures.needed(0.05, 0.95)
    assert found % 4 == 0
    assert Sums(np.zeros(found // 4), np.full(found // 4, 4.0)).p_value(0.05, 0.95) <= 0.05
    assert Sums(np.full(1000, 0.5), np.ones(1000)).needed(0.05, 0.95) is None


def test_betting_is_on_the_mean_of_questions():
    """For images of one question it is the bet on losses brought from [-1, 1] to [0, 1]."""
    lost = np.random.default_rng(0).uniform(-0.3, 0.2, 80)
    order = np.random.default_rng(0).permutation(80)
    found = Sums(lost, np.ones(80)).p_value(0.1, 0.95)
    assert found == pytest.approx(betting_p_value((lost[order] + 1) / 2, 0.55, 0.95))
    assert 0 < found < 0.05


def test_betting_errs_no_more_than_it_says_and_the_bootstrap_does():
    """The other loses all four questions of one image in fifty, and so 2 % of them, the margin.

    Of 40 images a draw has no such image almost half of the time: then the bootstrap is certain of no loss at all.
    """
    rng = np.random.default_rng(2)
    runs, errors, naive = 250, 0, 0
    for _ in range(runs):
        lost = 4.0 * (rng.random(40) < 0.02)
        errors += Sums(lost, np.full(40, 4.0)).p_value(0.02, 0.95) <= 0.05
        if not lost.any():
            naive += 1
        else:
            drawn = bootstrap((lost / 4,), np.mean, n_resamples=200, method="percentile", rng=rng, confidence_level=0.9)
            naive += drawn.confidence_interval.high < 0.02
    assert at_most(errors, runs, 0.05)
    assert not at_most(naive, runs, 0.3)


def test_betting_with_many_images_shows_a_small_loss():
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 5, 1500).astype(float)
    lost = sizes * rng.choice([0, 0.25, -0.2], 1500, p=[0.9, 0.05, 0.05])
    assert Sums(lost, sizes).p_value(0.05, 0.95) < 0.01
    assert Sums(lost + 0.06 * sizes, sizes).p_value(0.05, 0.95) > 0.05
    assert Sums(np.full(600, 0.1), np.tile([1.0, 4.0], 300)).p_value(0.1, 0.95) < 0.05  # 0.04 of a question
