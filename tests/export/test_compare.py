"""Verdicts on changes whose truth is known."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from export.checks._base import measurement
from export.compare import Gate, Limits, compare, compare_steps, nominal_bits, overall, too_few_rows

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


def test_a_small_loss_on_few_rows_cannot_tell():
    assert _verdict([1] * 100, [1] * 98 + [0] * 2) == "cannot tell"


def test_gaining_is_never_a_failure():
    assert _verdict([0] * 50 + [1] * 350, [1] * 400) == "pass"


def test_one_answer_that_no_longer_stops_fails_however_many_rows():
    assert _verdict([1] * 1000, [1] * 999 + [0], check="stops") == "fail"
    assert _verdict([0] + [1] * 999, [1] * 1000, check="stops") == "pass"


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


def test_simulated_truth_nothing_changed_is_rarely_failed_and_a_loss_of_five_points_is_found():
    generator = np.random.default_rng(6)
    unchanged, lost = [], []
    for _ in range(400):
        before = (generator.random(500) < 0.93).astype(float)
        # flips both ways that cancel in expectation, 1 point of all rows each: nothing is lost
        flipped = generator.random(500) < np.where(before == 1, 0.01 / 0.93, 0.01 / 0.07)
        unchanged.append(_verdict(before, np.where(flipped, 1 - before, before)))
        lost.append(_verdict(before, np.where(generator.random(500) < 0.06, 0.0, before)))
    assert unchanged.count("fail") <= 4
    assert lost.count("fail") >= 380


@pytest.mark.parametrize(
    ("subject", "bits"),
    [("gguf/q4_k_m", 4), ("gguf/q8_0", 8), ("gguf/iq2_xs", 2), ("gguf/f16", 16), ("gptq/4bit", 4), ("merged", 16)],
)
def test_nominal_bits(subject, bits):
    assert nominal_bits(subject) == bits


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
    measured = {"merged": (), "adapter": [_divergence("adapter", [0.0] * 9)], "gguf/q4_k_m": [_divergence("q", [0.0])]}
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
