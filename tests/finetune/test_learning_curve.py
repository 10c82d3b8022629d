"""A learning curve's points and steps: against numbers worked by hand, and against a known truth that is drawn from."""

import numpy as np
import pytest

from export.checks import measurement
from finetune.learning_curve import Trained, curve, half_width, steps


def trained(budget, seed, scores, *, rows=100):
    measured = measurement(
        "exact_match", f"{budget}-{seed}", [(s,) for s in scores], unit="share", higher_is_better=True
    )
    return Trained(budget, seed, budget - 7, rows, {"exact_match": measured})


def test_a_point_is_the_mean_over_seeds_on_the_same_rows():
    half = [1.0, 0.0] * 50
    runs = [trained(1000, 0, half), trained(1000, 1, [1.0] * 100), trained(2000, 0, half), trained(2000, 1, half)]
    first, second = curve(runs, ["exact_match"])
    assert (first.budget_tokens, first.tokens, first.rows, first.n_rows) == (1000, 993, 100, 100)
    assert first.value == pytest.approx(0.75)
    assert first.per_seed == (0.5, 1.0)
    assert (second.value, second.per_seed) == (0.5, (0.5, 0.5))


def test_the_interval_joins_rows_and_seeds():
    """Two seeds at 0.5 and 1.0: t(0.95, 1) = 6.3138, 0.3536/sqrt(2) = 0.25; rows: z(0.95) = 1.6449."""
    seeds = 6.3138 * 0.25
    rows = 1.6449 * (0.05 + 0.01) / 2
    assert half_width([0.5, 1.0], [0.05, 0.01]) == pytest.approx(np.hypot(seeds, rows), rel=1e-3)
    assert half_width([0.5], [0.05]) == pytest.approx(1.6449 * 0.05, rel=1e-3)
    assert half_width([0.5, 0.6], [0.05, None]) is None


def test_a_step_is_paired_by_seed_and_row():
    generator = np.random.default_rng(0)
    hard = generator.random(400) < 0.5  # rows that nobody gets right; the same for both budgets
    before = [trained(1000, seed, np.where(hard, 0.0, 1.0)) for seed in range(3)]
    gained = np.where(hard & (np.arange(400) % 8 == 0), 1.0, np.where(hard, 0.0, 1.0))
    after = [trained(2000, seed, gained) for seed in range(3)]
    (step,) = steps([*before, *after], ["exact_match"])
    assert step.change == pytest.approx(gained.mean() - (~hard).mean())
    assert step.worth == "better"
    assert step.high - step.low < 0.06  # unpaired, each of the two would have an error of 0.025
    (back,) = steps([*[t._replace(budget_tokens=3000) for t in before], *after], ["exact_match"])
    assert back.worth == "worse"


def test_answers_that_are_all_right_are_no_proof_that_all_would_be():
    runs = [trained(budget, seed, [1.0] * 20) for budget in (1000, 2000) for seed in range(3)]
    point, _ = curve(runs, ["exact_match"])
    assert (point.value, point.high) == (1.0, 1.0)
    # Wilson (1927) at 90 %: 1 / (1 + z^2/n) = 0.881 below, 1 above; half of that on either side
    assert point.low == pytest.approx(1 - (1 - 1 / (1 + 1.6449**2 / 20)) / 2, abs=1e-3)
    (step,) = steps(runs, ["exact_match"])
    assert step.low < 0 < step.high


def test_what_noise_alone_explains_is_not_told_apart():
    generator = np.random.default_rng(1)
    runs = [trained(budget, seed, generator.random(100) < 0.7) for budget in (1000, 2000) for seed in range(3)]
    (step,) = steps(runs, ["exact_match"])
    assert step.worth == "cannot tell"


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Trainings differ (standard deviation 0.03) and rows are drawn: the truth is the mean of both."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        rows = np.clip(generator.normal(0.6, 0.25, 150), 0, 1)  # how easy each row is
        runs = []
        for seed in range(3):
            chance = np.clip(rows + generator.normal(0, 0.03), 0, 1)
            runs.append(trained(1000, seed, (generator.random(150) < chance).astype(float)))
        (point,) = curve(runs, ["exact_match"])
        truth = float(np.mean(np.clip(np.random.default_rng(3).normal(0.6, 0.25, 100_000), 0, 1)))
        covered += point.low <= truth <= point.high
    assert covered / 400 >= 0.9


def test_a_number_without_rows_of_its_own_is_not_paired():
    def macro(value):
        measured = trained(1000, 0, [1.0]).measurements["exact_match"]
        return measured.model_copy(update={"value": value, "stderr": 0.03, "sample": ()})

    runs = [Trained(1000, 0, 1, 100, {"f1": macro(0.5)}), Trained(2000, 0, 1, 100, {"f1": macro(0.6)})]
    (step,) = steps(runs, ["f1"])
    assert step.high - step.change == pytest.approx(1.6449 * np.hypot(0.03, 0.03), rel=1e-3)
