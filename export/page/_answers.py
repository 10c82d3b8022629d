"""The rows on which a file strayed furthest, beside the reference's answer, with the differences marked.

Texts are cut so that the page stays small whatever the rows are; where an answer is cut, its first difference is kept
in view.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from export.drawing.side_by_side import Passage, Text, side_by_side
from export.page.details import Details
from export.report import Report, files_of, reference_of
from export.wording.values import NOT_FINITE, main_score, plain

ROWS_PER_FILE = 8
# So many of them at most are shown for their changed answer alone.
_CHANGED = 6
# All texts of the page together, and any one of them.
_CHARACTERS = 120_000
_LONGEST = 800
_SHORTEST = 120


class WorstRow(NamedTuple):
    """A row on which a file strayed far: its number (from 1), its divergence in words, and the texts side by side.

    `answer` is None where the file gave the reference's very answer. `scores` says how the reference's answer and the
    file's were counted by the task score; empty where none was measured, or not of every row.
    """

    number: int
    divergence: str
    prompt: Text
    expected: Text
    reference: Text
    answer: Text | None
    scores: tuple[str, str] | None


class WorstRows(NamedTuple):
    """A file's worst rows, and how many of all its answers differ from the reference's."""

    subject: str
    rows: tuple[WorstRow, ...]
    differing: int
    of: int


def worst_rows(report: Report, details: Details) -> tuple[WorstRows, ...]:
    """For each file that was observed beside the reference, the rows worth reading.

    First those whose answer changed, the lost ones before the others; then those with the largest mean divergence per
    token. Without divergences only the former.
    """
    reference = details.answers.get(reference_of(report))
    files = [name for name in files_of(report) if name in details.answers]
    if reference is None or not files:
        return ()
    texts = len(files) * ROWS_PER_FILE * 4
    characters = max(_SHORTEST, min(_LONGEST, _CHARACTERS // texts))
    counted_by = main_score({m.check for m in report.measurements if m.n})
    scores = {
        m.subject: m.sample for m in report.measurements if m.check == counted_by and len(m.sample) == len(reference)
    }

    def row(name: str, index: int) -> WorstRow:
        theirs, own = reference[index], details.answers[name][index]
        shown_reference, shown_answer = side_by_side(theirs, own, characters)
        return WorstRow(
            number=index + 1,
            divergence=_divergence(details, name, index),
            prompt=_cut_middle(details.rows[index].prompt, characters),
            expected=_cut(details.rows[index].expected, characters),
            reference=shown_reference,
            answer=None if theirs == own else shown_answer,
            scores=_scores(scores.get(reference_of(report), ()), scores.get(name, ()), index),
        )

    def order(name: str) -> list[int]:
        before, after = scores.get(reference_of(report), ()), scores.get(name, ())
        lost = [bool(b and a and b[0] > a[0]) for b, a in zip(before, after, strict=True)] if before and after else []
        return _order(details, name, reference, lost or [False] * len(reference), details.divergences.get(name, ()))

    return tuple(
        WorstRows(
            subject=name,
            rows=tuple(row(name, index) for index in order(name)),
            differing=sum(a != b for a, b in zip(reference, details.answers[name], strict=True)),
            of=len(reference),
        )
        for name in files
    )


def _order(
    details: Details, name: str, reference: Sequence[str], lost: Sequence[bool], divergences: Sequence[Sequence[float]]
) -> list[int]:
    """The indexes of the rows to show, the worst first."""
    rows = range(len(reference))
    means = [_mean(divergences[index]) if divergences else 0.0 for index in rows]
    changed = [index for index in rows if details.answers[name][index] != reference[index]]
    changed.sort(key=lambda index: (not lost[index], -means[index]))
    if not divergences:
        return changed[:ROWS_PER_FILE]
    strayed = sorted(rows, key=lambda index: -means[index])
    return list(dict.fromkeys([*changed[:_CHANGED], *strayed]))[:ROWS_PER_FILE]


def _mean(values: Sequence[float]) -> float:
    """The mean; infinite where a value is not finite, and below everything for a row without scored tokens."""
    if not values:
        return -math.inf
    mean = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.inf
    return mean if math.isfinite(mean) else math.inf


def _divergence(details: Details, name: str, index: int) -> str:
    values = details.divergences.get(name, ())
    if not values or not values[index]:
        return ""
    mean = _mean(values[index])
    if not math.isfinite(mean):
        return f"KL {NOT_FINITE}"
    largest = max(values[index])
    return f"mean KL {plain(mean)}, largest {plain(largest)} nats over {len(values[index]):,} tokens"


def _scores(
    reference: Sequence[Sequence[float]], answer: Sequence[Sequence[float]], index: int
) -> tuple[str, str] | None:
    if len(reference) <= index or len(answer) <= index:
        return None
    return _counted(reference[index][0]), _counted(answer[index][0])


def _counted(score: float) -> str:
    if score in (0.0, 1.0):
        return "counted right" if score else "counted wrong"
    return f"scored {score * 100:.0f} %"


def _cut(text: str, characters: int) -> Text:
    return Text((Passage("same", text[:characters]),), 0, max(0, len(text) - characters))


def _cut_middle(text: str, characters: int) -> Text:
    """A prompt's beginning and, mostly, its end, where the question stands."""
    if len(text) <= characters:
        return Text((Passage("same", text),))
    head = characters // 4
    tail = characters - head
    left_out = len(text) - characters
    return Text((Passage("same", f"{text[:head]} … ({left_out:,} characters left out) … {text[-tail:]}"),))
