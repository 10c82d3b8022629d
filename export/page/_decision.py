"""The verdict in sentences: what it is about, and what decided it.

Only words are made here. The verdicts themselves are `export.gate`'s and `export.compare`'s.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from export._finding import Finding
from export.checks._base import Measurement
from export.compare import Comparison, Verdict
from export.page._wording import about, change_text, check_name, counted, interval_text, limit_text
from export.report import Report, held_out_rows, scored_tokens

# More reasons than these say nothing that the tables below do not say.
_REASONS = 4
_NAMED = 3


class Decision(NamedTuple):
    """The verdict, a sentence on what it means, what was judged, and the findings or checks that decided it."""

    verdict: Verdict
    sentence: str
    about: str
    reasons: tuple[str, ...]
    more: int


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
        return found is not None and found.higher_is_better


def units_of(report: Report) -> Units:
    """The units of every check that was measured."""
    return Units({m.check: m for m in report.measurements})


def reference_of(report: Report) -> str:
    """The subject that the others were held against: the first one."""
    return report.subjects[0].name if report.subjects else "the reference"


def judged_of(report: Report) -> tuple[str, ...]:
    """The subjects that have a verdict."""
    return tuple(subject.name for subject in report.subjects if subject.verdict is not None)


def files_of(report: Report) -> tuple[str, ...]:
    """The subjects that ship: whatever was judged, but for the reference."""
    return tuple(subject.name for subject in report.subjects[1:] if subject.verdict is not None)


def decide(report: Report) -> Decision:
    """The report's verdict in words."""
    units = units_of(report)
    broken = [finding for finding in report.findings if not finding.ok]
    decisive = _decisive(report, units)
    reasons = [finding_sentence(finding) for finding in broken]
    reasons += [comparison_sentence(c, units) for c in decisive]
    return Decision(
        verdict=report.verdict,
        sentence=_sentence(report, broken, decisive),
        about=_about(report),
        reasons=tuple(reasons[:_REASONS]),
        more=max(0, len(reasons) - _REASONS),
    )


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


def comparison_sentence(comparison: Comparison, units: Units) -> str:
    """One comparison in words: subject, check, change, interval, limit, what it stands on, and how it ended."""
    unit = units.unit(comparison)
    parts = [f"{comparison.after}: {check_name(comparison.check)} {change_text(comparison, unit)}"]
    if comparison.interval is not None:
        parts.append(f"90 % interval {interval_text(comparison, unit)}")
    limit = limit_text(comparison, unit, higher_is_better=units.higher_is_better(comparison))
    if limit:
        parts.append(f"allowed {limit}")
    parts.append(counted(comparison.check, comparison.n))
    sentence = "; ".join(parts)
    if comparison.verdict != "pass":
        note = f" ({comparison.note})" if comparison.note else ""
        needed = comparison.rows_needed
        return f"{sentence}{note}." + (f" {about(needed).capitalize()} would settle it." if needed is not None else "")
    share = share_of_limit(comparison, units)
    used = f" ({share * 100:.0f}\u00a0% of what is allowed)" if share is not None and share > 0 else ""
    return f"{sentence}{used}."


def _decisive(report: Report, units: Units) -> list[Comparison]:
    """The comparisons that decided, those that weigh most first; of a pass, the one nearest to its limit."""
    of_verdict = [c for c in report.comparisons if c.verdict == report.verdict]
    if report.verdict == "cannot tell":
        return sorted(of_verdict, key=lambda c: -(c.rows_needed or 0))
    shares = [(math.inf if (share := share_of_limit(c, units)) is None else share, c) for c in of_verdict]
    if report.verdict == "fail":
        return [c for _, c in sorted(shares, key=lambda pair: -pair[0])]
    near = [pair for pair in shares if math.isfinite(pair[0])]
    return [max(near, key=lambda pair: pair[0])[1]] if near else []


def finding_sentence(finding: Finding) -> str:
    """A finding in words: what was found, and what should have been."""
    note = f" ({finding.note})" if finding.note else ""
    return f"{finding.subject}: {finding.what}: found {finding.found}; expected {finding.expected}{note}."


def _sentence(report: Report, broken: Sequence[Finding], decisive: Sequence[Comparison]) -> str:
    judged, reference = judged_of(report), reference_of(report)
    if not judged:
        return "Nothing was judged: no check that was asked for has a limit."
    if report.verdict == "pass":
        return _passed(report, judged, reference)
    failed = tuple(dict.fromkeys([f.subject for f in broken] + [c.after for c in decisive]))
    if report.verdict == "fail":
        who = _listed(failed) if len(failed) <= _NAMED else f"{len(failed)} of {len(judged)} judged models"
        return f"{who} must not ship. {_why(broken, decisive)}".strip()
    if not decisive:
        unsure = tuple(s.name for s in report.subjects if s.verdict == "cannot tell")
        return f"{_listed(unsure)} could not be judged: no check that was asked for decides."
    rows = [c.rows_needed for c in decisive]
    known = [count for count in rows if count is not None]
    settle = f" {about(max(known)).capitalize()} would settle it." if known and len(known) == len(rows) else ""
    stood_on = held_out_rows(report)
    rows_there_are = f"The {stood_on:,} held-out rows" if stood_on is not None else "The held-out rows"
    return f"{rows_there_are} are too few to judge {_listed(failed)}.{settle}"


def _passed(report: Report, judged: Sequence[str], reference: str) -> str:
    """Which subjects stay within what they may lose, and against what."""
    files = [name for name in judged if name in files_of(report)]
    steps = sorted({(c.before, c.after) for c in report.comparisons if c.verdict and c.after == reference})
    parts: list[str] = []
    if files:
        who = f"{files[0]} stays within what it" if len(files) == 1 else f"All {len(files)} files stay within what they"
        parts.append(f"{who} may lose against {_reference_words(reference)}")
    parts += [f"{_the(after)} stays within what it may lose against {_the(before)}" for before, after in steps]
    return ", and ".join(parts) + "."


def _why(broken: Sequence[Finding], decisive: Sequence[Comparison]) -> str:
    """What was found and what was lost, by name."""
    kinds = {
        "Not as expected": dict.fromkeys(finding.what for finding in broken),
        "More lost than allowed": dict.fromkeys(check_name(comparison.check) for comparison in decisive),
    }
    return " ".join(f"{kind}: {_listed(tuple(names))}." for kind, names in kinds.items() if names)


def _about(report: Report) -> str:
    judged, reference = judged_of(report), reference_of(report)
    rows, tokens = held_out_rows(report), scored_tokens(report)
    counts = [f"{rows:,} held-out rows" if rows is not None else "", f"{tokens:,} scored tokens" if tokens else ""]
    on = " and ".join(count for count in counts if count)
    checks = sum(c.verdict is not None for c in report.comparisons)
    identity = f"{len(report.findings)} checks of identity, " if report.findings else ""
    what = f"Judged: {_listed(judged)}" if judged else "Judged: nothing"
    rows_and_tokens = f" on {on}" if on else ""
    return f"{what}; against {_reference_words(reference)}, by {identity}{checks} comparisons{rows_and_tokens}."


def _the(name: str) -> str:
    return {"merged": "the merged model", "adapter": "the adapter"}.get(name, name)


def _reference_words(reference: str) -> str:
    return "the merged 16-bit model" if reference == "merged" else f"the reference {reference}"


def _listed(names: Sequence[str]) -> str:
    """Names as a list in a sentence; of more than six, the first ones and how many more."""
    shown = list(names) if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "nothing"
