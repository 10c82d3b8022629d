"""What more training rows are worth: a score at each token budget over several seeds, and what each step added.

Arithmetic over measurements; training and measuring are `finetune.sweep`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from export.checks import Measurement
from export.frozen import Frozen
from export.sampling import BOUND_Z, paired_error, paired_proportion_interval, paired_table, wilson_interval

# Two-sided 90 %, as all intervals of this project.
_CONFIDENCE = 0.9
Worth = Literal["better", "worse", "cannot tell"]


class CurvePoint(Frozen):
    """One check at one token budget.

    `value` is the mean over `seeds` of the check's value on the same `n_rows` held-out rows; `low` to `high` is its
    90 % interval, None with one row. `budget_tokens` was asked for, `tokens` drawn on average.
    """

    check: str
    budget_tokens: int
    tokens: float
    rows: float
    value: float
    low: float | None
    high: float | None
    per_seed: tuple[float, ...]
    n_rows: int
    unit: str
    higher_is_better: bool | None


class CurveStep(Frozen):
    """From one budget to the next: the change of a check, its 90 % interval, and what that says of more rows."""

    check: str
    from_tokens: int
    to_tokens: int
    change: float
    low: float | None
    high: float | None
    worth: Worth


class Trained(NamedTuple):
    """What one training gave: its budget and seed, what it was trained on, and its measurements by check."""

    budget_tokens: int
    seed: int
    tokens: int
    rows: int
    measurements: Mapping[str, Measurement]


def curve(trained: Sequence[Trained], checks: Sequence[str]) -> tuple[CurvePoint, ...]:
    """A point for each check and budget, budgets ascending."""
    return tuple(_point(check, budget, _at(trained, budget)) for check in checks for budget in _budgets(trained))


def steps(trained: Sequence[Trained], checks: Sequence[str]) -> tuple[CurveStep, ...]:
    """A step for each check and pair of neighbouring budgets, paired by seed and by row."""
    budgets = _budgets(trained)
    return tuple(_step(check, trained, *pair) for check in checks for pair in pairwise(budgets))


def _budgets(trained: Sequence[Trained]) -> list[int]:
    return sorted({one.budget_tokens for one in trained})


def _at(trained: Sequence[Trained], budget: int) -> list[Trained]:
    return sorted((one for one in trained if one.budget_tokens == budget), key=lambda one: one.seed)


def _point(check: str, budget: int, seeds: Sequence[Trained]) -> CurvePoint:
    measured = [one.measurements[check] for one in seeds]
    values = [m.value for m in measured]
    half = half_width(values, [_error(m) for m in measured])
    value = sum(values) / len(values)
    low, high = (None, None) if half is None else (value - half, value + half)
    if low is not None and high is not None and measured[0].unit == "share":
        low, high = max(0.0, low), min(1.0, high)
    return CurvePoint(
        check=check,
        budget_tokens=budget,
        tokens=sum(one.tokens for one in seeds) / len(seeds),
        rows=sum(one.rows for one in seeds) / len(seeds),
        value=value,
        low=low,
        high=high,
        per_seed=tuple(values),
        n_rows=len(measured[0].sample),
        unit=measured[0].unit,
        higher_is_better=measured[0].higher_is_better,
    )


def _step(check: str, trained: Sequence[Trained], first: int, second: int) -> CurveStep:
    """Rows are paired where the check has a paired standard error; else their two errors count as independent.

    Of one training each it cannot be told what another would have given.
    """
    before, after = ([one.measurements[check] for one in _at(trained, budget)] for budget in (first, second))
    changes = [b.value - a.value for a, b in zip(before, after, strict=True)]
    half = half_width(changes, [_error_of_change(a, b) for a, b in zip(before, after, strict=True)])
    change = sum(changes) / len(changes)
    worth: Worth = "cannot tell"
    if half is not None and len(changes) > 1 and abs(change) > half:
        worth = "better" if (change > 0) == before[0].higher_is_better else "worse"
    return CurveStep(
        check=check,
        from_tokens=first,
        to_tokens=second,
        change=change,
        low=None if half is None else change - half,
        high=None if half is None else change + half,
        worth=worth,
    )


def _error(measured: Measurement) -> float | None:
    """A measurement's standard error over rows; of right and wrong answers, what Wilson's interval is wide for.

    Where all answers are right the plain error is 0, as if no other row could be wrong.
    """
    scores = _right_or_wrong(measured)
    if scores is None:
        return measured.stderr
    return _as_error(wilson_interval(measured.value, len(scores)))


def _error_of_change(before: Measurement, after: Measurement) -> float | None:
    """The same of the change of two measurements on the same rows: Newcombe's interval for right and wrong answers."""
    first, second = _right_or_wrong(before), _right_or_wrong(after)
    if first is not None and second is not None:
        return _as_error(paired_proportion_interval(paired_table(first, second)))
    if before.sample and after.sample:
        paired = paired_error(before.sample, after.sample, before.statistic, ratio=False)
        if paired is not None:
            return paired
    if before.stderr is None or after.stderr is None:
        return None
    return math.hypot(before.stderr, after.stderr)


def _right_or_wrong(measured: Measurement) -> list[float] | None:
    """The rows' scores where each is 0 or 1, else None."""
    if measured.unit != "share" or any(len(item) != 1 or item[0] not in (0.0, 1.0) for item in measured.sample):
        return None
    return [item[0] for item in measured.sample] or None


def _as_error(interval: tuple[float, float]) -> float:
    """The standard error whose 90 % interval is as wide."""
    return (interval[1] - interval[0]) / 2 / BOUND_Z


def half_width(values: Sequence[float], errors: Sequence[float | None]) -> float | None:
    """Half of the 90 % interval of the mean of `values`, one for each seed; None where no row error is known.

    Two things vary: which rows are measured on (`errors`, the standard errors over rows; all seeds share the rows, so
    that their mean and not its fraction counts), and how a training happens to go, which few seeds show: Student's t
    with one degree of freedom less than seeds. Both are joined as independent. One seed shows nothing of the second:
    its interval holds for that training alone.
    """
    from scipy import stats

    known = [error for error in errors if error is not None]
    if len(known) < len(errors) or not all(map(math.isfinite, values)):
        return None
    rows = float(stats.norm.ppf(0.5 + _CONFIDENCE / 2)) * sum(known) / len(known)
    count = len(values)
    if count < 2:
        return rows
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    seeds = float(stats.t.ppf(0.5 + _CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
    return math.hypot(rows, seeds)
