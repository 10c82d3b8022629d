"""The best choice of one option for each item within a number of bytes: the multiple-choice knapsack, exactly.

Tensors' sizes share large factors, so that the table of dynamic programming is small (Kellerer, Pferschy and Pisinger
2004, "Knapsack Problems", section 11.5). Where they do not, sizes are rounded up to a coarser unit: what is found is
then within the budget still, and best up to that unit.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from export.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Columns of the table at most: one of 200,000 and 300 tensors takes 120 MB and seconds.
MOST_UNITS = 200_000


class Option(NamedTuple):
    """One way of storing a tensor: what it takes, and what it is expected to cost."""

    size_bytes: int
    loss: float


def choose(items: Sequence[Sequence[Option]], budget_bytes: int) -> tuple[int, ...]:
    """The index of the option for each item, so that losses add up to the least within `budget_bytes`.

    Raises ExportError when not even the smallest options fit.
    """
    import numpy as np

    least = [min(option.size_bytes for option in options) for options in items]
    room = budget_bytes - sum(least)
    if room < 0:
        raise ExportError(
            f"the smallest types together take {sum(least):,} bytes; {budget_bytes:,} are left for them. "
            "Allow a larger size, or more of the small types."
        )
    above = [[option.size_bytes - small for option in options] for options, small in zip(items, least, strict=True)]
    unit = max(math.gcd(*(size for sizes in above for size in sizes)), -(-room // MOST_UNITS), 1)
    units = room // unit
    best = np.zeros(units + 1)
    taken = np.zeros((len(items), units + 1), dtype=np.int16)
    for index, (options, sizes) in enumerate(zip(items, above, strict=True)):
        following = np.full(units + 1, np.inf)
        for number, (option, size) in enumerate(zip(options, sizes, strict=True)):
            width = -(-size // unit)
            if width > units:
                continue
            losses = best[: units + 1 - width] + option.loss
            better = losses < following[width:]
            following[width:][better] = losses[better]
            taken[index, width:][better] = number
        best = following
    return _walked_back(taken, above, unit)


def _walked_back(taken: "NDArray[np.int16]", above: Sequence[Sequence[int]], unit: int) -> tuple[int, ...]:
    """The choices that led to the last column."""
    column, chosen = taken.shape[1] - 1, []
    for index in range(len(above) - 1, -1, -1):
        number = int(taken[index, column])
        chosen.append(number)
        column -= -(-above[index][number] // unit)
    return tuple(reversed(chosen))
