"""One check of one step, and what every kind of it is given alike: its limits with their verdict, and its notes."""

import math
from typing import Literal

from export.frozen import Frozen
from export.significance import Flips
from export.verdict import Case, Verdict, decide

# What a bootstrapped interval needs before it may pass anything. With rows as uneven as those of a real Qwen's KL (see
# `sampling.interval`), 10 rows pass an artifact of twice the limit in 2 of 100 sets and one of 1.5 times the limit in
# 6; 5 rows in 5 and 10, 3 rows in 13 and 21.
LEAST_ROWS = 10


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


def judged(compared: Comparison, case: Case, limit: float, bound_limit: float) -> Comparison:
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


def finite_interval(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """The interval, or None where there is none or an end is not finite: such an interval decides nothing."""
    return interval if interval is not None and all(math.isfinite(end) for end in interval) else None


def why_no_interval(value: float, interval: tuple[float, float] | None) -> str:
    """What a comparison notes in place of its interval; empty where it has one."""
    if not math.isfinite(value):
        return "the value is not finite"
    if interval is None:
        return "the largest of a sample has no interval that a bootstrap can give"
    return "" if finite_interval(interval) else "fewer than two rows give no interval"
