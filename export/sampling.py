"""The statistics of a report: estimates from per-item samples, their standard errors, and paired intervals.

A sample has one inner sequence per held-out item: one number per token, or a single score. Tokens of one item are not
independent, so items, never tokens, are what is resampled (a cluster bootstrap: Cameron, Gelbach and Miller 2008,
"Bootstrap-Based Improvements for Inference with Clustered Errors"). What an interval means for a product is decided
in `export.compare`.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Statistic = Literal["mean", "exp_mean", "median", "percentile_99", "max"]
Sample = Sequence[Sequence[float]]

# Each end of the two-sided 90 % interval is a one-sided 95 % bound, which is what the limits are stated for.
CONFIDENCE = 0.90
# How many standard errors such a bound lies from the value.
BOUND_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_RESAMPLES = 2000
# A draw that missed every outlying row has a standard error near nothing, and its t would be without bounds. Coverage
# in the simulations of tests/export/test_sampling.py is the same with this floor as without.
_SMALLEST_ERROR_SHARE = 0.2
_DRAWS_AT_ONCE = 200
_QUANTILES: dict[Statistic, float] = {"median": 0.5, "percentile_99": 0.99, "max": 1.0}


def estimate(sample: Sample, statistic: Statistic) -> float:
    """The statistic of all the sample's numbers together: NaN for an empty sample, infinity for non-finite numbers."""
    import numpy as np

    values = np.concatenate([np.asarray(item, dtype=np.float64) for item in sample]) if sample else np.empty(0)
    if values.size == 0:
        return math.nan
    if not np.isfinite(values).all():
        return math.inf
    return _reduce(values, statistic)


def standard_error(sample: Sample, statistic: Statistic) -> float | None:
    """The standard error of `estimate` over items.

    Means use the linearised ratio estimator (Cochran 1977, "Sampling Techniques", section 6.4: total over count, with
    items as units); exp_mean follows by the delta method; the quantiles and the maximum are bootstrapped. None for
    fewer than two items, for non-finite values, and for the maximum, whose bootstrap is not consistent.
    """
    import numpy as np

    if len(sample) < 2 or statistic == "max" or not math.isfinite(estimate(sample, statistic)):
        return None
    if statistic in ("mean", "exp_mean"):
        mean, error = (float(part) for part in _change_and_error([totals_and_counts(sample)]))
        return error * math.exp(mean) if statistic == "exp_mean" else error
    drawn = bootstrap([sample], statistic, seed=0, resamples=200)
    return float(np.std(drawn[0], ddof=1))


def paired_error(before: Sample, after: Sample, statistic: Statistic, *, ratio: bool) -> float | None:
    """The standard error of the change whose interval is `paired_interval`: for a ratio, that of its logarithm.

    None for what is not a difference of means or a ratio of exp_means, for non-finite values and for fewer than two
    items. Raises ValueError when the samples have different numbers of items.
    """
    _refuse_unequal([before, after])
    if statistic != ("exp_mean" if ratio else "mean") or _no_interval([before, after], statistic) is not None:
        return None
    return float(_change_and_error([totals_and_counts(before), totals_and_counts(after)])[1])


def paired_interval(
    before: Sample, after: Sample, statistic: Statistic, *, ratio: bool, seed: int
) -> tuple[float, float]:
    """The 90 % interval of after minus before, or of after over before, items paired.

    A difference of means and a ratio of exp_means (whose logarithm is one) use the bootstrap-t of `interval`; anything
    else, quantiles above all, the percentile bootstrap. Degenerate samples as in `interval`. Raises ValueError when
    the samples have different numbers of items.
    """
    import numpy as np

    _refuse_unequal([before, after])
    if (unknown := _no_interval([before, after], statistic)) is not None:
        return unknown
    if statistic == ("exp_mean" if ratio else "mean"):
        low, high = _studentised_interval([before, after], seed)
        return (_exp(low), _exp(high)) if ratio else (low, high)
    drawn_before, drawn_after = bootstrap([before, after], statistic, seed=seed, resamples=_RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _middle(drawn_after / drawn_before if ratio else drawn_after - drawn_before)


def interval(sample: Sample, statistic: Statistic, *, seed: int) -> tuple[float, float]:
    """The 90 % interval of one sample's statistic, over items.

    Means use the bootstrap-t (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 12.5), exp_mean on
    the scale of its logarithm. Where tails are heavy it still falls short, since nothing can be resampled of a tail
    that was not drawn: for log-normal tokens of sigma 1.8, twelve a row, the upper bound, nominally 0.95, covers 0.88
    at 40 rows and 0.91 at 200 (the percentile bootstrap 0.83 and 0.87), and 0.86 (0.77) at 40 rows that differ from
    one another as much as their tokens do. (The KL of a real Qwen's rows: their means' logarithms have a standard
    deviation of 0.5 to 1.3, the last example 1.4.) Fewer rows fall shorter: 0.83 at 10 such rows, 0.80 at 5, 0.67 at 3;
    what may be concluded from them is for `export.compare` to say.

    Quantiles use the percentile bootstrap, which never reaches beyond the largest value seen. No variance gives an
    interval of no width, non-finite numbers (NaN, NaN), and fewer than two items (-inf, inf).
    """
    if (unknown := _no_interval([sample], statistic)) is not None:
        return unknown
    if statistic in ("mean", "exp_mean"):
        low, high = _studentised_interval([sample], seed)
        return (_exp(low), _exp(high)) if statistic == "exp_mean" else (low, high)
    return _middle(bootstrap([sample], statistic, seed=seed, resamples=_RESAMPLES)[0])


class PairedTable(NamedTuple):
    """Pairs of 0/1 scores, counted: 1 twice, 1 then 0, 0 then 1, and 0 twice. Not whole when scaled."""

    both: float
    lost: float
    gained: float
    neither: float

    @property
    def pairs(self) -> float:
        """How many there are."""
        return sum(self)

    def scaled(self, pairs: float) -> "PairedTable":
        """The same shares of another number of pairs."""
        return PairedTable(*(count * pairs / self.pairs for count in self))


def paired_table(before: Sequence[float], after: Sequence[float]) -> PairedTable:
    """The table of paired 0/1 scores. Raises ValueError for unequal numbers of them."""
    pairs = list(zip(before, after, strict=True))
    both, lost = sum(b * a for b, a in pairs), sum(b * (1 - a) for b, a in pairs)
    return PairedTable(both, lost, sum((1 - b) * a for b, a in pairs), sum((1 - b) * (1 - a) for b, a in pairs))


def paired_proportion_interval(table: PairedTable) -> tuple[float, float]:
    """The 90 % interval of the difference (after minus before) of two paired shares of 0/1 scores.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
    data" (Statistics in Medicine 17: 2635-2650), method 10: Wilson score intervals joined through the correlation of
    the pairs, with the paper's correction for continuity of a positive correlation. Unlike a bootstrap it does not
    shrink to nothing when no pair differs. Raises ValueError for no pairs.
    """
    n = table.pairs
    if not n:
        raise ValueError("no interval without scores")
    p_after, p_before = (table.both + table.gained) / n, (table.both + table.lost) / n
    low_after, high_after = wilson_interval(p_after, n)
    low_before, high_before = wilson_interval(p_before, n)
    correlation = _corrected_correlation(table)
    difference = p_after - p_before
    down, up_before = p_after - low_after, high_before - p_before
    up, down_before = high_after - p_after, p_before - low_before
    low = difference - math.sqrt(max(0.0, down**2 - 2 * correlation * down * up_before + up_before**2))
    high = difference + math.sqrt(max(0.0, up**2 - 2 * correlation * up * down_before + down_before**2))
    return low, high


def _corrected_correlation(table: PairedTable) -> float:
    """Newcombe's phi of a paired table; its numerator is lowered by half the pairs, but not from above 0 to below."""
    both, lost, gained, neither = table
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    numerator = both * neither - lost * gained
    if numerator >= 0:
        numerator = max(0.0, numerator - table.pairs / 2)
    return numerator / math.sqrt(product) if product > 0 else 0.0


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """The Wilson score interval (1927) of a share of `n` at 90 % confidence."""
    z = BOUND_Z
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    samples: Sequence[Sample], statistic: Statistic, *, seed: int, resamples: int
) -> "list[NDArray[np.float64]]":
    """The statistic of each sample on `resamples` draws of items, the same items in every sample of a draw.

    Raises ValueError when the samples have different numbers of items.
    """
    import numpy as np

    _refuse_unequal(samples)
    generator = np.random.default_rng(seed)
    items = len(samples[0])
    draws = generator.integers(0, items, size=(resamples, items))
    if (share := _QUANTILES.get(statistic)) is not None:
        return [_drawn_quantiles(sample, share, draws) for sample in samples]
    results = []
    for sample in samples:
        totals, counts = totals_and_counts(sample)
        means = totals[draws].sum(axis=1) / counts[draws].sum(axis=1)
        results.append(np.exp(means) if statistic == "exp_mean" else means)
    return results


def _drawn_quantiles(sample: Sample, share: float, draws: "NDArray[np.int64]") -> "NDArray[np.float64]":
    """The quantile (numpy's, linear between two values) of each draw of items; `draws` has shape (resamples, items).

    The values are sorted once, largest first, and a draw says how many times each of them counts. Only the largest are
    counted, as many as it takes to come down to the quantile. A draw without a single value has none.
    """
    import numpy as np

    values = np.concatenate([np.asarray(item, dtype=np.float64) for item in sample])
    counts = np.array([len(item) for item in sample])
    order = np.argsort(-values, kind="stable")
    values, owners = values[order], np.repeat(np.arange(len(sample)), counts)[order]
    columns, parts = math.ceil((1 - share) * 1.5 * values.size) + 10, []
    for start in range(0, len(draws), _DRAWS_AT_ONCE):
        part = draws[start : start + _DRAWS_AT_ONCE]
        rows = np.arange(len(part))[:, None] * len(sample)
        times = np.bincount((part + rows).ravel(), minlength=part.size).reshape(part.shape).astype(np.int32)
        sizes = times @ counts
        times, place = times[sizes > 0], (1 - share) * (sizes[sizes > 0] - 1.0)
        above, below = np.floor(place), np.ceil(place)
        while ((upto := times[:, owners[:columns]].cumsum(axis=1))[:, -1] <= below).any():
            columns *= 2
        high, low = (values[(upto <= at[:, None]).sum(axis=1)] for at in (above, below))
        parts.append(high + (low - high) * (place - above))
    return np.concatenate(parts)


def _studentised_interval(samples: Sequence[Sample], seed: int) -> tuple[float, float]:
    """The bootstrap-t interval of a sample's mean, or of the second sample's mean minus the first's."""
    import numpy as np

    sums = [totals_and_counts(sample) for sample in samples]
    value, error = _change_and_error(sums)
    centre, width = float(value), float(error)
    items = len(samples[0])
    draws = np.random.default_rng(seed).integers(0, items, size=(_RESAMPLES, items))
    parts = []
    # in parts, because every draw needs its own residual of every item
    for start in range(0, _RESAMPLES, _DRAWS_AT_ONCE):
        part = draws[start : start + _DRAWS_AT_ONCE]
        drawn, errors = _change_and_error([(totals[part], counts[part]) for totals, counts in sums])
        with np.errstate(invalid="ignore"):
            parts.append((drawn - centre) / np.maximum(errors, _SMALLEST_ERROR_SHARE * width))
    ratios = np.concatenate(parts)
    # not finite where nothing varies, and for a draw of rows without a single token
    ratios = ratios[np.isfinite(ratios)]
    low, high = _middle(ratios) if ratios.size else (0.0, 0.0)
    return centre - high * width, centre - low * width


def _change_and_error(
    sums: "Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]",
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """A mean, or the difference of two, with its linearised standard error (see `standard_error`).

    `sums` holds each sample's totals and counts, shape (..., items); the results have shape (...).
    """
    import numpy as np

    value: NDArray[np.float64] = np.zeros(1)
    influence: NDArray[np.float64] = np.zeros(1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for totals, counts in sums:
            count = counts.sum(axis=-1, keepdims=True)
            mean = totals.sum(axis=-1, keepdims=True) / count
            # from the second on, what came before is subtracted
            value, influence = mean - value, (totals - mean * counts) / count - influence
        items = influence.shape[-1]
        error = np.sqrt((influence**2).sum(axis=-1) * items / (items - 1))
    return value[..., 0], error


def _no_interval(samples: Sequence[Sample], statistic: Statistic) -> tuple[float, float] | None:
    """What stands for the interval of samples that have none: of non-finite numbers, or of fewer than two items."""
    if not all(math.isfinite(estimate(sample, statistic)) for sample in samples):
        return math.nan, math.nan
    return (-math.inf, math.inf) if len(samples[0]) < 2 else None


def _exp(value: float) -> float:
    """The exponential; infinity where Python's raises for what a float cannot hold."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _middle(drawn: "NDArray[np.float64]") -> tuple[float, float]:
    """The quantiles between which the middle 90 % of the draws lie."""
    import numpy as np

    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _refuse_unequal(samples: Sequence[Sample]) -> None:
    lengths = [len(sample) for sample in samples]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(f"paired samples must have the same items, at least one; these have {lengths}")


def _reduce(values: "NDArray[np.float64]", statistic: Statistic) -> float:
    import numpy as np

    if (share := _QUANTILES.get(statistic)) is not None:
        return float(np.quantile(values, share))
    return float(values.mean()) if statistic == "mean" else _exp(float(values.mean()))


def totals_and_counts(sample: Sample) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Each item's sum and number of values."""
    import numpy as np

    totals = np.array([math.fsum(item) for item in sample], dtype=np.float64)
    return totals, np.array([len(item) for item in sample], dtype=np.float64)
