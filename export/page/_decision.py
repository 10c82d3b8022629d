"""The verdict in sentences: what it is about, and what decided it.

Only words are made here. The verdicts themselves are `export.gate`'s and `export.compare`'s.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from export.compare import Comparison, Verdict
from export.identity import Finding
from export.report import Report, files_of, held_out_rows, judged_of, reference_of, scored_tokens
from export.wording.sentences import Units, comparison_sentence, finding_sentence, share_of_limit, units_of
from export.wording.training import not_learned
from export.wording.values import about, check_name

# More reasons than these say nothing that the tables below do not say.
_REASONS = 4
_NAMED = 3


class Decision(NamedTuple):
    """The verdict, a sentence on what it means, what was judged, and the findings or checks that decided it.

    `training` says where fine-tuning itself is not seen to have helped; None otherwise.
    """

    verdict: Verdict
    sentence: str
    about: str
    reasons: tuple[str, ...]
    more: int
    training: str | None


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
        training=not_learned(report),
    )


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
    return {
        "merged": "the merged model",
        "adapter": "the adapter",
        "trained": "the model as it was trained",
    }.get(name, name)


def _reference_words(reference: str) -> str:
    return "the merged 16-bit model" if reference == "merged" else f"the reference {reference}"


def _listed(names: Sequence[str]) -> str:
    """Names as a list in a sentence; of more than six, the first ones and how many more."""
    shown = list(names) if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "nothing"
