"""The figures of a soak: shares and means with their intervals, and how fast memory grew."""

from collections.abc import Callable, Sequence
from typing import Any

from export.checks import read_json, same_json
from export.rehearsal.results import AgainstMerged, Growth, Mean, Share
from export.rehearsal.soaking import Asked
from export.sampling import interval, paired_proportion_interval, paired_table, wilson_interval
from export.verdict import Verdict

# Resident memory moves in steps while caches fill: the beginning is left out, and the rest is cut into blocks. In a
# short soak a few pages are megabytes an hour: it is not judged.
_WARM_UP_SHARE = 0.2
LEAST_SECONDS_TO_JUDGE = 300.0
_BLOCKS = 20
_LEAST_BLOCKS = 5
_TOLERATED_SHARE_PER_HOUR = 0.01


def share(flags: Sequence[bool]) -> Share:
    """How many of some flags are set, with the share's interval."""
    count = sum(flags)
    return Share(count=count, n=len(flags), interval=wilson_interval(count / len(flags), len(flags)))


def share_by_row(flags: Sequence[tuple[int, bool]]) -> Share:
    """The same over rows, each of which has as many flags as it was asked: of a row all must be set.

    A row that is asked again gives its answer again: counted by answers, the interval would tell of nothing new.
    """
    rows: dict[int, bool] = {}
    for row, flag in flags:
        rows[row] = rows.get(row, True) and flag
    return share(tuple(rows.values()))


def mean_by_row(asked: Sequence[Asked], value: Callable[[dict[str, Any]], float | None]) -> Mean | None:
    """The mean of what `value` reads off answers, rows being the units; None where it reads nothing off any."""
    found: dict[int, list[float]] = {}
    for one in asked:
        if (number := value(one.answer)) is not None:
            found.setdefault(one.row, []).append(number)
    if not found:
        return None
    sample = tuple(tuple(row) for row in found.values())
    numbers = [number for row in sample for number in row]
    return Mean(
        value=sum(numbers) / len(numbers),
        interval=interval(sample, "mean", seed=0) if len(sample) > 1 else None,
        largest=max(numbers),
        rows=len(sample),
        answers=len(numbers),
    )


def first_token_seconds(answer: dict[str, Any]) -> float | None:
    """From the command to the first token of its answer."""
    seconds: float | None = answer.get("first_token_seconds")
    return seconds


def tokens_per_second(answer: dict[str, Any]) -> float | None:
    """Of the tokens behind the first one; None for an answer without any."""
    tokens, seconds = answer.get("tokens", 0), answer.get("decode_seconds", 0.0)
    return tokens / seconds if tokens and seconds > 0 else None


def is_right(said: str | None, expected: str) -> bool:
    """Whether an answer is the expected one: as JSON whatever the order of keys, else as text."""
    if said is None:
        return False
    gold, answer = read_json(expected), read_json(said)
    if gold.has_value:
        return answer.has_value and same_json(gold.value, answer.value, "ordered")
    return said.strip() == expected.strip()


def against_merged(right: Sequence[bool], merged: Sequence[bool]) -> AgainstMerged:
    """The bundle's right answers beside the merged model's, row by row."""
    table = paired_table([float(r) for r in merged], [float(r) for r in right])
    return AgainstMerged(
        rows=len(right),
        right=sum(right),
        merged_right=sum(merged),
        difference=(sum(right) - sum(merged)) / len(right),
        interval=paired_proportion_interval(table),
    )


def growth(times: Sequence[float], resident_bytes: Sequence[int], limit_bytes: int) -> Growth | None:
    """How fast resident memory grew from the end of the warm-up to the end of the soak.

    Its interval is Student's, at 90 %, over the rates of 20 parts of equal time: of memory that wanders they are
    independent of each other, and about a level they even each other out, so that the interval is wider than it need
    be. A single step up tells of no growth that goes on. It passes when the upper end is within one hundredth of the
    limit an hour, and fails when the lower end is beyond it. A soak of less than five minutes is not judged. None where
    there are too few answers for five parts.
    """
    import numpy as np
    from scipy import stats

    first = int(len(times) * _WARM_UP_SHARE)
    hours, held = np.asarray(times[first:]) / 3600, np.asarray(resident_bytes[first:], dtype=float)
    if len(hours) <= _LEAST_BLOCKS:
        return None
    ends = np.unique(np.searchsorted(hours, np.linspace(hours[0], hours[-1], _BLOCKS + 1)))
    blocks = len(ends) - 1
    if blocks < _LEAST_BLOCKS:
        return None
    rates = np.diff(held[ends]) / np.diff(hours[ends])
    grown = float((held[-1] - held[0]) / (hours[-1] - hours[0]))
    reach = float(stats.t.ppf(0.95, blocks - 1) * stats.sem(rates))
    tolerated = limit_bytes * _TOLERATED_SHARE_PER_HOUR
    low, high = grown - reach, grown + reach
    return Growth(
        bytes_per_hour=grown,
        interval=(low, high),
        tolerated_bytes_per_hour=tolerated,
        blocks=blocks,
        seconds=times[-1] - times[first],
        verdict=_judged(low, high, tolerated) if times[-1] >= LEAST_SECONDS_TO_JUDGE else None,
    )


def _judged(low: float, high: float, tolerated: float) -> Verdict:
    if low <= tolerated < high:
        return "cannot tell"
    return "pass" if high <= tolerated else "fail"
