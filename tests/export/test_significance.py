"""Tests and numbers of rows against sums by hand, against scipy, and against rows that were really drawn."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from export import significance
from export.sampling import PairedTable, interval, paired_proportion_interval

Z95, Z80 = stats.norm.ppf(0.95), stats.norm.ppf(0.80)


def _singles(values):
    return tuple((float(value),) for value in values)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 0), (9, 3), (3, 9), (4, 4), (40, 22)])
def test_mcnemar_is_the_sum_of_the_tables_that_are_no_likelier(lost, gained):
    flips = lost + gained
    likelihood = [math.comb(flips, k) / 2**flips for k in range(flips + 1)]
    no_likelier = sum(p for p in likelihood if p <= likelihood[lost])
    found = significance.flips(PairedTable(100, lost, gained, 50))
    assert (found.lost, found.gained) == (lost, gained)
    assert found.p_value == pytest.approx(no_likelier)
    one_sided = sum(math.comb(flips, k) for k in range(lost, flips + 1)) / 2**flips
    assert significance.chance_of_loss_by_flips(PairedTable(7, lost, gained, 0)) == pytest.approx(one_sided)


@pytest.mark.parametrize(
    ("others", "tests"),
    [
        ([], 1),
        ([0, 3, 6], 1),  # 1 in 64 at the least: too few rows differ to reject at 0.01
        ([7], 2),  # 1 in 128
        ([7, 7], 2),  # with three tests at 0.01 / 2 the others could not reject
        ([8, 8], 3),
        ([math.inf] * 5, 6),
        ([math.inf, 0, 0, 0, 0], 2),
    ],
)
def test_the_level_is_shared_among_the_tests_that_can_reject(others, tests):
    assert significance.shared_level(0.01, others) == 0.01 / tests


def test_tests_at_the_shared_level_err_together_no_more_than_allowed():
    # exactly: independent tests where nothing changed, each rejecting what its own number of differing rows may show
    generator = np.random.default_rng(9)
    for _ in range(300):
        rows = generator.integers(0, 14, generator.integers(1, 8)).tolist()
        kept = 1.0
        for place, flips in enumerate(rows):
            level = significance.shared_level(0.01, rows[:place] + rows[place + 1 :])
            tails = [sum(math.comb(flips, k) for k in range(lost, flips + 1)) / 2**flips for lost in range(flips + 1)]
            kept *= 1 - max([tail for tail in tails if tail <= level], default=0)
        assert 1 - kept <= 0.01


def test_exchanging_rows_is_the_sum_over_all_coins():
    generator = np.random.default_rng(0)
    smaller = generator.exponential(size=10)
    change = generator.normal(0.2, 0.4, size=10)
    exact = np.mean([np.dot(signs, change) >= change.sum() - 1e-12 for signs in product((-1, 1), repeat=10)])
    theirs = stats.permutation_test(
        (smaller + change, smaller), lambda a, b: a.mean() - b.mean(), permutation_type="samples", alternative="greater"
    )
    assert theirs.pvalue == pytest.approx(exact)
    ours = significance.chance_of_loss_by_exchange(_singles(smaller), _singles(smaller + change), seed=0)
    assert ours == pytest.approx(exact, abs=0.02)


def test_exchanging_rows_of_tokens_of_unequal_number_moves_whole_rows():
    # one row of four tokens against two of one: all 8 exchanges by hand
    smaller, larger = ((1.0, 1.0, 1.0, 1.0), (2.0,), (0.5,)), ((1.5, 1.5, 1.5), (2.5,), (0.4,))

    def mean(rows):
        return sum(map(sum, rows)) / sum(map(len, rows))

    changes = [
        mean([pair[not swapped] for pair, swapped in zip(pairs, coins, strict=True)])
        - mean([pair[swapped] for pair, swapped in zip(pairs, coins, strict=True)])
        for pairs in [list(zip(smaller, larger, strict=True))]
        for coins in product((False, True), repeat=3)
    ]
    exact = np.mean([change >= changes[0] - 1e-12 for change in changes])
    assert significance.chance_of_loss_by_exchange(smaller, larger, seed=1) == pytest.approx(exact, abs=0.02)


def test_exchanging_right_and_wrong_answers_is_mcnemars_test():
    before = [1.0] * 60 + [0.0] * 40
    after = [0.0] * 12 + [1.0] * 48 + [1.0] * 4 + [0.0] * 36
    ours = significance.chance_of_loss_by_exchange(_singles(after), _singles(before), seed=2)
    assert ours == pytest.approx(significance.chance_of_loss_by_flips(PairedTable(48, 12, 4, 36)), abs=0.01)


def test_exchanging_finds_no_more_than_chance_where_nothing_changed():
    generator = np.random.default_rng(3)
    found = []
    for seed in range(400):
        row = generator.exponential(size=(25, 1))
        once, twice = row + generator.standard_t(3, (25, 1)), row + generator.standard_t(3, (25, 1))
        found.append(significance.chance_of_loss_by_exchange(once.tolist(), twice.tolist(), seed=seed))
    for level in (0.05, 0.2):
        assert np.mean(np.array(found) <= level) <= level + 3 * math.sqrt(level * (1 - level) / 400)
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_rows_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="same items"):
        significance.chance_of_loss_by_exchange(((1.0,),), ((1.0,), (2.0,)), seed=0)


@pytest.mark.parametrize("table", [(400, 12, 8, 80), (280, 8, 8, 10), (2000, 90, 60, 100)])
def test_minimum_detectable_drop_of_a_share_is_connors_sample_size_turned_round(table):
    table = PairedTable(*table)
    drop = significance.minimum_detectable_drop_of_share(table)
    share = (table.lost + table.gained) / table.pairs
    assert drop < share
    n = ((Z95 * math.sqrt(share) + Z80 * math.sqrt(share - drop**2)) / drop) ** 2
    assert n == pytest.approx(table.pairs)


@pytest.mark.parametrize(("n", "flips"), [(50, 0), (500, 0), (500, 4), (3, 0), (1, 1)])
def test_minimum_detectable_drop_with_few_flips_counts_the_losses_themselves(n, flips):
    drop = significance.minimum_detectable_drop_of_share(PairedTable(n - flips, flips, 0, 0))
    assert drop <= 1
    if n > 3:  # 6.2 / n, the drop whose own flips are all there are
        assert math.sqrt(n * drop) == pytest.approx(Z95 + Z80 * math.sqrt(1 - drop))
        assert drop > significance.rule_of_three(n)


@pytest.mark.parametrize(("n", "share"), [(400, 0.1), (1000, 0.05), (300, 0.3)])
def test_a_minimum_detectable_drop_is_seen_in_80_of_100_sets(n, share):
    table = PairedTable(n * (1 - share) / 2, n * share / 2, n * share / 2, n * (1 - share) / 2)
    drop = significance.minimum_detectable_drop_of_share(table)
    lost, gained, _ = (
        np.random.default_rng(4).multinomial(n, [(share + drop) / 2, (share - drop) / 2, 1 - share], size=4000).T
    )
    exact = np.mean(stats.binom.sf(lost - 1, lost + gained, 0.5) <= 0.05)
    asymptotic = np.mean((lost - gained) / np.sqrt(lost + gained) >= Z95)
    assert asymptotic == pytest.approx(0.80, abs=0.03)
    assert 0.70 <= exact <= asymptotic + 0.01  # the exact test never errs more than it says, and pays for it


def test_minimum_detectable_drop_of_a_mean_is_seen_in_80_of_100_sets():
    drop = significance.minimum_detectable_drop_of_mean(0.1)
    assert drop == pytest.approx(0.2487, abs=1e-4)
    seen = np.random.default_rng(5).normal(drop, 0.1, 4000) >= Z95 * 0.1
    assert seen.mean() == pytest.approx(0.80, abs=0.02)


def test_the_rule_of_three():
    assert significance.rule_of_three(400) == pytest.approx(3 / 400, rel=0.01)
    assert (1 - significance.rule_of_three(60)) ** 60 == pytest.approx(0.05)


@pytest.mark.parametrize("answer", [8, 9, 10, 57, 4096, 9_999_999, 10_000_000])
def test_the_least_number_of_rows_is_found(answer):
    assert significance.rows_needed(lambda rows: rows >= answer, 7) == answer


def test_no_number_of_rows_up_to_the_most():
    assert significance.rows_needed(lambda rows: rows > 10_000_000, 7) is None
    assert significance.rows_needed(lambda rows: rows >= 20, 7, most=19) is None
    assert significance.rows_needed(lambda rows: False, 12, most=10) is None


@pytest.mark.parametrize("table", [(400, 12, 8, 80), (160, 6, 0, 34)])
def test_four_of_five_sets_lie_within_the_outlook_of_a_share(table):
    table = PairedTable(*table)
    rows = round(3 * table.pairs)
    outlook = significance.outlook_of_share(table, 0.005)(rows)
    drawn = np.random.default_rng(6).multinomial(rows, [count / table.pairs for count in table], size=2000)
    ends = np.array([paired_proportion_interval(PairedTable(*map(float, counts))) for counts in drawn])
    losses = (drawn[:, 1] - drawn[:, 2]) / rows
    assert np.mean(losses <= outlook.loss) == pytest.approx(0.8, abs=0.05)
    # few losses and no gains are skewed
    assert np.mean(-ends[:, 1] >= outlook.favourable) == pytest.approx(0.8, abs=0.08)
    assert np.mean(-ends[:, 0] <= outlook.unfavourable) == pytest.approx(0.8, abs=0.08)


def test_certain_is_where_four_of_five_sets_are_told_from_chance():
    table, level = PairedTable(400, 30, 15, 55), 0.005
    outlook = significance.outlook_of_share(table, level)
    least = next(rows for rows in range(100, 10_000) if outlook(rows).certain)
    lost, gained, _ = np.random.default_rng(7).multinomial(least, [0.06, 0.03, 0.91], size=4000).T
    assert np.mean(stats.binom.sf(lost - 1, lost + gained, 0.5) <= level) == pytest.approx(0.8, abs=0.06)
    gain = significance.outlook_of_share(PairedTable(400, 15, 30, 55), level)
    assert not gain(10**7).certain


def test_four_of_five_sets_lie_within_the_outlook_of_a_mean():
    generator = np.random.default_rng(8)
    seen = generator.exponential(size=200)
    low, high = interval(_singles(seen), "mean", seed=0)
    outlook = significance.outlook_of_mean(seen.mean(), low, high, 200, error=stats.sem(seen), level=None)(800)
    drawn = generator.choice(seen, (150, 800))
    ends = np.array([interval(_singles(values), "mean", seed=seed) for seed, values in enumerate(drawn)])
    assert outlook.certain
    assert np.mean(drawn.mean(axis=1) <= outlook.loss) == pytest.approx(0.8, abs=0.1)
    assert np.mean(ends[:, 0] >= outlook.favourable) == pytest.approx(0.8, abs=0.1)
    assert np.mean(ends[:, 1] <= outlook.unfavourable) == pytest.approx(0.8, abs=0.1)
