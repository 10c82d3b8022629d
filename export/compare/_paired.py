"""A check that two subjects both have, paired row by row: its change, what may be chance of it, and its verdict."""

import math
from typing import Any, NamedTuple

from export import sampling, significance
from export.checks import Measurement
from export.compare._comparison import LEAST_ROWS, Comparison, finite_interval, judged, why_no_interval
from export.limits import Limits
from export.sampling import PairedTable
from export.verdict import Case, decide_where_none_may_be_lost

# Checks whose score per row is 1 (good) or 0, and of which no row may be lost: a lost one is never a `pass`.
NONE_LOST = frozenset({"stops", "ends_without_loop", "no_template_leak", "finite", "valid_format", "safety"})
# Those of which one lost row fails, because no row may be bad by chance; of the others chance has to be ruled out.
NO_CHANCE = frozenset({"finite", "safety"})
_MOST_ROWS_FORETOLD = 10_000  # beyond which the number of rows that a limit needs is not looked for


class Change(NamedTuple):
    """A check that two subjects both have. `table` counts the rows of 0/1 scores, with 1 for a good one."""

    before: Measurement
    after: Measurement
    ratio: bool
    delta: float
    interval: tuple[float, float]
    error: float | None
    table: PairedTable | None


def change_between(before: Measurement, after: Measurement, seed: int) -> Change:
    """The change of one check, paired row by row. Raises ValueError when it has other rows before than after."""
    ratio = before.check.startswith("perplexity")
    delta = after.value / before.value if ratio else after.value - before.value
    error = sampling.paired_error(before.sample, after.sample, after.statistic, ratio=ratio)
    if not (_is_binary(before) and _is_binary(after)):
        interval = sampling.paired_interval(before.sample, after.sample, after.statistic, ratio=ratio, seed=seed)
        return Change(before, after, ratio, delta, interval, error, None)
    table = sampling.paired_table([b[0] for b in before.sample], [a[0] for a in after.sample])
    interval = sampling.paired_proportion_interval(table)
    if not after.higher_is_better:
        table = PairedTable(table.neither, table.gained, table.lost, table.both)
    return Change(before, after, ratio, delta, interval, error, table)


def rows_that_differ(change: Change) -> float:
    """How many rows of 0/1 scores differ; of anything else any number may."""
    return math.inf if change.table is None else change.table.lost + change.table.gained


def is_judged(measured: Measurement) -> bool:
    """Whether limits are asked of a check: of perplexity, and of the shares that are not there to explain another."""
    return measured.judged and (measured.check == "perplexity" or measured.unit == "share")


def paired_comparison(change: Change, limits: Limits | None, *, level: float, seed: int) -> Comparison:
    """A check that both subjects have, paired row by row; a loss is told from chance at `level`."""
    before, after = change.before, change.after
    scale = change.delta if change.ratio else 1.0
    compared = Comparison(
        check=before.check,
        before=before.subject,
        after=after.subject,
        delta=change.delta,
        scale="ratio" if change.ratio else "difference",
        interval=finite_interval(change.interval),
        limit=None,
        bound_limit=None,
        n=after.n,
        verdict=None,
        stderr=None if change.error is None else change.error * scale,
        flips=None if change.table is None else significance.flips(change.table),
        minimum_detectable_drop=_detectable(change),
        note=why_no_interval(change.delta, change.interval),
    )
    if limits is None or not is_judged(after):
        return compared
    if before.check in NONE_LOST:
        return compared.model_copy(update=_none_lost(before, after, None if before.check in NO_CHANCE else level))
    limit, bound_limit = _task_or_ratio_limit(before.check, limits)
    return judged(compared, _case(change, limit, bound_limit, level=level, seed=seed), limit, bound_limit)


def _none_lost(before: Measurement, after: Measurement, level: float | None) -> dict[str, Any]:
    """The verdict on rows of which none may be lost: no interval decides, they are counted (from 1, in their order)."""
    pairs = [(b[0], a[0]) for b, a in zip(before.sample, after.sample, strict=True)]
    lost = [row for row, (b, a) in enumerate(pairs, start=1) if not a >= b]  # so that what is not a number is lost
    gained = sum(a > b for b, a in pairs)
    if level is None and not any(b > 0 for b, _ in pairs):
        # a pass would say that something was kept
        note = f"none of the {len(pairs):,} rows is right in {before.subject}: nothing could be lost"
        return {"limit": 0.0, "verdict": "cannot tell", "note": note}
    decision = decide_where_none_may_be_lost(PairedTable(len(pairs) - len(lost) - gained, len(lost), gained, 0), level)
    names = [(after.labels[row - 1] if after.labels else "") or str(row) for row in lost[:5]]
    shown = "; ".join(names) if any(after.labels) else f"row {', '.join(names)}"
    shown += f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    found = f"{len(lost)} of {len(pairs)} rows lost ({shown}), {gained} gained" if lost else "no row lost"
    return {
        "limit": 0.0,
        "verdict": decision.verdict,
        "rows_needed": decision.rows_needed,
        "note": f"{found}; {decision.note}",
    }


def _case(change: Change, limit: float, bound_limit: float, *, level: float, seed: int) -> Case:
    """A paired change as a loss that a limit is asked of. A ratio's numbers are all taken as logarithms."""
    if change.table is not None:
        return case_of_share(change.table, limit, bound_limit, level=level)
    values = change.delta, *change.interval, limit, bound_limit
    delta, low, high, limit, bound_limit = map(_log, values) if change.ratio else values
    samples = change.before.sample, change.after.sample
    if change.after.higher_is_better:
        delta, low, high, samples = -delta, -high, -low, samples[::-1]
    # what is not a mean has no error, and is not told from chance
    error, rows = change.error or 0.0, len(change.after.sample)
    asked = level if change.error is not None else None
    outlook = significance.outlook_of_mean(delta, low, high, rows, error=error, level=asked)
    case = Case(delta, low, high, limit, bound_limit, rows, outlook, least_rows=LEAST_ROWS, level=level)
    if asked is None or low <= limit:
        return case
    return case._replace(chance=significance.chance_of_loss_by_exchange(*samples, seed=seed))


def case_of_share(table: PairedTable, limit: float, bound_limit: float, *, level: float) -> Case:
    """The drop of a share of which `limit` is asked, from the table of its pairs, in which 1 is good."""
    low, high = sampling.paired_proportion_interval(table)
    chance = significance.chance_of_loss_by_flips(table) if -high > limit else None
    loss, outlook = (table.lost - table.gained) / table.pairs, significance.outlook_of_share(table, level)
    return Case(loss, -high, -low, limit, bound_limit, round(table.pairs), outlook, chance=chance, level=level)


def too_few_rows(rows: int, limits: Limits) -> str | None:
    """Why a share of right answers on `rows` rows is not to be expected to pass; None when there are rows enough.

    Reckoned for what one hopes for: every answer is right before, and after. With half of them right and none changed
    the interval is narrower, and fewer rows do.
    """

    def bound(n: float) -> float:
        return -sampling.paired_proportion_interval(PairedTable(n, 0, 0, 0))[0]

    if bound(rows) <= limits.task_drop_bound:
        return None
    needed = significance.rows_needed(lambda n: bound(n) <= limits.task_drop_bound, rows, most=_MOST_ROWS_FORETOLD)
    return (
        f"{rows} held-out rows are few: were every answer right before and after, the one-sided 95 % bound of the "
        f"score's drop would still be {bound(rows) * 100:.3g} points, and {limits.task_drop_bound * 100:.3g} are "
        f"allowed. Expect 'cannot tell' at best below "
        f"{f'{_MOST_ROWS_FORETOLD:,} or more' if needed is None else f'{needed:,}'} rows."
    )


def _detectable(change: Change) -> float | None:
    """The minimum detectable drop of a paired change."""
    if change.before.check in NONE_LOST:
        return significance.rule_of_three(len(change.after.sample))
    if change.table is not None:
        return significance.minimum_detectable_drop_of_share(change.table)
    if not change.error:
        return None
    smallest = significance.minimum_detectable_drop_of_mean(change.error)
    return math.exp(smallest) - 1 if change.ratio else smallest


def _task_or_ratio_limit(check: str, limits: Limits) -> tuple[float, float]:
    """(largest change, largest bound) for a check: the perplexity ratio's limit, or that of a task score."""
    if check == "perplexity":
        return limits.perplexity_ratio, limits.perplexity_ratio
    return limits.task_drop, limits.task_drop_bound


def _is_binary(measured: Measurement) -> bool:
    return measured.statistic == "mean" and all(len(item) == 1 and item[0] in (0.0, 1.0) for item in measured.sample)


def _log(value: float) -> float:
    """The logarithm; of nothing minus infinity, and of what is not finite itself."""
    if not math.isfinite(value):
        return value
    return math.log(value) if value > 0 else -math.inf
