"""The report in about a dozen lines of plain text, for the data stage's end."""

from collections.abc import Iterator

from finetune.data.account import Clause, DataReport
from finetune.data.report._words import (
    DROPS,
    OVERLAPS,
    PERSONAL,
    SPLITS,
    clause_verdict,
    overlap_words,
    share_of,
    verdict,
)
from finetune.data.shown import in_one_line

_MOST_CLAUSES = 3
_EXAMPLE, _REMEDY, _NAME, _LICENCES, _LINE = 100, 160, 60, 120, 300


def lines(report: DataReport) -> list[str]:
    """What became of the rows, how they were read, each broken clause with its remedy, overlaps, personal data."""
    broken = report.broken
    found = [_account(report), _reading(report), _contract(report)]
    for clause in broken[:_MOST_CLAUSES]:
        found += _broken(clause)
    if len(broken) > _MOST_CLAUSES:
        found.append(f"  and {len(broken) - _MOST_CLAUSES} more broken clauses: see report.html")
    return [*found, _overlaps(report), _personal(report)]


def _account(report: DataReport) -> str:
    dropped = ", ".join(f"{DROPS[reason].short} {count:,}" for reason, count in report.dropped.items() if count)
    left_out = f", {report.sampled_out:,} left out by data.rows" if report.sampled_out else ""
    parts = [f"{SPLITS[split]} {counts.rows:,}" for split, counts in report.splits.items()]
    parts += [f"not drawn {report.not_drawn:,}"] if report.not_drawn else []
    went = f"; {', '.join(parts)}" if parts else ""
    return f"rows: {report.read:,} read, {report.kept:,} kept (dropped: {dropped or 'none'}{left_out}){went}"


def _reading(report: DataReport) -> str:
    """What was detected: template, encoding, licence."""
    chosen = in_one_line(report.template_chosen_by, _NAME)
    parts = [f"template {in_one_line(report.template, _NAME)}" + (f" (chosen by {chosen})" if chosen else "")]
    parts += [f"encoding {in_one_line(', '.join(report.encodings), _NAME)}"] if report.encodings else []
    licences = [f"{of} {licence}" for of, licence in report.licences]
    parts += [f"licences: {in_one_line(', '.join(licences), _LICENCES)}" if licences else "no licence stated"]
    return f"read as: {'; '.join(parts)}"


def _contract(report: DataReport) -> str:
    return f"{verdict(report).sentence.removesuffix('.')} (counts over all rows, not estimates)"


def _broken(clause: Clause) -> Iterator[str]:
    """Two lines: what was found with an example, and what to do."""
    example = f"; e.g. {in_one_line(clause.examples[0], _EXAMPLE)}" if clause.examples else ""
    yield f"  broken: {clause_verdict(clause).sentence}{example}".replace("\u00a0", " ")
    if clause.remedy:
        yield f"    do: {in_one_line(clause.remedy, _REMEDY)}"


def _overlaps(report: DataReport) -> str:
    parts = [
        f"{overlap_words(each)}: {OVERLAPS[each.kind]} {share_of(each.rows, each.n)}"
        for each in report.overlaps
        if each.rows
    ]
    looked_for = "none found" if report.overlaps else "not looked for"
    return in_one_line(f"overlaps: {'; '.join(parts) or looked_for}", _LINE)


def _personal(report: DataReport) -> str:
    parts = [f"{PERSONAL[each.kind]} in {each.rows:,} rows" for each in report.personal if each.rows]
    if not parts:
        return "personal data: none found"
    state = "masked" if report.masked else "left as it is; data.mask_personal replaces it"
    return f"personal data: {', '.join(parts)} ({state})"
