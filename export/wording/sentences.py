"""Findings and comparisons in sentences, and a change as a share of what was allowed.

Only words are made here. The verdicts themselves are `export.gate`'s and `export.compare`'s.
"""

import math
from typing import NamedTuple

from export.checks import Measurement
from export.compare import Comparison
from export.identity import Finding
from export.report import Report
from export.wording.values import about, change_text, check_name, counted, interval_text, limit_text


class Units(NamedTuple):
    """What the comparisons' checks are measured in, and in which direction they are better."""

    measured: dict[str, Measurement]

    def unit(self, comparison: Comparison) -> str:
        """The unit of the values that are compared."""
        found = self.measured.get(comparison.check)
        return found.unit if found else ""

    def higher_is_better(self, comparison: Comparison) -> bool:
        """Whether a drop is a loss."""
        found = self.measured.get(comparison.check)
        return found is not None and bool(found.higher_is_better)


def units_of(report: Report) -> Units:
    """The units of every check that was measured."""
    return Units({m.check: m for m in report.measurements})


def finding_sentence(finding: Finding) -> str:
    """A finding in words: what was found, and what should have been.

    What was found of a file that cannot be opened is an error, which says itself what was expected and what to do.
    """
    if finding.what == "file" and not finding.ok:
        return f"{finding.subject}: {finding.found}"
    note = f" ({finding.note})" if finding.note else ""
    return f"{finding.subject}: {finding.what}: found {finding.found}; expected {finding.expected}{note}."


def comparison_sentence(comparison: Comparison, units: Units, *, verdict: bool = False) -> str:
    """One comparison in words: subject, check, change, interval, limit, what it stands on, and how it ended.

    `verdict` says what it was held against and the verdict too, for a line that stands by itself.
    """
    name = check_name(comparison.check)
    subject = f"{comparison.after} against {comparison.before}" if verdict else comparison.after
    opening = f"{subject}: {name}: {comparison.verdict};" if verdict else f"{subject}: {name}"
    if comparison.limit == 0 and comparison.bound_limit is None and comparison.note:
        # rows of which none may be lost were counted, and the note says it all
        return f"{opening.removesuffix(';')}: {comparison.note}." + _would_settle(comparison)
    sentence = f"{opening} {change_words(comparison, units)}"
    if comparison.verdict != "pass":
        note = f" ({comparison.note})" if comparison.note else ""
        return f"{sentence}{note}." + _would_settle(comparison)
    share = share_of_limit(comparison, units)
    used = f" ({share * 100:.0f}\u00a0% of what is allowed)" if share is not None and share > 0 else ""
    return f"{sentence}{used}."


def change_words(comparison: Comparison, units: Units) -> str:
    """The change with its interval, what is allowed of it, and what it stands on."""
    unit = units.unit(comparison)
    parts = [change_text(comparison, unit)]
    if comparison.interval is not None:
        parts.append(f"90 % interval {interval_text(comparison, unit)}")
    limit = limit_text(comparison, unit, higher_is_better=units.higher_is_better(comparison))
    if limit:
        parts.append(f"allowed {limit}")
    flips = comparison.flips
    lost = "" if flips is None else f", {flips.lost:,} lost and {flips.gained:,} gained"
    return "; ".join([*parts, counted(comparison.check, comparison.n) + lost])


def _would_settle(comparison: Comparison) -> str:
    needed = comparison.rows_needed
    return "" if needed is None else f" {about(needed, comparison.check).capitalize()} would settle it."


def share_of_limit(comparison: Comparison, units: Units) -> float | None:
    """How much of what was allowed is used up: 1 at the limit, or with the interval's end at its bound.

    None where nothing is asked of the change, or where the limit is that nothing may be lost.
    """
    strip = strip_of(comparison, units)
    if strip is None:
        return None
    return max(strip.change / strip.limit if strip.limit else 0.0, strip.unfavourable)


class Strip(NamedTuple):
    """A change, its interval's ends and its limit, in shares of the largest loss allowed at the unfavourable end."""

    change: float
    favourable: float
    unfavourable: float
    limit: float


def strip_of(comparison: Comparison, units: Units) -> Strip | None:
    """The comparison as losses on one scale, on which the bound lies at 1; None where it cannot be drawn."""
    start = 1.0 if comparison.scale == "ratio" else 0.0
    if comparison.limit is None or comparison.interval is None:
        return None
    bound = (comparison.limit if comparison.bound_limit is None else comparison.bound_limit) - start
    sign = -1.0 if units.higher_is_better(comparison) else 1.0
    losses = [sign * (value - start) for value in (comparison.delta, *comparison.interval)]
    if bound <= 0 or not all(math.isfinite(loss) for loss in losses):
        return None
    change, *ends = (loss / bound for loss in losses)
    return Strip(change, min(ends), max(ends), (comparison.limit - start) / bound)
