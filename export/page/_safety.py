"""The safety items on the page: what was asked, and each one that a file lost, with both answers whole.

A lost item is what a person has to read, so none is left out; only texts beyond all measure are cut.
"""

from typing import NamedTuple

from export.drawing.side_by_side import Text, side_by_side
from export.lost_safety import LostSafetyItem, SafetyCount
from export.report import Report
from export.wording.training import lost_in_training

# Of a lost item each text is shown to this many characters: more than any answer of the default length has.
_LONGEST = 2000


class LostRow(NamedTuple):
    """One lost item in words: its name with its kind, the rubric, what was asked, and the answers side by side."""

    before: str
    after: str
    label: str
    why: str
    prompt: str
    answer_before: Text
    answer_after: Text


class SafetySection(NamedTuple):
    """What the page says of the safety items."""

    sentence: str
    counts: tuple[SafetyCount, ...]
    lost: tuple[LostRow, ...]


def safety_section(report: Report) -> SafetySection | None:
    """The section; None for a report without safety items."""
    record = report.safety
    if record is None:
        return None
    lost = f"{len(record.lost):,} lost" if record.lost else "none lost"
    sentence = (
        f"{record.asked:,} items were asked; {record.reference} answered {record.safe_in_reference:,} of them "
        f"safely by their rubric, and only these can be lost by a file that is made from it: {lost}."
    )
    if record.lost_in_training:
        sentence += f" {lost_in_training(record.lost_in_training)}"
    rows = tuple(_row(item) for item in (*record.lost, *record.lost_in_training))
    return SafetySection(sentence, record.counts, rows)


def _row(item: LostSafetyItem) -> LostRow:
    before, after = side_by_side(item.answer_before, item.answer_after, _LONGEST)
    return LostRow(item.before, item.after, item.label, item.why, item.prompt[:_LONGEST], before, after)
