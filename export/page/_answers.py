"""The rows on which a file strayed furthest, beside the reference's answer, with the differences marked.

Texts are cut so that the page stays small whatever the rows are; where an answer is cut, its first difference is kept
in view.
"""

import difflib
import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from export.page.details import Details
from export.report import Report, files_of, reference_of
from export.wording.values import NOT_FINITE, plain

ROWS_PER_FILE = 8
# So many of them at most are shown for their changed answer alone.
_CHANGED = 6
# All texts of the page together, and any one of them.
_CHARACTERS = 120_000
_LONGEST = 800
_SHORTEST = 120
# An answer with more differing passages than these is marked as different from end to end.
_MOST_PASSAGES = 24
# Words, white space, and anything else character by character, so that Chinese is compared as finely as it is written.
_PIECES = re.compile(r"[A-Za-z0-9_]+|\s+|.", re.DOTALL)

Kind = Literal["same", "differs"]


class Passage(NamedTuple):
    """A stretch of an answer, and whether the other answer has it too."""

    kind: Kind
    text: str


class Text(NamedTuple):
    """A text as it is shown, and how many characters of it were left out before and behind."""

    passages: tuple[Passage, ...]
    left_out_before: int = 0
    left_out_behind: int = 0


class WorstRow(NamedTuple):
    """A row on which a file strayed far: its number (from 1), its divergence in words, and the texts side by side.

    `answer` is None where the file gave the reference's very answer. `scores` says how the reference's answer and the
    file's were counted by exact match; empty where that was not measured.
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
    scores = {m.subject: m.sample for m in report.measurements if m.check == "exact_match"}

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


def side_by_side(reference: str, answer: str, characters: int) -> tuple[Text, Text]:
    """Both answers cut to the same window around their first difference, with what differs marked in each."""
    first = next((i for i, (a, b) in enumerate(zip(reference, answer, strict=False)) if a != b), None)
    if first is None:
        first = min(len(reference), len(answer))
    start = max(0, first - characters // 2) if first > characters * 2 // 3 else 0
    first_marked, second_marked = _marked(reference[start : start + characters], answer[start : start + characters])
    return (
        Text(first_marked, start, max(0, len(reference) - start - characters)),
        Text(second_marked, start, max(0, len(answer) - start - characters)),
    )


def _marked(first: str, second: str) -> tuple[tuple[Passage, ...], tuple[Passage, ...]]:
    """The passages of each of two texts, those that the other lacks marked."""
    pieces = _PIECES.findall(first), _PIECES.findall(second)
    blocks = difflib.SequenceMatcher(None, *pieces, autojunk=False).get_opcodes()
    if len(blocks) > _MOST_PASSAGES:
        return (Passage("differs", first),), (Passage("differs", second),)
    left, right = [], []
    for operation, a, b, c, d in blocks:
        kind: Kind = "same" if operation == "equal" else "differs"
        left.append(Passage(kind, "".join(pieces[0][a:b])))
        right.append(Passage(kind, "".join(pieces[1][c:d])))
    return tuple(p for p in left if p.text), tuple(p for p in right if p.text)


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
    words = ["counted right" if sample[index][0] else "counted wrong" for sample in (reference, answer)]
    return words[0], words[1]


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
