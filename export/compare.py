"""From two subjects' measurements, paired row by row, to a verdict.

A verdict is one of three. `pass`: the change is inside the limit and so is the bound of its interval. `fail`: even the
favourable end of the interval is outside the limit, and that anything was lost at all is no chance. `cannot tell`: the
held-out rows are too few to decide. The limits are for what the step is allowed to cost; nothing is asked of a change
that has no limit. Every score between 0 and 1 is held to those of task scores, but for numbers that only tell more of
another (`Measurement.judged`). Where none may be lost, no row lost passes, and rows lost fail when chance does not
explain them.

What errors are left, from the simulations of tests/export/test_compare.py. An artifact that lost nothing is failed for
anything that a row may show by chance in at most 1 of 100 sets of rows, by construction (see `CHANCE`); the interval
alone would fail up to 4 for its task score, and one lost row as a failure 77 where a check has 300 rows of which 0.5 %
are lost and gained. A loss of 5 points on 500 rows, one task score and perplexity being judged and the rest unchanged,
fails in 95 of 100 or more while at most 1 point of the rows is lost and gained besides (7 % differ), in 88 at 2 points,
in 59 at 5; where stopping, loops, the template and the format have rows that differ too, 8 or more of each, in 92, 77
and 44. One safety item lost, or one row of predictions that are not finite, fails: there chance is no excuse.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from export import sampling, significance
from export.checks import Measurement
from export.frozen import Frozen
from export.limits import Gate as Gate
from export.limits import Limits as Limits
from export.sampling import PairedTable
from export.significance import Flips
from export.verdict import Case, decide, decide_where_none_may_be_lost
from export.verdict import Verdict as Verdict
from export.verdict import overall as overall

# Checks whose score per row is 1 (good) or 0, and of which no row may be lost: a lost one is never a `pass`.
NONE_LOST = frozenset({"stops", "ends_without_loop", "no_template_leak", "finite", "valid_format", "safety"})
# Those of which one lost row fails, because no row may be bad by chance; of the others chance has to be ruled out.
NO_CHANCE = frozenset({"finite", "safety"})
# The chance of failing an artifact that lost nothing, shared by all its paired checks but those of `NO_CHANCE` (see
# `significance.shared_level`). A 95 % bound alone errs more often: with a tenth of the rows flipping either way, 2 to 4
# in 100 fail on 50 to 500 rows.
CHANCE = 0.01
# How the model as training left it is called in a run: an adapter beside its base, or a model that was trained whole.
AS_TRAINED = ("adapter", "trained")
# What a bootstrapped interval needs before it may pass anything. With rows as uneven as those of a real Qwen's KL (see
# `sampling.interval`), 10 rows pass an artifact of twice the limit in 2 of 100 sets and one of 1.5 times the limit in
# 6; 5 rows in 5 and 10, 3 rows in 13 and 21. A bound of the 99th percentile needs a value beyond it: 299 values have
# one in 95 of 100 sets, since 0.99^299 = 0.05.
_LEAST_ROWS = 10
_LEAST_VALUES_OF_A_PERCENTILE_99 = 299
_MOST_ROWS_FORETOLD = 10_000  # beyond which the number of rows that a limit needs is not looked for


class Comparison(Frozen):
    """One check of one step: from `before` to `after`.

    `delta` is after minus before, or for perplexity after over before (`scale` says which). `interval` is two-sided at
    90 %, so that each end is a one-sided 95 % bound; `limit` is the largest change allowed, and `bound_limit` the
    largest allowed at the interval's unfavourable end. `interval` is None where there is none and `verdict` where no
    limit applies; `note` says why there is no interval, or that the change itself is not finite (which fails), or what
    keeps a verdict open.

    `stderr` is the standard error of `delta`: paired row by row, or a divergence's own, which is a change by itself;
    of a ratio that of its logarithm times the ratio (the delta method). None where none is known: for fewer than two
    rows, for what is not finite, and of paired changes for what is not a mean or a ratio of perplexities. It is 0 where
    no row differs, and says nothing then of rows not seen; the interval does.

    `flips` are those of 0/1 scores, None for anything else. `minimum_detectable_drop` is the smallest true loss that a
    one-sided 95 % test would see 80 times in 100 (`export.significance`), in the units of `delta` and never negative:
    of a ratio its distance from 1; of a divergence the distance from any value it is held against; of a check of
    which none may be lost the share of rows that would show at least one loss 95 times in 100. None for quantiles,
    and where there is no standard error. `rows_needed` is the number of rows at which four of five sets with the rates
    seen here would be decided, the other checks as they are; only a verdict that is open has one, and a `note` where no
    number would do.
    """

    check: str
    before: str
    after: str
    delta: float
    scale: Literal["difference", "ratio"]
    interval: tuple[float, float] | None
    limit: float | None
    bound_limit: float | None
    n: int
    verdict: Verdict | None
    stderr: float | None = None
    flips: Flips | None = None
    minimum_detectable_drop: float | None = None
    rows_needed: int | None = None
    note: str = ""


def compare(
    before: Sequence[Measurement],
    after: Sequence[Measurement],
    limits: Limits | None,
    *,
    names: tuple[str, str],
    seed: int,
) -> tuple[Comparison, ...]:
    """Compares every check that both subjects have, and the divergence, which only one of them can have.

    The divergence of a subject from the reference is itself the change, whichever of the two is the reference. Facts
    without a sample are not compared, and neither is speed: engines count its seconds differently. `names` are the two
    subjects', before and after; either may have no measurements. Raises ValueError when a check has other rows before
    than after.
    """
    earlier, later = ({m.check: m for m in subject} for subject in (before, after))
    one_sided = {
        name: m for side in (earlier, later) for name, m in side.items() if name.startswith(("kl_", "same_top"))
    }
    both = [name for name in later if name in earlier and name not in one_sided and name != "tokens_per_second"]
    paired = [name for name in both if later[name].sample]
    changes = {name: _change(earlier[name], later[name], seed) for name in paired}
    asked = {name: change for name, change in changes.items() if _is_judged(change.after)}
    by_chance = {name: _rows_that_differ(change) for name, change in asked.items() if name not in NO_CHANCE}
    done = []
    for name, change in changes.items():
        others = [rows for other, rows in by_chance.items() if other != name]
        done.append(_paired(change, limits, level=significance.shared_level(CHANCE, others), seed=seed))
    if limits is not None:
        done += [_from_reference(m, names, limits, seed) for m in one_sided.values()]
    return tuple(done)


def compare_steps(
    measured: Mapping[str, Sequence[Measurement]],
    gate: Gate | None,
    *,
    four_bit_base: bool,
    seed: int,
    bits: Mapping[str, float | None] | None = None,
) -> tuple[Comparison, ...]:
    """The steps of a run: what fine-tuning gained (nothing is asked of it), what merging and each export cost.

    Without a gate nothing is asked of any step.
    `measured` holds each subject's measurements by its name, `merged` among them. `four_bit_base`: the adapter was
    trained on, and observed beside, a base in 4 bits. `bits`, as in `compare_against`, of exports whose name promises
    none.
    """
    merged = measured["merged"]
    done: list[Comparison] = []
    if "base" in measured:
        done += compare(measured["base"], merged, None, names=("base", "merged"), seed=seed)
    for trained in AS_TRAINED:
        if trained in measured:
            limits = None if gate is None else gate.limits_for_merge(four_bit_base=four_bit_base)
            done += compare(measured[trained], merged, limits, names=(trained, "merged"), seed=seed)
    exports = {name: subject for name, subject in measured.items() if name not in ("base", *AS_TRAINED)}
    return (*done, *compare_against(exports, gate, "merged", bits or {}, seed=seed))


def compare_against(
    measured: Mapping[str, Sequence[Measurement]],
    gate: Gate | None,
    reference: str,
    bits: Mapping[str, float | None],
    *,
    seed: int,
) -> tuple[Comparison, ...]:
    """Every other subject of `measured` against the one named `reference`, whatever they are.

    Each is held to the limits of the bits that its name promises, or where it promises none to those of `bits`: bits
    per weight, measured or otherwise known, by the subject's name. Without either the limits are the strict ones.
    """
    return tuple(
        comparison
        for name, subject in measured.items()
        if name != reference
        for comparison in compare(
            measured[reference],
            subject,
            None if gate is None else gate.limits_for(name, bits.get(name)),
            names=(reference, name),
            seed=seed,
        )
    )


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


def worst_by_subject(comparisons: Sequence[Comparison]) -> Mapping[str, Verdict]:
    """Each judged subject's verdict: the worst of its checks."""
    judged: dict[str, list[Verdict]] = {}
    for comparison in comparisons:
        if comparison.verdict is not None:
            judged.setdefault(comparison.after, []).append(comparison.verdict)
    return {subject: overall(verdicts) for subject, verdicts in judged.items()}


class _Change(NamedTuple):
    """A check that two subjects both have. `table` counts the rows of 0/1 scores, with 1 for a good one."""

    before: Measurement
    after: Measurement
    ratio: bool
    delta: float
    interval: tuple[float, float]
    error: float | None
    table: PairedTable | None


def _change(before: Measurement, after: Measurement, seed: int) -> _Change:
    ratio = before.check.startswith("perplexity")
    delta = after.value / before.value if ratio else after.value - before.value
    error = sampling.paired_error(before.sample, after.sample, after.statistic, ratio=ratio)
    if not (_is_binary(before) and _is_binary(after)):
        interval = sampling.paired_interval(before.sample, after.sample, after.statistic, ratio=ratio, seed=seed)
        return _Change(before, after, ratio, delta, interval, error, None)
    table = sampling.paired_table([b[0] for b in before.sample], [a[0] for a in after.sample])
    interval = sampling.paired_proportion_interval(table)
    if not after.higher_is_better:
        table = PairedTable(table.neither, table.gained, table.lost, table.both)
    return _Change(before, after, ratio, delta, interval, error, table)


def _rows_that_differ(change: _Change) -> float:
    """How many rows of 0/1 scores differ; of anything else any number may."""
    return math.inf if change.table is None else change.table.lost + change.table.gained


def _paired(change: _Change, limits: Limits | None, *, level: float, seed: int) -> Comparison:
    """A check that both subjects have, paired row by row; a loss is told from chance at `level`."""
    before, after = change.before, change.after
    scale = change.delta if change.ratio else 1.0
    compared = Comparison(
        check=before.check,
        before=before.subject,
        after=after.subject,
        delta=change.delta,
        scale="ratio" if change.ratio else "difference",
        interval=_finite(change.interval),
        limit=None,
        bound_limit=None,
        n=after.n,
        verdict=None,
        stderr=None if change.error is None else change.error * scale,
        flips=None if change.table is None else significance.flips(change.table),
        minimum_detectable_drop=_detectable(change),
        note=_why_no_interval(change.delta, change.interval),
    )
    if limits is None or not _is_judged(after):
        return compared
    if before.check in NONE_LOST:
        return compared.model_copy(update=_none_lost(before, after, None if before.check in NO_CHANCE else level))
    limit, bound_limit = _task_or_ratio_limit(before.check, limits)
    return _judged(compared, _case(change, limit, bound_limit, level=level, seed=seed), limit, bound_limit)


def _none_lost(before: Measurement, after: Measurement, level: float | None) -> dict[str, Any]:
    """The verdict on rows of which none may be lost: no interval decides, they are counted (from 1, in their order)."""
    pairs = [(b[0], a[0]) for b, a in zip(before.sample, after.sample, strict=True)]
    lost = [row for row, (b, a) in enumerate(pairs, start=1) if not a >= b]  # so that what is not a number is lost
    gained = sum(a > b for b, a in pairs)
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


def _case(change: _Change, limit: float, bound_limit: float, *, level: float, seed: int) -> Case:
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
    case = Case(delta, low, high, limit, bound_limit, rows, outlook, least_rows=_LEAST_ROWS, level=level)
    if asked is None or low <= limit:
        return case
    return case._replace(chance=significance.chance_of_loss_by_exchange(*samples, seed=seed))


def case_of_share(table: PairedTable, limit: float, bound_limit: float, *, level: float) -> Case:
    """The drop of a share of which `limit` is asked, from the table of its pairs, in which 1 is good."""
    low, high = sampling.paired_proportion_interval(table)
    chance = significance.chance_of_loss_by_flips(table) if -high > limit else None
    loss, outlook = (table.lost - table.gained) / table.pairs, significance.outlook_of_share(table, level)
    return Case(loss, -high, -low, limit, bound_limit, round(table.pairs), outlook, chance=chance, level=level)


def _detectable(change: _Change) -> float | None:
    """The minimum detectable drop of a paired change."""
    if change.before.check in NONE_LOST:
        return significance.rule_of_three(len(change.after.sample))
    if change.table is not None:
        return significance.minimum_detectable_drop_of_share(change.table)
    if not change.error:
        return None
    smallest = significance.minimum_detectable_drop_of_mean(change.error)
    return math.exp(smallest) - 1 if change.ratio else smallest


def _from_reference(measured: Measurement, names: tuple[str, str], limits: Limits, seed: int) -> Comparison:
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
        interval=_finite(interval),
        limit=allowed,
        bound_limit=allowed,
        n=measured.n,
        verdict=None,
        stderr=measured.stderr,
        minimum_detectable_drop=_detectable_divergence(measured),
        note=_why_no_interval(measured.value, interval),
    )
    if interval is None or allowed is None:
        return compared
    return _judged(compared, _case_of_divergence(measured, start, interval, allowed), allowed, allowed)


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
    least = _LEAST_ROWS
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


def _judged(compared: Comparison, case: Case, limit: float, bound_limit: float) -> Comparison:
    """The same comparison with its limits and the verdict on its case."""
    decision = decide(case)
    return compared.model_copy(
        update={
            "limit": limit,
            "bound_limit": bound_limit,
            "verdict": decision.verdict,
            "rows_needed": decision.rows_needed,
            "note": "; ".join(part for part in (compared.note, decision.note) if part),
        }
    )


def _log(value: float) -> float:
    """The logarithm; of nothing minus infinity, and of what is not finite itself."""
    if not math.isfinite(value):
        return value
    return math.log(value) if value > 0 else -math.inf


def _finite(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return interval if interval is not None and all(math.isfinite(end) for end in interval) else None


def _why_no_interval(value: float, interval: tuple[float, float] | None) -> str:
    if not math.isfinite(value):
        return "the value is not finite"
    if interval is None:
        return "the largest of a sample has no interval that a bootstrap can give"
    return "" if _finite(interval) else "fewer than two rows give no interval"


def _is_binary(measured: Measurement) -> bool:
    return measured.statistic == "mean" and all(len(item) == 1 and item[0] in (0.0, 1.0) for item in measured.sample)


def _is_judged(measured: Measurement) -> bool:
    """Whether limits are asked of a check: of perplexity, and of the shares that are not there to explain another."""
    return measured.judged and (measured.check == "perplexity" or measured.unit == "share")


def _task_or_ratio_limit(check: str, limits: Limits) -> tuple[float, float]:
    """(largest change, largest bound) for a check: the perplexity ratio's limit, or that of a task score."""
    if check == "perplexity":
        return limits.perplexity_ratio, limits.perplexity_ratio
    return limits.task_drop, limits.task_drop_bound
