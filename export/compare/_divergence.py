"""A divergence from the reference, which is a change by itself: its interval, its limit and its verdict."""

import math

from export import sampling, significance
from export.checks import Measurement
from export.compare._comparison import LEAST_ROWS, Comparison, finite_interval, judged, why_no_interval
from export.limits import Limits
from export.verdict import Case

# A bound of the 99th percentile needs a value beyond it: 299 values have one in 95 of 100 sets, since 0.99^299 = 0.05.
_LEAST_VALUES_OF_A_PERCENTILE_99 = 299


def divergence_comparison(measured: Measurement, names: tuple[str, str], limits: Limits, seed: int) -> Comparison:
    """A divergence from the reference, which is a change by itself: the reference's own is 0 (or a share of 1)."""
    start = 1.0 if measured.check == "same_top_token" else 0.0
    limit: float | None = getattr(limits, measured.check, None)
    allowed = None if limit is None else abs(limit - start)
    interval = None if measured.statistic == "max" else _interval_of_divergence(measured, start, seed)
    compared = Comparison(
        check=measured.check,
        before=names[0],
        after=names[1],
        delta=measured.value - start,
        scale="difference",
        interval=finite_interval(interval),
        limit=allowed,
        bound_limit=allowed,
        n=measured.n,
        verdict=None,
        stderr=measured.stderr,
        minimum_detectable_drop=_detectable_divergence(measured),
        note=why_no_interval(measured.value, interval),
    )
    if interval is None or allowed is None:
        return compared
    return judged(compared, _case_of_divergence(measured, start, interval, allowed), allowed, allowed)


def _interval_of_divergence(measured: Measurement, start: float, seed: int) -> tuple[float, float]:
    """A divergence is never below 0, and a share never above 1; the bootstrap's bounds may be."""
    low, high = sampling.interval(measured.sample, measured.statistic, seed=seed)
    if not start:
        return max(low, 0.0), high
    if low == high and measured.n:  # no token differs, or all do, and the bootstrap cannot know of any other
        low, high = sampling.wilson_interval(measured.value, measured.n)
    return low - start, min(high - start, 0.0)


def _case_of_divergence(measured: Measurement, start: float, interval: tuple[float, float], allowed: float) -> Case:
    loss, rows = abs(measured.value - start), len(measured.sample)
    favourable, unfavourable = (-interval[1], -interval[0]) if start else interval
    least = LEAST_ROWS
    if measured.statistic == "percentile_99":
        least = max(least, math.ceil(_LEAST_VALUES_OF_A_PERCENTILE_99 * rows / max(1, measured.n)))
    # nothing needs to be told from chance: a divergence that is not 0 is a change
    outlook = significance.outlook_of_mean(
        loss, favourable, unfavourable, rows, error=measured.stderr or 0.0, level=None
    )
    return Case(loss, favourable, unfavourable, allowed, allowed, rows, outlook, least_rows=least)


def _detectable_divergence(measured: Measurement) -> float | None:
    """The minimum detectable drop of a mean divergence; of a share that does not vary, what its tokens exclude."""
    if measured.statistic != "mean" or measured.stderr is None:
        return None
    if measured.stderr == 0:
        return significance.rule_of_three(measured.n) if measured.check == "same_top_token" else None
    return significance.minimum_detectable_drop_of_mean(measured.stderr)
