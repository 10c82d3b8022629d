"""The page's tables of what was measured and compared, as rows of text beside the exact numbers."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from export.checks import Measurement
from export.compare import AS_TRAINED, Comparison, Verdict, overall
from export.page._charts import limit_strip
from export.report import Report, SubjectRecord, files_of, measured_of, reference_of
from export.wording.sentences import Units, strip_of, units_of
from export.wording.values import (
    NOT_MEASURED,
    about,
    change_text,
    check_name,
    counted,
    in_column_order,
    interval_text,
    limit_text,
    of_behaviour,
    plain,
    unit_of,
    value_text,
)

_BETTER = {True: "↑", False: "↓", None: ""}
_DIVERGENCE_COLUMNS = ("kl_mean", "kl_median", "kl_percentile_99", "kl_max", "same_top_token")


class Column(NamedTuple):
    """A check in a table: its name, its unit with an arrow to the better, and what it stands on if always the same."""

    check: str
    name: str
    unit: str
    counted: str


class Cell(NamedTuple):
    """A value as text and, exactly, for a machine; `counted` only where it differs from the column's."""

    text: str
    exact: str
    counted: str


class SubjectRow(NamedTuple):
    """One subject's row: its name, what it is, its values and its verdict."""

    name: str
    role: str
    cells: tuple[Cell, ...]
    verdict: Verdict | None


class Table(NamedTuple):
    """Columns, rows and the notes that belong to their numbers."""

    columns: tuple[Column, ...]
    rows: tuple[SubjectRow, ...]
    notes: tuple[str, ...]


class CheckRow(NamedTuple):
    """One comparison as a row of text; `strip` is its chart, and empty where nothing is asked of it."""

    check: str
    change: str
    exact: str
    interval: str
    limit: str
    strip: str
    counted: str
    verdict: Verdict | None
    note: str


class Step(NamedTuple):
    """All comparisons of one subject with what it is held against."""

    before: str
    after: str
    verdict: Verdict | None
    rows: tuple[CheckRow, ...]


def subject_table(report: Report) -> Table:
    """Every subject's measurements: base, model as trained and merged model first, then the files."""
    checks = in_column_order(list(dict.fromkeys(m.check for m in report.measurements)))
    return _table(report, checks, from_base_to_files(report.subjects))


def behaviour_table(report: Report) -> Table:
    """Every subject's answers: the shares that stop, do not loop, and so on."""
    checks = of_behaviour(list(dict.fromkeys(m.check for m in report.measurements)))
    return _table(report, checks, from_base_to_files(report.subjects))


def divergence_table(report: Report) -> Table:
    """The files' divergences from the reference in more detail."""
    measured = {m.check for m in report.measurements}
    checks = [check for check in _DIVERGENCE_COLUMNS if check in measured]
    files = files_of(report)
    return _table(report, checks, [s for s in report.subjects if s.name in files])


def _table(report: Report, checks: Sequence[str], subjects: Sequence[SubjectRecord]) -> Table:
    measured = measured_of(report)
    columns = tuple(_column(check, [m for m in report.measurements if m.check == check]) for check in checks)
    rows = [
        SubjectRow(
            name=subject.name,
            role=_role(subject, report),
            cells=tuple(_cell(measured.get((subject.name, column.check)), column) for column in columns),
            verdict=subject.verdict,
        )
        for subject in subjects
    ]
    return Table(columns, tuple(rows), _notes([m for m in report.measurements if m.check in checks]))


def _column(check: str, found: Sequence[Measurement]) -> Column:
    stands_on = {counted(check, m.n) for m in found if m.n}
    return Column(
        check=check,
        name=check_name(check),
        unit=f"{unit_of(found[0].unit).shown} {_BETTER[found[0].higher_is_better]}".strip(),
        counted=stands_on.pop() if len(stands_on) == 1 else "",
    )


def _cell(measured: Measurement | None, column: Column) -> Cell:
    if measured is None or measured.n == 0:
        return Cell(NOT_MEASURED, "", "")
    exact = repr(measured.value) if math.isfinite(measured.value) else ""
    stands_on = counted(measured.check, measured.n)
    return Cell(value_text(measured), exact, "" if stands_on == column.counted else stands_on)


def _notes(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """What must be known about the numbers, each said once, with the subjects that it is about."""
    about: dict[tuple[str, str], list[str]] = {}
    for m in measurements:
        if m.note:
            about.setdefault((m.check, m.note), []).append(m.subject)
    everyone = {m.check: [n.subject for n in measurements if n.check == m.check] for m in measurements}
    notes = []
    for (check, note), subjects in about.items():
        whose = "" if subjects == everyone[check] else f" ({', '.join(subjects)})"
        notes.append(f"{check_name(check)}{whose}: {note}.")
    return tuple(note[0].upper() + note[1:] for note in notes)


def from_base_to_files(subjects: Sequence[SubjectRecord]) -> list[SubjectRecord]:
    """The order in which they were made; the report's own order has the reference first."""
    first = {"base": 0, **dict.fromkeys(AS_TRAINED, 1), "merged": 2}
    if not subjects or subjects[0].name != "merged":
        return list(subjects)
    return sorted(subjects, key=lambda subject: first.get(subject.name, 3))


def _role(subject: SubjectRecord, report: Report) -> str:
    """What a subject is, in a few words."""
    is_run = reference_of(report) == "merged"
    if is_run and subject.name in ("base", *AS_TRAINED, "merged"):
        whole = any(other.name == "trained" for other in report.subjects)
        return {
            "base": "before fine-tuning",
            "adapter": "the base with the adapter beside it",
            "trained": "all weights as they were trained (full fine-tuning)",
            "merged": f"{'the trained weights in 16 bits' if whole else 'the adapter merged in'}: the reference",
        }[subject.name]
    kind = "GGUF file" if subject.engine == "llama_cpp" else "model folder"
    if subject.engine == "hf" and any(name.startswith("int") for name in subject.tensor_types):
        kind = "GPTQ folder"
    return f"{kind}: the reference" if subject.name == reference_of(report) else kind


def steps(report: Report) -> tuple[Step, ...]:
    """The comparisons, grouped by what was compared with what, in the report's order."""
    units = units_of(report)
    groups = groupby(report.comparisons, key=lambda c: (c.before, c.after))
    found = []
    for index, ((before, after), group) in enumerate(groups):
        comparisons = list(group)
        verdicts = [c.verdict for c in comparisons if c.verdict is not None]
        # what nothing is asked of stands in the table of divergences
        shown = [c for c in comparisons if c.verdict is not None] if verdicts else comparisons
        rows = [_check_row(c, units, f"strip-{index}-{number}") for number, c in enumerate(shown)]
        found.append(Step(before, after, overall(verdicts) if verdicts else None, _joined(rows)))
    return tuple(found)


def _joined(rows: Sequence[CheckRow]) -> tuple[CheckRow, ...]:
    """The rows, with those that say the same of several checks made one."""
    names: dict[CheckRow, list[str]] = {}
    for row in rows:
        names.setdefault(row._replace(check=""), []).append(row.check)
    return tuple(row._replace(check=", ".join(checks)) for row, checks in names.items())


def _check_row(comparison: Comparison, units: Units, identity: str) -> CheckRow:
    unit = units.unit(comparison)
    strip = strip_of(comparison, units)
    name = check_name(comparison.check)
    return CheckRow(
        check=name,
        change=change_text(comparison, unit),
        exact=repr(comparison.delta) if math.isfinite(comparison.delta) else "",
        interval=interval_text(comparison, unit),
        limit=limit_text(comparison, unit, higher_is_better=units.higher_is_better(comparison)),
        strip="" if strip is None else str(limit_strip(identity, strip, f"{comparison.after}: {name}")),
        counted=counted(comparison.check, comparison.n),
        verdict=comparison.verdict,
        note="; ".join(part for part in (*_power(comparison, unit), comparison.note) if part),
    )


def _power(comparison: Comparison, unit: str) -> list[str]:
    """What differed row by row, what these rows could have shown, and how many would settle what they could not."""
    said = []
    if comparison.flips is not None and comparison.limit != 0:
        flips = comparison.flips
        said.append(f"{flips.lost:,} rows lost, {flips.gained:,} gained (exact McNemar p = {plain(flips.p_value)})")
    if comparison.minimum_detectable_drop is not None and comparison.verdict is not None:
        said.append(_detectable(comparison, comparison.minimum_detectable_drop, unit))
    if comparison.rows_needed is not None:
        said.append(f"{about(comparison.rows_needed)} would settle it")
    return said


def _detectable(comparison: Comparison, smallest: float, unit: str) -> str:
    shown = unit_of(unit)
    if comparison.scale == "ratio":
        return f"a ratio of ×{1 + smallest:.7g} would show"
    if comparison.limit == 0 and comparison.bound_limit is None:
        return f"one loss in {1 / smallest:,.0f} rows would show" if smallest > 0 else ""
    what = "drop" if unit == "share" else "change"
    size = f"{smallest * shown.factor:.2g} points" if unit == "share" else f"{plain(smallest)} {shown.shown}"
    return f"a {what} of {size} would show"
