"""Our statistics against scipy's, and intervals against simulations whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from export import sampling


def _singles(values):
    return tuple((float(value),) for value in values)


def test_standard_error_of_single_scores_is_scipys():
    values = np.random.default_rng(1).normal(size=50)
    assert sampling.standard_error(_singles(values), "mean") == pytest.approx(stats.sem(values))


def test_standard_error_grows_when_tokens_of_a_row_agree():
    # ten rows of ten equal tokens know no more than ten tokens
    rows = np.random.default_rng(2).normal(size=10)
    clustered = tuple((float(row),) * 10 for row in rows)
    assert sampling.standard_error(clustered, "mean") == pytest.approx(stats.sem(rows))


def test_exp_mean_is_perplexity_with_the_delta_method():
    values = np.random.default_rng(3).exponential(size=200)
    sample = _singles(values)
    assert sampling.estimate(sample, "exp_mean") == pytest.approx(math.exp(values.mean()))
    expected = stats.sem(values) * math.exp(values.mean())
    assert sampling.standard_error(sample, "exp_mean") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("statistic", "function"),
    [("median", np.median), ("percentile_99", lambda v: np.quantile(v, 0.99)), ("max", np.max), ("mean", np.mean)],
)
def test_estimates_run_over_all_tokens(statistic, function):
    sample = ((1.0, 2.0, 9.0), (4.0,), (0.5, 0.25))
    assert sampling.estimate(sample, statistic) == pytest.approx(function([1.0, 2.0, 9.0, 4.0, 0.5, 0.25]))


def test_a_number_that_is_not_finite_is_the_worst_possible_value():
    assert sampling.estimate(((1.0,), (math.nan,)), "mean") == math.inf
    assert sampling.standard_error(((1.0,), (math.nan,)), "mean") is None


def test_paired_interval_agrees_with_scipys_bootstrap():
    generator = np.random.default_rng(4)
    before = generator.normal(size=80)
    after = before + generator.normal(0.3, 0.5, size=80)
    ours = sampling.paired_interval(_singles(before), _singles(after), "mean", ratio=False, seed=0)
    theirs = stats.bootstrap(
        (after - before,), np.mean, confidence_level=0.9, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_wilson_interval_is_scipys():
    theirs = stats.binomtest(17, 60).proportion_ci(confidence_level=0.9, method="wilson")
    assert sampling.wilson_interval(17 / 60, 60) == pytest.approx((theirs.low, theirs.high))


def test_paired_shares_that_never_differ_still_have_an_interval():
    low, high = sampling.paired_proportion_interval([1.0] * 200, [1.0] * 200)
    # with 200 of 200 right twice, a loss of 1.3 points cannot be excluded: z^2 / (n + z^2) at one-sided 95 %
    z = stats.norm.ppf(0.95)
    assert low == pytest.approx(-(z**2) / (200 + z**2))
    assert high == pytest.approx(z**2 / (200 + z**2))


@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.05, 0.05), (0.08, 0.01), (0.0, 0.02)])
def test_paired_share_interval_covers_the_truth(p_lost, p_gained):
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        before = (generator.random(200) < 0.9).astype(float)
        change = generator.random(200)
        after = np.where(before == 1, (change >= p_lost).astype(float), (change < p_gained * 9).astype(float))
        truth = 0.1 * min(1, p_gained * 9) - 0.9 * p_lost
        low, high = sampling.paired_proportion_interval(before.tolist(), after.tolist())
        covered += low <= truth <= high
    assert covered / 400 >= 0.86  # nominal 0.90; three standard errors of 400 draws are 0.045
