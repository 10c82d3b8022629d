"""The before/after table that a person reads in the terminal, as narrow as its numbers allow."""

import math
from collections.abc import Mapping, Sequence

from export.checks import Measurement
from export.report import Report
from export.wording.values import all_alike, with_reach


def table(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The before/after table: its headings, and one row per subject, each value with its standard error."""
    by_subject: dict[str, dict[str, Measurement]] = {}
    for m in report.measurements:
        by_subject.setdefault(m.subject, {})[m.check] = m
    columns = [column for column in _COLUMNS if any(column[1] in checks for checks in by_subject.values())]
    rows = []
    for subject in report.subjects:
        checks = by_subject.get(subject.name, {})
        cells = [_cell(checks.get(check), scale) for _, check, scale in columns]
        verdict = subject.verdict or "-"
        rows.append((subject.name, *cells, verdict))
    headings = ("\nsubject", *(heading for heading, _, _ in columns), "\nverdict")
    return headings, rows


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
