"""The before/after table that a person reads in the terminal, as narrow as its numbers allow."""

import math
from collections.abc import Iterable, Mapping, Sequence

from export.check_names import of_companion, read_name
from export.checks import Measurement
from export.report import Report, reference_of
from export.wording.values import all_alike, check_name, interval_of_share, main_score, with_reach


def table(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The before/after table: its headings, and one row per subject, each value with its standard error."""
    by_subject: dict[str, dict[str, Measurement]] = {}
    for m in report.measurements:
        by_subject.setdefault(m.subject, {})[m.check] = m
    columns = [column for column in _COLUMNS if any(column[1] in checks for checks in by_subject.values())]
    columns += _companion_columns(dict.fromkeys(m.check for m in report.measurements))
    rows = []
    for subject in report.subjects:
        checks = by_subject.get(subject.name, {})
        cells = [_cell(checks.get(check), scale) for _, check, scale in columns]
        verdict = subject.verdict or "-"
        rows.append((subject.name, *cells, verdict))
    headings = ("\nsubject", *(heading for heading, _, _ in columns), "\nverdict")
    return headings, rows


def _companion_columns(checks: Iterable[str]) -> list[tuple[str, str, str]]:
    """Of each set beside the held-out rows the perplexity, and the score that stands for all its task scores."""
    sets: dict[str, list[str]] = {}
    for companion, check in map(read_name, checks):
        if companion:
            sets.setdefault(companion, []).append(check)
    known = {check: (heading, scale) for heading, check, scale in _COLUMNS}
    return [
        (f"{companion}:\n{' '.join(known[check][0].split())}", of_companion(companion, check), known[check][1])
        for companion, found in sets.items()
        for check in (main_score(found), "perplexity")
        if check in found and check in known
    ]


def category_lines(report: Report) -> list[str]:
    """The reference's and the base's main score on each category, in a line each; none without categories."""
    main = main_score({score.check for score in report.by_category})
    shown = [name for name in ("base", reference_of(report)) if any(s.subject == name for s in report.by_category)]
    rows: dict[str, list[str]] = {}
    for name in shown:
        for score in report.by_category:
            if (score.check, score.subject) == (main, name):
                said = f"{name} {score.value * 100:.1f} ({interval_of_share(score.low, score.high)})"
                rows.setdefault(f"{score.category or '(none)'}, {score.n:,} rows", []).append(said)
    if main is None or not rows:
        return []
    heading = f"{check_name(main)} by category, % (90 % Wilson interval); of every subject in the report:"
    return [heading, *(f"  {category}: {', '.join(said)}" for category, said in rows.items())]


# heading, check, and how a value of its unit is written
_COLUMNS: Sequence[tuple[str, str, str]] = (
    ("exact\nmatch %", "exact_match", "percent"),
    ("right\nlabel %", "label_accuracy", "percent"),
    ("by likeli-\nhood %", "label_likelihood", "percent"),
    ("right\nnumber %", "number_match", "percent"),
    ("all fields\nright %", "fields_match", "percent"),
    ("right\nspan %", "span_match", "percent"),
    ("F1 of\nspan %", "span_f1", "percent"),
    ("\nROUGE-L %", "rouge_l", "percent"),
    ("\nstops %", "stops", "percent"),
    ("\nperplexity", "perplexity", "number"),
    ("\nmean KL", "kl_mean", "small"),
    ("same top\ntoken %", "same_top_token", "percent"),
    ("size\nMB", "size_bytes", "megabytes"),
    ("memory\nMB", "peak_memory_bytes", "megabytes"),
    ("\ntokens/s", "tokens_per_second", "speed"),
)


def _cell(measured: Measurement | None, scale: str) -> str:
    if measured is None or measured.n == 0:
        return "-"
    if not math.isfinite(measured.value):
        return "not finite"
    if all_alike(measured):
        return with_reach(measured)
    factor, digits = _SCALES[scale]
    if scale == "percent" and measured.stderr:  # an error that is there is never written as none
        digits = max(digits, -math.floor(math.log10(measured.stderr * factor)))
    value = measured.value * factor
    # what would be written as nothing but zeros is written with its exponent
    form = f",.{0 if value >= 1000 else digits}f" if value == 0 or value >= 10**-digits * 10 else ".1e"
    text = f"{value:{form}}"
    return text if measured.stderr is None else f"{text}±{measured.stderr * factor:{form}}"


_SCALES: Mapping[str, tuple[float, int]] = {
    "percent": (100, 1),
    "number": (1, 3),
    "small": (1, 4),
    "megabytes": (1e-6, 1),
    "speed": (1, 1),
}
