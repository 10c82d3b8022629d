"""The statistics of a report: estimates from per-item samples, their standard errors, and paired intervals.

A sample has one inner sequence per held-out item: one number per token, or a single score. Tokens of one item are not
independent, so items, never tokens, are what is resampled (a cluster bootstrap: Cameron, Gelbach and Miller 2008,
"Bootstrap-Based Improvements for Inference with Clustered Errors"). What an interval means for a product is decided
in `export.compare`.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Statistic = Literal["mean", "exp_mean", "median", "percentile_99", "max"]
Sample = Sequence[Sequence[float]]

# Each end of the two-sided 90 % interval is a one-sided 95 % bound, which is what the limits are stated for.
CONFIDENCE = 0.90
_RESAMPLES = 2000


def estimate(sample: Sample, statistic: Statistic) -> float:
    """The statistic of all the sample's numbers together; NaN for an empty sample."""
    import numpy as np

    values = np.concatenate([np.asarray(item, dtype=np.float64) for item in sample]) if sample else np.empty(0)
    if values.size == 0:
        return math.nan
    if not np.isfinite(values).all():
        return math.inf
    return float(_reduce(values, statistic))


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
        totals, counts = _totals(sample)
        mean = totals.sum() / counts.sum()
        residual = totals - mean * counts
        error = math.sqrt(float((residual**2).sum()) * len(totals) / (len(totals) - 1)) / float(counts.sum())
        return error * math.exp(mean) if statistic == "exp_mean" else error
    drawn = bootstrap([sample], statistic, seed=0, resamples=200)
    return float(np.std(drawn[0], ddof=1))


def paired_interval(
    before: Sample, after: Sample, statistic: Statistic, *, ratio: bool, seed: int
) -> tuple[float, float]:
    """The 90 % interval of after minus before (or after over before), items paired, by the percentile bootstrap."""
    import numpy as np

    drawn_before, drawn_after = bootstrap([before, after], statistic, seed=seed, resamples=_RESAMPLES)
    change = drawn_after / drawn_before if ratio else drawn_after - drawn_before
    low, high = np.quantile(change, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def interval(sample: Sample, statistic: Statistic, *, seed: int) -> tuple[float, float]:
    """The 90 % interval of one sample's statistic, by the percentile bootstrap over items."""
    import numpy as np

    drawn = bootstrap([sample], statistic, seed=seed, resamples=_RESAMPLES)[0]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_proportion_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """The 90 % interval of the difference (after minus before) of two paired shares of 0/1 scores.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
    data" (Statistics in Medicine 17: 2635-2650), method 10: Wilson score intervals joined through the correlation of
    the pairs. Unlike a bootstrap it does not shrink to nothing when no pair differs.
    """
    n = len(before)
    pairs = list(zip(before, after, strict=True))
    both, lost = sum(b * a for b, a in pairs), sum(b * (1 - a) for b, a in pairs)
    gained, neither = sum((1 - b) * a for b, a in pairs), sum((1 - b) * (1 - a) for b, a in pairs)
    p_after, p_before = (both + gained) / n, (both + lost) / n
    low_after, high_after = wilson_interval(p_after, n)
    low_before, high_before = wilson_interval(p_before, n)
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    correlation = (both * neither - lost * gained) / math.sqrt(product) if product > 0 else 0.0
    difference = p_after - p_before
    down, up_before = p_after - low_after, high_before - p_before
    up, down_before = high_after - p_after, p_before - low_before
    low = difference - math.sqrt(max(0.0, down**2 - 2 * correlation * down * up_before + up_before**2))
    high = difference + math.sqrt(max(0.0, up**2 - 2 * correlation * up * down_before + down_before**2))
    return low, high


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The Wilson score interval (1927) of a share of `n` at 90 % confidence."""
    from scipy.stats import norm

    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    samples: Sequence[Sample], statistic: Statistic, *, seed: int, resamples: int
) -> "list[NDArray[np.float64]]":
    """The statistic of each sample on `resamples` draws of items, the same items in every sample of a draw."""
    import numpy as np

    generator = np.random.default_rng(seed)
    items = len(samples[0])
    draws = generator.integers(0, items, size=(resamples, items))
    if statistic in ("mean", "exp_mean"):
        results = []
        for sample in samples:
            totals, counts = _totals(sample)
            means = totals[draws].sum(axis=1) / counts[draws].sum(axis=1)
            results.append(np.exp(means) if statistic == "exp_mean" else means)
        return results
    arrays = [[np.asarray(item, dtype=np.float64) for item in sample] for sample in samples]
    return [
        np.array([_reduce(np.concatenate([sample[i] for i in draw]), statistic) for draw in draws]) for sample in arrays
    ]


def _reduce(values: "NDArray[np.float64]", statistic: Statistic) -> float:
    import numpy as np

    match statistic:
        case "mean":
            return float(values.mean())
        case "exp_mean":
            return float(np.exp(values.mean()))
        case "median":
            return float(np.median(values))
        case "percentile_99":
            return float(np.quantile(values, 0.99))
        case "max":
            return float(values.max())


def _totals(sample: Sample) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Each item's sum and number of values."""
    import numpy as np

    totals = np.array([math.fsum(item) for item in sample], dtype=np.float64)
    return totals, np.array([len(item) for item in sample], dtype=np.float64)
