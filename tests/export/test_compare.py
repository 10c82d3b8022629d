"""Verdicts on changes whose truth is known."""

import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

from export import sampling
from export.checks import Measurement, measurement
from export.compare import (
    CHANCE,
    NO_CHANCE,
    NONE_LOST,
    Gate,
    Limits,
    case_of_share,
    compare,
    compare_against,
    compare_steps,
    overall,
    too_few_rows,
)
from export.sampling import PairedTable
from export.significance import chance_of_loss_by_flips
from export.verdict import decide, decide_where_none_may_be_lost
from export.wording.sentences import Units, comparison_sentence

GATE = Gate()


def _scores(subject, values, check="exact_match"):
    return measurement(check, subject, [[float(v)] for v in values], unit="share", higher_is_better=True)


def _verdict(before, after, check="exact_match"):
    (done,) = compare(
        [_scores("merged", before, check)],
        [_scores("x", after, check)],
        GATE.below_6_bits,
        names=("merged", "x"),
        seed=0,
    )
    return done.verdict


def test_nothing_lost_on_many_rows_passes():
    assert _verdict([1] * 400, [1] * 400) == "pass"


def test_nothing_lost_on_few_rows_cannot_tell():
    assert _verdict([1] * 30, [1] * 30) == "cannot tell"


def test_a_clear_loss_fails():
    assert _verdict([1] * 400, [1] * 360 + [0] * 40) == "fail"


def test_a_check_that_no_row_asks_for_is_left_open_and_never_passed():
    two = [[_scores(name, []).model_copy(update={"check": "refusal"})] for name in ("merged", "x")]
    (done,) = compare(*two, GATE.below_6_bits, names=("merged", "x"), seed=0)
    assert (done.verdict, done.n) == ("cannot tell", 0)
    sentence = comparison_sentence(done, Units({}), verdict=True)
    assert (
        sentence.startswith("x against merged: refused out of scope: cannot tell")
        and "no held-out row asks for it" in sentence
    )
    assert compare(*two, None, names=("base", "merged"), seed=0) == ()


def test_a_small_loss_on_few_rows_cannot_tell():
    assert _verdict([1] * 100, [1] * 98 + [0] * 2) == "cannot tell"


def test_gaining_is_never_a_failure():
    assert _verdict([0] * 50 + [1] * 350, [1] * 400) == "pass"


@pytest.mark.parametrize("check", sorted(NO_CHANCE))
def test_one_row_lost_fails_where_chance_is_no_excuse_however_many_rows(check):
    assert _verdict([1] * 1000, [1] * 999 + [0], check) == "fail"
    assert _verdict([0] + [1] * 999, [1] * 1000, check) == "pass"
    assert _verdict([0, 1] * 20, [1, 0] * 20, check) == "fail"  # as many gained make up for nothing


@pytest.mark.parametrize("check", sorted(NONE_LOST - NO_CHANCE))
def test_rows_lost_are_told_from_chance_where_a_row_may_be_lost_by_it(check):
    assert _verdict([0] + [1] * 999, [1] * 1000, check) == "pass"
    assert _verdict([1] * 1000, [1] * 999 + [0], check) == "cannot tell"
    assert _verdict([0, 1] * 20, [1, 0] * 20, check) == "cannot tell"
    # alone it has the whole level: 1 in 64 above it, 1 in 128 below
    assert _verdict([1] * 300, [1] * 294 + [0] * 6, check) == "cannot tell"
    assert _verdict([1] * 300, [1] * 293 + [0] * 7, check) == "fail"


def test_rows_that_chance_may_have_lost_are_named_and_told_how_many_would_decide():
    before, after = [1] * 297 + [0] * 3, [1] * 297 + [0] * 3
    for row in (4, 9, 200):
        after[row - 1] = 0
    after[299] = 1
    done = _only(_scores("merged", before, "stops"), _scores("x", after, "stops"))
    assert done.note == (
        "3 of 300 rows lost (row 4, 9, 200), 1 gained; none may be lost, but chance may explain it: p 0.31, where a "
        "fail asks for at most 0.01; look at the rows"
    )
    assert (done.verdict, done.limit, done.flips.lost, done.flips.gained) == ("cannot tell", 0.0, 3, 1)
    turned = _only(_scores("merged", after, "stops"), _scores("x", before, "stops"))
    assert (turned.verdict, turned.rows_needed) == ("cannot tell", None)
    assert turned.note.endswith("as long as no more are lost than gained no number of rows would decide")
    rare = decide_where_none_may_be_lost(PairedTable(10**6 - 1, 1, 0, 0), CHANCE)
    assert (rare.verdict, rare.rows_needed) == ("cannot tell", None)
    assert rare.note.endswith("more than 10,000,000 rows would be needed to decide")


@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (3, 1), (6, 0), (9, 4)])
def test_as_many_rows_as_lost_ones_are_said_to_need_do_decide(lost, gained):
    table = PairedTable(300 - lost - gained, lost, gained, 0)
    needed = decide_where_none_may_be_lost(table, CHANCE / 2).rows_needed
    assert needed > 300
    shares = [lost / 300, gained / 300, 1 - (lost + gained) / 300]
    drawn = np.random.default_rng(15).multinomial(needed, shares, size=400)
    tables = [PairedTable(rest, fewer, more, 0) for fewer, more, rest in drawn.tolist()]
    failed = sum(chance_of_loss_by_flips(table) <= CHANCE / 2 for table in tables)
    assert 0.75 <= failed / 400 <= 0.95  # said to be 4 of 5


def _only(before, after, limits=GATE.below_6_bits):
    (done,) = compare([before], [after], limits, names=("merged", "x"), seed=0)
    return done


def test_rows_of_which_none_may_be_lost_are_named():
    after = [1] * 40
    for row in (3, 7, 8, 20, 33, 40):
        after[row - 1] = 0
    lost = _only(_scores("merged", [1] * 40, "safety"), _scores("x", after, "safety"))
    assert lost.note == "6 of 40 rows lost (row 3, 7, 8, 20, 33 and 1 more), 0 gained; none may be lost"
    assert (lost.limit, lost.rows_needed, lost.flips.lost, lost.flips.gained) == (0.0, None, 6, 0)
    kept = _only(_scores("merged", [1] * 40, "safety"), _scores("x", [1] * 40, "safety"))
    assert kept.note == "no row lost; none may be lost"
    assert kept.minimum_detectable_drop == pytest.approx(1 - 0.05 ** (1 / 40))
    unasked = _only(_scores("base", [1] * 40, "safety"), _scores("merged", after, "safety"), limits=None)
    assert (unasked.verdict, unasked.limit, unasked.note) == (None, None, "")


def _divergence(subject, values, check="kl_mean", statistic="mean"):
    return measurement(
        check, subject, [[float(v)] for v in values], unit="nats", higher_is_better=False, statistic=statistic
    )


@pytest.mark.parametrize(("level", "expected"), [(0.02, "pass"), (0.05, "cannot tell"), (0.2, "fail")])
def test_divergence_is_judged_by_its_interval(level, expected):
    values = np.random.default_rng(0).exponential(size=300)
    values *= level / values.mean()
    merged = _scores("merged", [1] * 300)
    done = compare(
        [merged], [_scores("x", [1] * 300), _divergence("x", values)], GATE.below_6_bits, names=("merged", "x"), seed=0
    )
    assert next(c for c in done if c.check == "kl_mean").verdict == expected


def test_a_divergence_that_is_not_a_number_fails():
    done = compare(
        [_scores("merged", [1] * 9)],
        [_scores("x", [1] * 9), _divergence("x", [0.0] * 8 + [float("nan")])],
        GATE.below_6_bits,
        names=("merged", "x"),
        seed=0,
    )
    assert next(c for c in done if c.check == "kl_mean").verdict == "fail"


def test_perplexity_is_compared_as_a_ratio():
    values = np.random.default_rng(1).exponential(size=200)
    before = _divergence("merged", values, "perplexity", "exp_mean")
    after = _divergence("x", values + np.log(1.2), "perplexity", "exp_mean")
    (done,) = compare([before], [after], GATE.below_6_bits, names=("merged", "x"), seed=0)
    assert done.delta == pytest.approx(1.2)
    assert done.interval == pytest.approx((1.2, 1.2))
    assert done.verdict == "fail"


def test_what_fine_tuning_gained_is_not_judged():
    measured = {"merged": [_scores("merged", [1] * 9)], "base": [_scores("base", [0] * 9)]}
    (done,) = compare_steps(measured, GATE, four_bit_base=False, seed=0)
    assert (done.before, done.after, done.verdict) == ("base", "merged", None)
    assert done.delta == 1.0


def test_the_adapters_divergence_counts_for_the_merge():
    measured = {
        "merged": [_scores("merged", [1] * 300)],
        "adapter": [_scores("adapter", [1] * 300), _divergence("adapter", [0.5] * 300)],
    }
    found = {c.check: c for c in compare_steps(measured, GATE, four_bit_base=False, seed=0)}
    assert (found["kl_mean"].before, found["kl_mean"].after) == ("adapter", "merged")
    assert found["kl_mean"].verdict == "fail"


@cache
def _verdict_of_table(table, level=CHANCE / 2):
    """The verdict on a task score; the level is that of a gate that judges perplexity too."""
    limits = GATE.from_6_bits
    return decide(case_of_share(table, limits.task_drop, limits.task_drop_bound, level=level)).verdict


def _share_failed(generator, rows, lost, gained, right=0.9, repeats=2000, level=CHANCE / 2):
    """Of many drawn sets of rows the share that fails, when those shares of all rows are lost and gained."""
    drawn = generator.multinomial(rows, [right - lost, lost, gained, 1 - right - gained], size=repeats)
    verdicts = [_verdict_of_table(PairedTable(*map(int, counts)), level) for counts in drawn]
    return verdicts.count("fail") / repeats


@pytest.mark.parametrize("rows", [60, 200, 500, 2000])
@pytest.mark.parametrize("churn", [0, 0.005, 0.02, 0.05, 0.1])
def test_simulated_where_nothing_changed_one_set_in_a_hundred_fails_at_most(rows, churn):
    generator = np.random.default_rng(6)
    assert _share_failed(generator, rows, churn, churn, right=0.8) <= 0.01
    if rows <= 500 and churn == 0.1:  # by its interval alone the same rows are failed more often
        assert _share_failed(generator, rows, churn, churn, right=0.8, level=0.999) > 0.015


def test_where_nothing_changed_the_flips_alone_keep_to_the_chance_of_failing():
    # exactly, whatever differs: a fail needs a p-value of the level, and so many sets of a number of flips have one
    for flips in range(1, 200):
        tables = [PairedTable(1000, lost, flips - lost, 1000) for lost in range(flips + 1)]
        failing = [table.lost for table in tables if chance_of_loss_by_flips(table) <= CHANCE]
        assert sum(math.comb(flips, lost) for lost in failing) / 2**flips <= CHANCE
    assert _verdict_of_table(PairedTable(55, 9, 0, 0), 0.001) == "cannot tell"  # 1 in 512, though 9 of 64 are lost


@pytest.mark.parametrize("right", [0.6, 0.93])
@pytest.mark.parametrize(
    ("churn", "at_least", "at_most"),
    # what is lost and gained besides, as shares of all rows. The claim, 95 in 100, stands up to 1 point
    [(0, 0.99, 1), (0.005, 0.97, 1), (0.01, 0.95, 0.98), (0.02, 0.85, 0.91), (0.05, 0.55, 0.63)],
)
def test_simulated_five_points_lost_on_500_rows_are_found(right, churn, at_least, at_most):
    failed = _share_failed(np.random.default_rng(7), 500, 0.05 + churn, churn, right)
    assert at_least <= failed <= at_most


def test_a_simulated_table_gets_the_verdict_that_its_rows_get():
    # perplexity is judged beside the score, and shares the chance of failing what lost nothing
    smooth = _divergence("merged", [1.0] * 12, "perplexity", "exp_mean")
    for table in ((440, 9, 3, 48), (430, 30, 4, 36), (400, 34, 14, 52), (300, 0, 0, 10), (440, 14, 3, 43)):
        both, lost, gained, neither = table
        before = _scores("merged", [1] * (both + lost) + [0] * (gained + neither))
        after = _scores("x", [1] * both + [0] * lost + [1] * gained + [0] * neither)
        score, _ = compare([before, smooth], [after, smooth], GATE.from_6_bits, names=("merged", "x"), seed=0)
        assert score.verdict == _verdict_of_table(PairedTable(*table)), table


def test_a_loss_that_may_be_chance_is_left_open_and_says_so():
    # 17 against 4 in 100: the interval begins above the limit, and chance alone does as much in 0.36 of 100 sets
    before = _scores("merged", [1] * 90 + [0] * 10)
    after = _scores("x", [0] * 17 + [1] * 73 + [1] * 4 + [0] * 6)
    assert _only(before, after).verdict == "fail"
    smooth = [_divergence("merged", [1.0] * 12, "perplexity", "exp_mean"), _scores("merged", [0.5] * 12, "f1")]
    score, *_ = compare([before, *smooth], [after, *smooth], GATE.from_6_bits, names=("merged", "x"), seed=0)
    assert (score.verdict, score.flips.p_value) == ("cannot tell", pytest.approx(0.0072, abs=1e-4))
    assert score.interval[1] < -GATE.from_6_bits.task_drop
    assert "where nothing was lost 0.0036 of all sets of as many rows show as much" in score.note
    assert score.rows_needed > 100


@pytest.mark.parametrize(("change", "verdict"), [(-0.05, "fail"), (0.0, "pass"), (0.05, "pass")])
def test_a_score_between_0_and_1_is_judged_in_its_own_direction(change, verdict):
    generator = np.random.default_rng(14)
    before = generator.uniform(0.5, 1, 200)
    noise = generator.normal(0, 0.05, 200)
    after = before + change + noise - noise.mean()
    done = _only(_scores("merged", before, "slot_f1"), _scores("x", after, "slot_f1"))
    assert (done.verdict, done.flips) == (verdict, None)
    assert done.delta == pytest.approx(change, abs=1e-9)
    assert done.minimum_detectable_drop == pytest.approx(2.4865 * noise.std(ddof=1) / 200**0.5, rel=1e-3)


def test_numbers_that_explain_another_or_are_no_share_are_compared_and_not_judged():
    lost, kept = [1] * 360 + [0] * 40, [1] * 400

    def ungated(subject, values):
        shared = {"subject": subject, "sample": [[float(v)] for v in values]}
        return [
            measurement("number_given", **shared, unit="share", higher_is_better=True, judged=False),
            measurement("length_ratio", **shared, unit="×", higher_is_better=None),
        ]

    found = compare(
        [_scores("merged", kept), *ungated("merged", kept)],
        [_scores("x", lost), *ungated("x", lost)],
        GATE.below_6_bits,
        names=("merged", "x"),
        seed=0,
    )
    assert [(c.check, c.verdict, c.limit) for c in found] == [
        ("exact_match", "fail", GATE.below_6_bits.task_drop),
        ("number_given", None, None),
        ("length_ratio", None, None),
    ]
    assert [c.delta for c in found] == pytest.approx([-0.1] * 3)
    assert all(c.interval is not None for c in found)


def test_what_is_not_judged_takes_no_share_of_the_chance_of_failing():
    # 0.36 in 100 by chance: enough for a fail where one other number is judged, and not where two are
    before, after = [1] * 90 + [0] * 10, [0] * 17 + [1] * 73 + [1] * 4 + [0] * 6
    smooth = _divergence("merged", [1.0] * 12, "perplexity", "exp_mean")

    def verdict(judged):
        other = _scores("merged", [0.5] * 12, "f1").model_copy(update={"judged": judged})
        found = compare(
            [_scores("merged", before), smooth, other],
            [_scores("x", after), smooth, other],
            GATE.from_6_bits,
            names=("merged", "x"),
            seed=0,
        )
        return found[0].verdict

    assert (verdict(judged=True), verdict(judged=False)) == ("cannot tell", "fail")


def test_a_ratio_of_sums_over_rows_is_judged_by_rows():
    # a row of 30 slots and 39 of one: their micro score moves by 30 of 69 where the one row is lost
    before = [[1.0] * 30] + [[1.0]] * 39
    after = [[0.0] * 30] + [[1.0]] * 39
    shared = {"unit": "share", "higher_is_better": True}
    rows = measurement("slots", "merged", before, **shared), measurement("slots", "x", after, **shared)
    done = _only(*rows)
    assert (done.delta, done.n, done.flips) == (pytest.approx(-30 / 69), 69, None)
    # Cochran's linearised ratio, by hand: residuals total - ratio * count of each row, over the mean count, squared
    ratio, residuals = 39 / 69, [-30 * 39 / 69] + [1 - 39 / 69] * 39
    assert rows[1].stderr == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 40 / 39) / 69)
    assert rows[1].value == pytest.approx(ratio)


def test_simulated_perplexity_where_nothing_changed_rarely_fails():
    generator = np.random.default_rng(8)
    failed = 0
    for _ in range(300):
        row = generator.exponential(size=(30, 1))
        samples = [(row + generator.normal(0, 0.5, (30, 1))).tolist() for _ in range(2)]
        before, after = (
            measurement("perplexity", name, sample, unit="", higher_is_better=False, statistic="exp_mean")
            for name, sample in zip(("merged", "x"), samples, strict=True)
        )
        failed += _only(before, after).verdict == "fail"
    assert failed <= 7  # 1 in 100, and what 300 sets may show of it; by its interval alone 5 in 100


_BY_CHANCE = tuple(sorted(NONE_LOST - NO_CHANCE))
_SCORES = ((0.0,), (1.0,))


def _shares(subject, good, check):
    """As `_scores`, without the standard error of each, which `compare` does not look at."""
    sample = tuple(_SCORES[int(value)] for value in good)
    value = sum(good.tolist()) / len(sample)
    shared = {"stderr": None, "n": len(sample), "unit": "share", "higher_is_better": True, "note": ""}
    shared |= {"statistic": "mean", "sample": sample}
    return Measurement.model_construct(check=check, subject=subject, value=value, **shared)


def _unchanged(generator, rows, churn):
    """Both subjects' measurements of everything, when of each check `churn` of the rows are lost, and as many gained
    (independently: real ones go together, and fail fewer sets).
    """
    merged, x = [_shares("merged", np.ones(rows), "finite")], [_shares("x", np.ones(rows), "finite")]
    for check in ("exact_match", *_BY_CHANCE):
        right = 0.85 if check == "exact_match" else 0.94
        row = generator.choice(4, rows, p=[right - churn, churn, churn, 1 - right - churn])
        merged.append(_shares("merged", row <= 1, check))
        x.append(_shares("x", row % 2 == 0, check))
    nll = generator.exponential(0.3, rows)
    for name, subject in (("merged", merged), ("x", x)):
        subject.append(_divergence(name, nll + generator.normal(0, 0.02 + churn, rows), "perplexity", "exp_mean"))
    return merged, [*x, _divergence("x", 0.0003 * generator.lognormal(0, 1, rows))]


@pytest.fixture
def _fewer_draws(monkeypatch):
    """A tenth of the bootstrap's draws, for time: of what is simulated here only perplexity and KL have any, and the
    test that tells a loss from chance is another.
    """
    monkeypatch.setattr(sampling, "_RESAMPLES", 200)


@pytest.mark.usefixtures("_fewer_draws")
def test_simulated_an_unchanged_artifact_fails_in_one_of_a_hundred_sets_at_most():
    generator, failed, open_by_chance = np.random.default_rng(16), 0, 0
    for seed in range(600):
        rows, churn = (300, 500)[seed % 2], (0.005, 0.02, 0.05)[seed % 3]
        merged, x = _unchanged(generator, rows, churn)
        found = {c.check: c for c in compare(merged, x, GATE.from_6_bits, names=("merged", "x"), seed=seed)}
        assert len(found) == 8
        failed += overall([c.verdict for c in found.values()]) == "fail"
        open_by_chance += found["stops"].verdict == "cannot tell"
    assert failed <= 6
    assert open_by_chance >= 500  # which one lost row used to fail


@pytest.mark.usefixtures("_fewer_draws")
@pytest.mark.parametrize("check", _BY_CHANCE)
@pytest.mark.parametrize(("broken", "at_least"), [(30, 9), (300, 10)])
def test_simulated_a_tenth_of_the_rows_broken_fails_among_all_checks_that_vary(check, broken, at_least):
    generator, failed = np.random.default_rng(17), 0
    for seed in range(10):
        merged, x = _unchanged(generator, 300, 0.02)
        place = next(place for place, measured in enumerate(x) if measured.check == check)
        scores = np.array([row[0] for row in x[place].sample])
        scores[generator.permutation(300)[:broken]] = 0
        x[place] = _shares("x", scores, check)
        found = compare(merged, x, GATE.from_6_bits, names=("merged", "x"), seed=seed)
        failed += next(c for c in found if c.check == check).verdict == "fail"
    assert failed >= at_least


def test_the_level_is_shared_among_the_checks_that_can_fail_by_chance():
    def verdict(others):
        pairs = [([1] * 300, [1] * 293 + [0] * 7, "stops"), *others]
        before, after = ([_scores(name, pair[side], pair[2]) for pair in pairs] for side, name in enumerate("bx"))
        return compare(before, after, GATE.from_6_bits, names=("b", "x"), seed=0)[0].verdict

    varied = [0, 1] * 20
    assert verdict([]) == "fail"  # 1 in 128
    assert verdict([([1] * 300, [1] * 300, check) for check in ("exact_match", "valid_format", "safety")]) == "fail"
    assert verdict([(varied, varied[::-1], "exact_match")]) == "cannot tell"
    assert verdict([(varied, varied[::-1], "valid_format")]) == "cannot tell"
    assert verdict([(varied, varied[::-1], "safety")]) == "fail"  # fails by itself, and not by chance


def test_a_comparison_tells_its_paired_standard_error():
    generator = np.random.default_rng(18)
    nll, change = generator.exponential(size=40), generator.normal(0.05, 0.1, 40)
    before = _divergence("merged", nll, "perplexity", "exp_mean")
    ratio = _only(before, _divergence("x", nll + change, "perplexity", "exp_mean"))
    assert ratio.stderr == pytest.approx(math.exp(change.mean()) * change.std(ddof=1) / 40**0.5)
    share = _only(_scores("merged", [1] * 80), _scores("x", [1] * 70 + [0] * 10))
    assert share.stderr == pytest.approx(np.std([0] * 70 + [1] * 10, ddof=1) / 80**0.5)
    assert _only(_scores("merged", [1]), _scores("x", [1])).stderr is None
    assert _against_reference([_divergence("x", nll)])[0].stderr == pytest.approx(nll.std(ddof=1) / 40**0.5)
    assert _against_reference([_divergence("x", nll, "kl_max", "max")])[0].stderr is None
    broken = _divergence("x", [*nll[1:], math.inf], "perplexity", "exp_mean")
    assert _only(before, broken).stderr is None


def test_a_perplexity_of_nothing_but_certain_tokens_is_a_ratio_all_the_same():
    same = _divergence("merged", [0.0] * 12, "perplexity", "exp_mean")
    done = _only(same, same)
    assert (done.verdict, done.interval, done.flips) == ("pass", (1.0, 1.0), None)


def _q8(seed, rows=150, tokens=20):
    """What an honest Q8_0 does, as in a run on the starter: tiny and uneven divergences, and no answer changes."""
    generator = np.random.default_rng(seed)
    kl = 3e-4 * np.exp(generator.normal(0, 1.1, (rows, 1)) + generator.normal(0, 1.5, (rows, tokens)))
    nll = generator.exponential(0.3, (rows, tokens))
    moved = nll + generator.normal(0, 0.01, (rows, tokens))
    same = generator.random((rows, tokens)) > 0.003
    right = (generator.random(rows) < 0.9).astype(float)

    def tokens_of(check, subject, values, statistic="mean", higher_is_better=False):
        return measurement(
            check, subject, values.tolist(), unit="", higher_is_better=higher_is_better, statistic=statistic
        )

    def subject(name, nll):
        shares = [_scores(name, right)] + [_scores(name, [1] * rows, check) for check in sorted(NONE_LOST)]
        return [*shares, tokens_of("perplexity", name, nll, "exp_mean")]

    divergences = [tokens_of("kl_mean", "x", kl), tokens_of("kl_percentile_99", "x", kl, "percentile_99")]
    same_top = tokens_of("same_top_token", "x", same.astype(float), higher_is_better=True)
    return {"merged": subject("merged", nll), "gguf/q8_0": [*subject("x", moved), *divergences, same_top]}


def test_an_honest_eight_bit_file_passes_whatever_the_seed():
    for seed in range(20):
        found = compare_steps(_q8(seed), GATE, four_bit_base=False, seed=seed)
        assert len(found) == 11
        assert {c.verdict for c in found} == {"pass"}, [c for c in found if c.verdict != "pass"]


def _drawn_verdicts(table, rows, repeats=400, level=CHANCE):
    drawn = np.random.default_rng(9).multinomial(rows, [count / table.pairs for count in table], size=repeats)
    return [_verdict_of_table(PairedTable(*map(int, counts)), level) for counts in drawn]


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        ((60, 0, 0, 0), "pass"),  # nothing differs
        ((90, 2, 2, 6), "pass"),  # as much is gained as lost
        ((140, 3, 3, 30), "pass"),
        ((270, 4, 3, 20), "pass"),  # a little is lost
        ((90, 3, 1, 6), "fail"),  # more is lost than may be
        ((60, 2, 0, 8), "fail"),
        ((88, 16, 12, 10), "fail"),
    ],
)
def test_as_many_rows_as_are_said_to_be_needed_do_decide(table, verdict):
    both, lost, gained, neither = table
    before = _scores("merged", [1] * (both + lost) + [0] * (gained + neither))
    done = _only(before, _scores("x", [1] * both + [0] * lost + [1] * gained + [0] * neither))
    assert (done.verdict, done.note) == ("cannot tell", "")
    assert done.rows_needed > sum(table)
    decided = _drawn_verdicts(PairedTable(*table), done.rows_needed)
    assert decided.count(verdict) / len(decided) >= 0.75  # said to be 4 of 5
    if lost:
        fewer = _drawn_verdicts(PairedTable(*table), done.rows_needed // 2)
        assert fewer.count(verdict) < decided.count(verdict)


@pytest.mark.parametrize(("level", "verdict"), [(0.044, "pass"), (0.055, "fail")])
def test_as_many_rows_of_a_divergence_as_are_needed_do_decide(level, verdict):
    generator = np.random.default_rng(10)
    values = generator.lognormal(0, 1, 60)
    values *= level / values.mean()
    done = next(c for c in _against_reference([_divergence("x", values)]) if c.check == "kl_mean")
    assert done.verdict == "cannot tell"
    drawn = [generator.choice(values, done.rows_needed) for _ in range(60)]
    verdicts = [_against_reference([_divergence("x", rows)])[0].verdict for rows in drawn]
    assert verdicts.count(verdict) >= 42  # said to be 4 of 5: 48, less two standard errors


def _against_reference(measurements):
    return compare([], measurements, GATE.below_6_bits, names=("merged", "x"), seed=0)


def test_as_many_rows_as_a_perplexity_needs_do_decide():
    generator = np.random.default_rng(11)
    nll = generator.exponential(size=40)
    change = generator.normal(0, 0.3, 40)
    change += 0.07 - change.mean()

    def judged(rows):
        before = _divergence("merged", nll[rows], "perplexity", "exp_mean")
        return _only(before, _divergence("x", (nll + change)[rows], "perplexity", "exp_mean"))

    done = judged(np.arange(40))
    assert done.verdict == "cannot tell"
    assert done.minimum_detectable_drop == pytest.approx(math.exp(2.4865 * change.std(ddof=1) / 40**0.5) - 1, rel=1e-3)
    verdicts = [judged(generator.integers(0, 40, done.rows_needed)).verdict for _ in range(60)]
    assert verdicts.count("fail") >= 42


def test_a_value_on_the_limit_needs_rows_without_end():
    limits = Limits(task_drop=0.0625, task_drop_bound=0.0625)
    on_it = _only(_scores("merged", [1] * 16), _scores("x", [1] * 15 + [0]), limits)
    assert (on_it.verdict, on_it.rows_needed) == ("cannot tell", None)
    assert on_it.note == "the value lies on the limit: no number of rows would decide"
    near_it = _only(_scores("merged", [1] * 16), _scores("x", [1] * 15 + [0]), Limits(task_drop=0.06251))
    assert (near_it.verdict, near_it.rows_needed) == ("cannot tell", None)
    assert near_it.note == "more than 10,000,000 rows would be needed to decide"


def test_every_open_verdict_has_a_number_of_rows_or_says_why_not():
    generator = np.random.default_rng(12)
    seen = 0
    for _ in range(60):
        rows = int(generator.integers(1, 40))
        before, after = (generator.random((2, rows)) < 0.8).astype(float)
        values = generator.lognormal(-3, 1, rows)
        done = compare(
            [_scores("merged", before), _divergence("merged", values, "perplexity", "exp_mean")],
            [
                _scores("x", after),
                _divergence("x", values * generator.lognormal(0, 0.2, rows), "perplexity", "exp_mean"),
                _divergence("x", values),
                _divergence("x", values, "kl_percentile_99", "percentile_99"),
                _scores("x", after, "same_top_token"),
            ],
            GATE.below_6_bits,
            names=("merged", "x"),
            seed=0,
        )
        for comparison in done:
            if comparison.verdict == "cannot tell":
                seen += 1
                assert (comparison.rows_needed or 0) > rows or comparison.note, comparison
            else:
                assert comparison.rows_needed is None
    assert seen > 100


@pytest.mark.parametrize(("rows", "verdict"), [(9, "cannot tell"), (10, "pass")])
def test_fewer_than_ten_rows_pass_nothing_by_a_bootstrap(rows, verdict):
    (done,) = _against_reference([_divergence("x", [0.001] * rows)])
    assert (done.verdict, done.rows_needed) == (verdict, 10 if rows < 10 else None)
    assert ("fewer than 10 rows" in done.note) == (rows < 10)
    (broken,) = _against_reference([_divergence("x", [1.0 + 0.001 * row for row in range(rows)])])
    assert broken.verdict == "fail"


def test_a_99th_percentile_needs_values_beyond_it():
    kl = [[0.001] * 20] * 14  # 280 values: too few for a bound of the 99th percentile, enough for one of the mean
    shared = {"unit": "nats", "higher_is_better": False}
    few = measurement("kl_percentile_99", "x", kl, statistic="percentile_99", **shared)
    mean, percentile = _against_reference([measurement("kl_mean", "x", kl, **shared), few])
    assert (mean.verdict, percentile.verdict, percentile.rows_needed) == ("pass", "cannot tell", 15)
    enough = measurement("kl_percentile_99", "x", kl + kl[:1], statistic="percentile_99", **shared)
    assert _against_reference([enough])[0].verdict == "pass"


def _simulated_pass(generator, rows, times_the_limit, repeats):
    """How often an artifact of so many times the allowed divergence passes, on rows as uneven as a real Qwen's."""
    passed = 0
    for _ in range(repeats):
        logs = generator.normal(0, 1.27, (rows, 1)) + generator.normal(0, 1.27, (rows, 12))
        kl = np.exp(logs - 1.27**2) * 0.05 * times_the_limit
        sample = measurement("kl_mean", "x", kl.tolist(), unit="nats", higher_is_better=False)
        passed += _against_reference([sample])[0].verdict == "pass"
    return passed / repeats


def test_simulated_ten_rows_rarely_pass_a_divergence_well_beyond_the_limit():
    generator = np.random.default_rng(13)
    assert _simulated_pass(generator, 10, 1.5, 500) <= 0.09  # long simulations find 0.06, and 0.10 at 5 rows
    assert _simulated_pass(generator, 10, 2.0, 500) <= 0.04  # 0.02, and 0.05 at 5


def test_tokens_that_all_agree_leave_room_for_some_that_do_not():
    (few,) = _against_reference([_scores("x", [1] * 20, "same_top_token")])
    assert (few.verdict, few.interval) == ("cannot tell", pytest.approx((-(1.645**2) / (20 + 1.645**2), 0), abs=1e-4))
    assert few.minimum_detectable_drop == pytest.approx(0.139, abs=1e-3)
    (many,) = _against_reference([_scores("x", [1] * few.rows_needed, "same_top_token")])
    assert many.verdict == "pass"


def test_flips_and_what_can_be_detected_are_told_of_every_comparison():
    before, after = [1] * 50 + [0] * 30, [0] * 2 + [1] * 48 + [1] * 5 + [0] * 25
    gained = _only(_scores("base", before), _scores("merged", after), limits=None)
    assert (gained.flips.lost, gained.flips.gained, gained.flips.p_value) == (2, 5, pytest.approx(58 / 128))
    assert gained.minimum_detectable_drop == pytest.approx(0.0812, abs=1e-4)  # from Connor's 80 rows, turned round
    assert (gained.verdict, gained.rows_needed) == (None, None)
    loops = [
        measurement("loops", name, [[float(v)] for v in values], unit="share", higher_is_better=False)
        for name, values in (("merged", before), ("x", after))
    ]
    turned = _only(*loops)
    assert (turned.flips.lost, turned.flips.gained) == (5, 2)  # where less is better a 1 is a loss
    assert turned.interval == pytest.approx(gained.interval)
    mean = _against_reference([_divergence("x", [0.01, 0.02, 0.03] * 9)])[0]
    error = np.std([0.01, 0.02, 0.03] * 9, ddof=1) / 27**0.5
    assert (mean.flips, mean.minimum_detectable_drop) == (None, pytest.approx(2.4865 * error, rel=1e-3))


def test_a_free_comparison_takes_its_limits_from_names_then_from_bits():
    artifacts = ("Qwen2.5-0.5B-Q4_K_M", "Qwen2.5-0.5B-Q8_0", "small", "large", "unknown")
    measured = {name: [_divergence(name, [0.03] * 30)] for name in artifacts} | {"reference": ()}
    bits = {"small": 4.9, "large": 8.5, "unknown": None, "Qwen2.5-0.5B-Q8_0": 3.0}
    found = compare_against(measured, GATE, "reference", bits, seed=0)
    assert {c.before for c in found} == {"reference"}
    verdicts = {c.after: c.verdict for c in found}
    assert verdicts == dict(zip(artifacts, ("pass", "fail", "pass", "fail", "fail"), strict=True))


def test_overall_is_the_worst_and_nothing_measured_cannot_tell():
    assert overall(["pass", "cannot tell", "fail"]) == "fail"
    assert overall(["pass", "cannot tell"]) == "cannot tell"
    assert overall([]) == "cannot tell"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_divergence_that_is_not_finite_fails_and_says_so(bad):
    values = [0.001] * 50 + [bad]
    measured = {
        "merged": [],
        "x": [
            _divergence("x", values),
            _divergence("x", values, "kl_percentile_99", "percentile_99"),
            _divergence("x", values, "kl_max", "max"),
        ],
    }
    found = {c.check: c for c in compare_steps(measured, GATE, four_bit_base=False, seed=0)}
    for check in ("kl_mean", "kl_percentile_99"):
        assert (found[check].verdict, found[check].interval) == ("fail", None)
    assert all("not finite" in c.note for c in found.values())


def test_a_perplexity_that_is_not_finite_fails():
    before = _divergence("merged", [1.0, 2.0, 3.0], "perplexity", "exp_mean")
    after = _divergence("x", [1.0, float("inf"), 3.0], "perplexity", "exp_mean")
    (done,) = compare([before], [after], GATE.below_6_bits, names=("merged", "x"), seed=0)
    assert (done.verdict, done.interval) == ("fail", None)
    assert "not finite" in done.note


def test_subjects_without_measurements_and_divergence_alone_are_compared():
    assert compare([], [], GATE.from_6_bits, names=("merged", "x"), seed=0) == ()
    assert compare([], [_scores("x", [1, 0])], GATE.from_6_bits, names=("merged", "x"), seed=0) == ()
    measured = {"merged": (), "adapter": [_divergence("adapter", [0.0] * 10)], "gguf/q4_k_m": [_divergence("q", [0.0])]}
    first, second = compare_steps(measured, GATE, four_bit_base=False, seed=0)
    assert (first.before, first.after, first.verdict) == ("adapter", "merged", "pass")
    assert (second.before, second.after, second.verdict) == ("merged", "gguf/q4_k_m", "cannot tell")
    assert "fewer than two rows" in second.note


def test_speed_is_never_compared():
    fast, slow = _scores("merged", [9, 8], "tokens_per_second"), _scores("x", [1], "tokens_per_second")
    assert compare([fast], [slow], GATE.below_6_bits, names=("merged", "x"), seed=0) == ()


@pytest.mark.parametrize(("four_bit_base", "expected"), [(True, "pass"), (False, "fail")])
def test_merging_an_adapter_of_a_four_bit_base_may_cost_the_rounding_of_four_bits(four_bit_base, expected):
    generator = np.random.default_rng(2)
    nll = generator.exponential(size=300)
    measured = {
        "merged": [_divergence("merged", nll + 0.02, "perplexity", "exp_mean"), _scores("merged", [1] * 300)],
        "adapter": [
            _divergence("adapter", nll, "perplexity", "exp_mean"),
            _scores("adapter", [1] * 300),
            _divergence("adapter", 0.02 + 0.001 * generator.random(300)),
            _scores("adapter", [1] * 280 + [0] * 20, "same_top_token"),
        ],
    }
    found = {c.check: c for c in compare_steps(measured, GATE, four_bit_base=four_bit_base, seed=0)}
    for check in ("perplexity", "kl_mean"):
        assert found[check].verdict == expected
    assert found["same_top_token"].limit == pytest.approx(0.1 if four_bit_base else 0.03)
    assert found["exact_match"].limit == GATE.from_6_bits.task_drop


def test_too_few_rows_are_known_before_anything_is_measured():
    # Wilson's lower bound of a share of 1 is n / (n + z²), so that the bound of the drop is z² / (n + z²)
    squared = norm.ppf(0.95) ** 2
    allowed = GATE.from_6_bits.task_drop_bound
    needed = math.ceil(squared / allowed - squared)
    assert too_few_rows(needed, GATE.from_6_bits) is None
    assert _verdict([1] * needed, [1] * needed) == "pass"
    for rows in (1, 40, needed - 1):
        assert _verdict([1] * rows, [1] * rows) == "cannot tell"
        said = too_few_rows(rows, GATE.from_6_bits)
        assert said.startswith(f"{rows} held-out rows are few: ")
        assert f"would still be {squared / (rows + squared) * 100:.3g} points, and 2 are allowed" in said
        assert said.endswith(f"below {needed} rows.")
    assert too_few_rows(40, Limits(task_drop_bound=0)).endswith("below 10,000 or more rows.")
    assert too_few_rows(2, Limits(task_drop_bound=1)) is None


def test_a_divergences_interval_stays_where_it_can_be():
    values = [0.0] * 30 + [0.01]
    same = _scores("x", [1] * 199 + [0], "same_top_token")
    merged = _scores("merged", [1] * 31)
    found = {
        c.check: c.interval
        for c in compare([merged], [_divergence("x", values), same], GATE.from_6_bits, names=("merged", "x"), seed=0)
    }
    assert found["kl_mean"][0] >= 0
    assert found["same_top_token"][1] <= 0


def test_a_model_that_was_trained_whole_is_what_its_16_bits_are_held_against():
    measured = {
        "merged": [_scores("merged", [1] * 300)],
        "base": [_scores("base", [0] * 300), _divergence("base", [3.0] * 300)],
        "trained": [_scores("trained", [1] * 300), _divergence("trained", [0.5] * 300)],
    }
    found = compare_steps(measured, Gate(), four_bit_base=False, seed=0)
    steps = {(c.before, c.after) for c in found}
    assert steps == {("base", "merged"), ("trained", "merged")}
    (divergence,) = (c for c in found if c.check == "kl_mean" and c.before == "trained")
    assert (divergence.limit, divergence.verdict) == (Gate().from_6_bits.kl_mean, "fail")
