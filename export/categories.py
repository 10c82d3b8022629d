"""Task scores by what a row is about: an exam's subjects, the kinds of a request. Told with intervals, never judged.

A few rows of each kind say little by themselves; the verdict is that of all rows together (`export.compare`).
"""

from collections.abc import Sequence

from export import sampling
from export.checks import Items, Measurement
from export.compare import NONE_LOST
from export.frozen import Frozen
from export.measure import Measured


class CategoryScore(Frozen):
    """One subject's score on the rows of one category: a share, and its 90 % Wilson interval."""

    check: str
    subject: str
    category: str
    value: float
    low: float
    high: float
    n: int


def by_category(measured: Measured) -> tuple[CategoryScore, ...]:
    """Every score of right and wrong answers on each category, in the order in which the rows name them.

    Rows without a category make one of no name. None where the rows are all of one.
    """
    categories = tuple(dict.fromkeys(item.category for item in measured.items.items))
    if len(categories) < 2:
        return ()
    scores = [m for m in measured.all() if _is_right_or_wrong(m, measured.items)]
    return tuple(_score(m, measured.items, category) for m in scores for category in categories)


def _is_right_or_wrong(measured: Measurement, items: Items) -> bool:
    return (
        measured.judged
        and measured.unit == "share"
        and measured.check not in NONE_LOST
        and len(measured.sample) == len(items.items)
        and all(len(row) == 1 and row[0] in (0.0, 1.0) for row in measured.sample)
    )


def _score(measured: Measurement, items: Items, category: str) -> CategoryScore:
    rows: Sequence[float] = [
        row[0] for row, item in zip(measured.sample, items.items, strict=True) if item.category == category
    ]
    share = sum(rows) / len(rows)
    low, high = sampling.wilson_interval(share, len(rows))
    return CategoryScore(
        check=measured.check, subject=measured.subject, category=category, value=share, low=low, high=high, n=len(rows)
    )
