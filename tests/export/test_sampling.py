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


def test_paired_interval_of_well_behaved_rows_agrees_with_students_t():
    generator = np.random.default_rng(4)
    before = generator.normal(size=80)
    after = before + generator.normal(0.3, 0.5, size=80)
    ours = sampling.paired_interval(_singles(before), _singles(after), "mean", ratio=False, seed=0)
    theirs = stats.ttest_rel(after, before).confidence_interval(0.9)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_the_error_of_a_paired_change_is_scipys():
    generator = np.random.default_rng(11)
    before = generator.normal(size=60)
    after = before + generator.normal(0.3, 0.5, size=60)
    pair = _singles(before), _singles(after)
    assert sampling.paired_error(*pair, "mean", ratio=False) == pytest.approx(stats.sem(after - before))
    assert sampling.paired_error(*pair, "exp_mean", ratio=True) == pytest.approx(stats.sem(after - before))
    for statistic, ratio in (("mean", True), ("exp_mean", False), ("median", False)):
        assert sampling.paired_error(*pair, statistic, ratio=ratio) is None
    assert sampling.paired_error(((1.0,),), ((2.0,),), "mean", ratio=False) is None
    assert sampling.paired_error(((1.0,), (math.nan,)), ((2.0,), (1.0,)), "mean", ratio=False) is None


@pytest.mark.parametrize(
    ("statistic", "function"),
    [("median", np.median), ("percentile_99", lambda v: np.quantile(v, 0.99)), ("max", np.max)],
)
def test_drawn_quantiles_are_numpys_of_the_drawn_tokens(statistic, function):
    generator = np.random.default_rng(12)
    # tied values, rows of no token, and one row of many
    sample = [generator.integers(0, 9, size).tolist() for size in (0, 1, 3, 4, 60, 2, 0, 5, 1)]
    (drawn,) = sampling.bootstrap([sample], statistic, seed=3, resamples=300)
    draws = np.random.default_rng(3).integers(0, 9, size=(300, 9))
    values = [np.concatenate([np.asarray(sample[item], dtype=float) for item in draw]) for draw in draws]
    assert drawn == pytest.approx([function(tokens) for tokens in values if tokens.size])


def test_a_table_of_pairs_counts_them():
    table = sampling.paired_table([1.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0])
    assert table == (1, 2, 1, 1)
    assert table.pairs == 5
    assert table.scaled(20) == (4, 8, 4, 4)


def test_wilson_interval_is_scipys():
    theirs = stats.binomtest(17, 60).proportion_ci(confidence_level=0.9, method="wilson")
    assert sampling.wilson_interval(17 / 60, 60) == pytest.approx((theirs.low, theirs.high))


def test_paired_shares_that_never_differ_still_have_an_interval():
    low, high = sampling.paired_proportion_interval(sampling.PairedTable(200, 0, 0, 0))
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
        low, high = sampling.paired_proportion_interval(sampling.paired_table(before.tolist(), after.tolist()))
        covered += low <= truth <= high
    assert covered / 400 >= 0.86  # nominal 0.90; three standard errors of 400 draws are 0.045


@pytest.mark.parametrize("right", [0.5, 0.9])
@pytest.mark.parametrize("n", [200, 300])
def test_paired_share_interval_covers_a_loss_of_two_points(right, n):
    generator = np.random.default_rng(7)
    below = above = both = 0
    for _ in range(600):
        before = (generator.random(n) < right).astype(float)
        after = before * (generator.random(n) >= 0.02 / right)
        low, high = sampling.paired_proportion_interval(sampling.paired_table(before.tolist(), after.tolist()))
        below, above, both = below + (low <= -0.02), above + (high >= -0.02), both + (low <= -0.02 <= high)
    assert min(below, above, both) / 600 >= 0.87


@pytest.mark.parametrize(
    ("table", "phi"),
    [
        ((43, 0, 3, 4), (43 * 4 - 25) / math.sqrt(46 * 7 * 43 * 4)),  # above n/2: lowered by it
        ((6, 4, 5, 5), 0.0),  # positive, but not above n/2: 0
        ((1, 9, 9, 1), -80 / 100),  # a negative one is left alone
        ((20, 0, 0, 0), 0.0),
    ],
)
def test_the_correlation_of_pairs_is_newcombes(table, phi):
    both, lost, gained, neither = table
    before = [1.0] * (both + lost) + [0.0] * (gained + neither)
    after = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    n = len(before)
    p_before, p_after = (both + lost) / n, (both + gained) / n
    down = p_after - sampling.wilson_interval(p_after, n)[0]
    up = sampling.wilson_interval(p_before, n)[1] - p_before
    expected = p_after - p_before - math.sqrt(down**2 - 2 * phi * down * up + up**2)
    assert sampling.paired_proportion_interval(sampling.paired_table(before, after))[0] == pytest.approx(expected)


def _upper_bound_coverage(rows, sigma_of_rows, sigma_of_tokens, interval, repeats):
    generator = np.random.default_rng(8)
    truth = math.exp((sigma_of_rows**2 + sigma_of_tokens**2) / 2)
    covered = 0
    for seed in range(repeats):
        logs = generator.normal(0, sigma_of_rows, (rows, 1)) + generator.normal(0, sigma_of_tokens, (rows, 12))
        covered += interval(np.exp(logs).tolist(), seed)[1] >= truth
    return covered / repeats


def _ours(sample, seed):
    return sampling.interval(sample, "mean", seed=seed)


def _percentile(sample, seed):
    return np.quantile(sampling.bootstrap([sample], "mean", seed=seed, resamples=1000)[0], [0.05, 0.95])


@pytest.mark.parametrize(
    ("rows", "sigma_of_rows", "sigma_of_tokens", "repeats", "at_least"),
    # heavy-tailed tokens; the last also with rows that are hard as a whole. Nominal is 0.95; the docstring of
    # `interval` gives what long simulations find, and these are two standard errors below
    [(40, 0.0, 1.8, 1000, 0.86), (200, 0.0, 1.8, 500, 0.88), (40, 1.27, 1.27, 1000, 0.84)],
)
def test_upper_bound_of_a_skewed_mean_covers_better_than_percentiles(
    rows, sigma_of_rows, sigma_of_tokens, repeats, at_least
):
    ours = _upper_bound_coverage(rows, sigma_of_rows, sigma_of_tokens, _ours, repeats)
    assert ours >= at_least
    assert ours > _upper_bound_coverage(rows, sigma_of_rows, sigma_of_tokens, _percentile, repeats) + 0.02


def test_interval_of_a_moderately_skewed_mean_covers_as_it_says():
    generator = np.random.default_rng(9)
    inside = sum(
        low <= 1.0 <= high
        for low, high in (
            sampling.interval(_singles(generator.exponential(size=60)), "mean", seed=seed) for seed in range(400)
        )
    )
    assert 0.86 <= inside / 400 <= 0.94


def test_ratio_of_perplexities_covers_the_truth_when_tokens_of_a_row_agree():
    generator = np.random.default_rng(10)
    covered = 0
    for seed in range(300):
        before = generator.exponential(1.0, (60, 1)) + generator.exponential(0.5, (60, 8))
        after = before + 0.05 * generator.exponential(1.0, (60, 1)) + 0.05 * generator.exponential(1.0, (60, 8))
        low, high = sampling.paired_interval(before.tolist(), after.tolist(), "exp_mean", ratio=True, seed=seed)
        covered += low <= math.exp(0.1) <= high
    assert 0.86 <= covered / 300 <= 0.94


def test_one_outlying_row_does_not_make_the_bound_endless():
    # a third of the draws miss the row and vary by nothing, so that their t has no bounds of its own
    low, high = sampling.interval(((0.001,) * 5,) + ((1e-8,) * 5,) * 39, "mean", seed=0)
    assert low <= 0.001 / 40 <= high < 0.001


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("statistic", ["mean", "exp_mean", "median", "percentile_99"])
def test_samples_that_do_not_vary_have_an_interval_of_no_width(value, statistic):
    sample = ((value, value), (value,), (value,) * 3)
    expected = math.exp(value) if statistic == "exp_mean" else value
    assert sampling.interval(sample, statistic, seed=0) == pytest.approx((expected, expected))
    ratio = statistic == "exp_mean"
    unchanged = sampling.paired_interval(sample, sample, statistic, ratio=ratio, seed=0)
    assert unchanged == pytest.approx((float(ratio), float(ratio)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("statistic", ["mean", "exp_mean", "median", "percentile_99"])
def test_numbers_that_are_not_finite_have_no_interval(bad, statistic):
    broken, sound = ((1.0,), (bad, -bad), (2.0,)), ((1.0,), (1.5, 2.5), (2.0,))
    for low, high in (
        sampling.interval(broken, statistic, seed=0),
        sampling.paired_interval(sound, broken, statistic, ratio=True, seed=0),
        sampling.paired_interval(broken, sound, statistic, ratio=False, seed=0),
    ):
        assert math.isnan(low)
        assert math.isnan(high)


def test_a_perplexity_too_large_for_a_float_is_infinite():
    sample = ((800.0,), (900.0,))
    assert sampling.estimate(sample, "exp_mean") == math.inf
    assert sampling.standard_error(sample, "exp_mean") is None


def test_one_row_tells_nothing():
    assert sampling.interval(((1.0, 2.0),), "mean", seed=0) == (-math.inf, math.inf)


def test_samples_of_different_rows_are_not_paired():
    one, two = ((1.0,),), ((1.0,), (2.0,))
    with pytest.raises(ValueError, match="same items"):
        sampling.paired_interval(one, two, "mean", ratio=False, seed=0)
    with pytest.raises(ValueError, match="same items"):
        sampling.bootstrap([two, one], "mean", seed=0, resamples=5)
    with pytest.raises(ValueError, match="zip"):
        sampling.paired_table([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="without scores"):
        sampling.paired_proportion_interval(sampling.paired_table([], []))
