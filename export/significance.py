"""Whether a change can be chance, the smallest one that a set of rows would show, and the rows that would settle it.

Arithmetic over counts, errors and samples; what is allowed, and what a verdict needs, is decided in `export.compare`.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from export.frozen import Frozen
from export.sampling import BOUND_Z, PairedTable, Sample, paired_proportion_interval, totals_and_counts

# Minimum detectable changes and numbers of rows are for this chance of seeing what is there.
POWER = 0.80
_POWER_Z = NormalDist().inv_cdf(POWER)
# Nobody will label more rows than these.
MOST_ROWS = 10_000_000
_EXCHANGES = 4999
_EXCHANGES_AT_ONCE = 500


class Flips(Frozen):
    """Rows whose 0/1 score got worse, rows whose score got better, and the two-sided exact McNemar test of the two."""

    lost: int
    gained: int
    p_value: float


def flips(table: PairedTable) -> Flips:
    """The flips of a table in which 1 is good.

    McNemar 1947 ("Note on the sampling error of the difference between correlated proportions", Psychometrika 12:
    153-157), exact: where nothing changed, a row that differs is as likely to be lost as gained, so that the lost ones
    are binomial. 1 where no row differs.
    """
    lost, gained = round(table.lost), round(table.gained)
    return Flips(lost=lost, gained=gained, p_value=_mcnemar(lost, gained, "two-sided"))


def chance_of_loss_by_flips(table: PairedTable) -> float:
    """The one-sided p-value of that test: how often a table of as many differing rows shows as large a loss, or a
    larger one, where nothing changed.
    """
    return _mcnemar(round(table.lost), round(table.gained), "greater")


def _mcnemar(lost: int, gained: int, alternative: str) -> float:
    from scipy.stats import binomtest

    return 1.0 if lost + gained == 0 else float(binomtest(lost, lost + gained, 0.5, alternative=alternative).pvalue)


def shared_level(chance: float, others: Sequence[float]) -> float:
    """The level at which one test may reject where it and others together err with at most this `chance`.

    Bonferroni's share, among those tests only that are able to reject at it (Tarone 1990, "A modified Bonferroni method
    for discrete data", Biometrics 46: 515-522): of a number of rows that differ the least p-value is 0.5 to its power,
    and too few of them reject nothing, by chance or not. `others` holds those numbers, infinity for what is no McNemar
    test; the test itself always counts, which changes nothing where it cannot reject.
    """
    share = 1
    while 1 + sum(0.5**rows <= chance / share for rows in others) > share:
        share += 1
    return chance / share


def chance_of_loss_by_exchange(smaller: Sample, larger: Sample, *, seed: int) -> float:
    """The one-sided p-value of the mean of `larger` being above that of `smaller`, rows paired.

    Fisher's randomization test (1935, "The Design of Experiments", section 21), of which McNemar's is the case of 0/1
    scores: where nothing changed, either of a row's two results could have been the other's. The two are exchanged by
    a coin for each row, 4,999 times (seeded); counting the table itself as one of them makes the test exact (Phipson
    and Smyth 2010, "Permutation p-values should never be zero"). Raises ValueError for unequal numbers of rows.
    """
    import numpy as np

    if len(smaller) != len(larger):
        raise ValueError(f"paired samples must have the same items; these have {len(smaller)} and {len(larger)}")
    totals, counts = (np.stack(pair) for pair in zip(*map(totals_and_counts, (smaller, larger)), strict=True))
    sums, half_changes = totals.sum(axis=1).mean(), (totals[1] - totals[0]) / 2
    sizes, half_sizes = counts.sum(axis=1).mean(), (counts[1] - counts[0]) / 2
    generator, as_large = np.random.default_rng(seed), 1
    observed = totals[1].sum() / counts[1].sum() - totals[0].sum() / counts[0].sum()
    at_least = observed - 1e-12 * abs(observed)  # exchanges that only round differently are equal
    for start in range(0, _EXCHANGES, _EXCHANGES_AT_ONCE):
        shape = (min(_EXCHANGES_AT_ONCE, _EXCHANGES - start), len(smaller))
        signs = generator.integers(0, 2, shape) * 2.0 - 1.0
        moved, resized = signs @ half_changes, signs @ half_sizes
        with np.errstate(divide="ignore", invalid="ignore"):
            change = (sums + moved) / (sizes + resized) - (sums - moved) / (sizes - resized)
        as_large += int((change >= at_least).sum())
    return as_large / (_EXCHANGES + 1)


def minimum_detectable_drop_of_share(table: PairedTable) -> float:
    """The smallest true drop of a share that the one-sided 95 % McNemar test finds 80 times in 100, at this number of
    rows and with as many rows differing as here.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design" (Biometrics 43:
    207-211): n = ((z_95 sqrt(psi) + z_80 sqrt(psi - d^2)) / d)^2 for a drop d with a share psi of rows that differ,
    solved for d. A drop needs at least as many differing rows as itself; where fewer were seen psi is d, and the drop
    6.2 / n. (No row that differs excludes more than 3 / n of them, the rule of three, and that is less.) A verdict of
    `fail` asks for more than this: see `export.compare`.
    """
    n, share = table.pairs, (table.lost + table.gained) / table.pairs
    inner = max(0.0, n + _POWER_Z**2 - BOUND_Z**2)
    root = (BOUND_Z * math.sqrt(n) + _POWER_Z * math.sqrt(inner)) / (n + _POWER_Z**2)
    return min(1.0, root * max(math.sqrt(share), root))


def minimum_detectable_drop_of_mean(error: float) -> float:
    """The smallest true change of a mean that a one-sided 95 % test finds 80 times in 100: (1.645 + 0.842) errors."""
    return (BOUND_Z + _POWER_Z) * error


def rule_of_three(n: int) -> float:
    """The share that none of `n` excludes at one-sided 95 %: the p at which (1 - p)^n is 0.05, about 3 / n.

    It is also the share at which at least one of n is seen 95 times in 100. (Hanley and Lippman-Hand 1983, "If nothing
    goes wrong, is everything all right?", JAMA 249: 1743-1745.)
    """
    return float(1 - 0.05 ** (1 / n))


class Outlook(NamedTuple):
    """Where four of five sets of some number of rows will have a loss and the ends of its interval.

    `loss` is what the loss seen will not exceed, `favourable` and `unfavourable` what the interval's ends will not fall
    below and not exceed; `certain` says whether a loss will be told from chance.
    """

    loss: float
    favourable: float
    unfavourable: float
    certain: bool


def outlook_of_share(table: PairedTable, level: float) -> Callable[[float], Outlook]:
    """What to expect of a number of rows with the same shares as in `table`, in which 1 is good.

    The interval is that of the scaled table, moved by the 0.842 standard errors within which the loss of four of five
    sets lies on either side; the test of `level` by Connor's formula (see `minimum_detectable_drop_of_share`).
    """
    loss, share = (table.lost - table.gained) / table.pairs, (table.lost + table.gained) / table.pairs
    spread = _POWER_Z * math.sqrt(max(0.0, share - loss**2))
    needed = ((_z(level) * math.sqrt(share) + spread) / loss) ** 2 if loss > 0 else math.inf

    def outlook(rows: float) -> Outlook:
        low, high = paired_proportion_interval(table.scaled(rows))
        moved = spread / math.sqrt(rows)
        return Outlook(loss + moved, -high - moved, -low + moved, certain=rows >= needed)

    return outlook


def outlook_of_mean(
    loss: float, favourable: float, unfavourable: float, rows: int, *, error: float, level: float | None
) -> Callable[[float], Outlook]:
    """The same for a loss with this interval and standard error at `rows` rows: each side shrinks with their root.

    `level` is None for a loss that needs not be told from chance.
    """
    needed = 0.0 if level is None else (_z(level) + _POWER_Z) * error

    def outlook(more_rows: float) -> Outlook:
        narrower = math.sqrt(rows / more_rows)
        moved, down, up = (part * narrower for part in (_POWER_Z * error, loss - favourable, unfavourable - loss))
        return Outlook(loss + moved, loss - down - moved, loss + up + moved, certain=loss >= needed * narrower)

    return outlook


def _z(level: float) -> float:
    return NormalDist().inv_cdf(1 - level)


def rows_needed(decides: Callable[[float], bool], rows: int, most: int = MOST_ROWS) -> int | None:
    """The least number of rows, more than `rows`, that decides; None where `most` do not.

    By doubling, then bisection: what some rows decide, more rows decide too.
    """
    undecided, count = rows, rows + 1
    while not decides(count):
        if count >= most:
            return None
        undecided, count = count, min(2 * count, most)
    while count - undecided > 1:
        middle = (undecided + count) // 2
        undecided, count = (undecided, middle) if decides(middle) else (middle, count)
    return count
