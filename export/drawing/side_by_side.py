"""Two texts beside one another, what differs between them marked in each, cut so that the difference stays in view."""

import difflib
import re
from typing import Literal, NamedTuple

# An answer with more differing passages than these is marked as different from end to end.
_MOST_PASSAGES = 24
# Words, white space, and anything else character by character, so that Chinese is compared as finely as it is written.
_PIECES = re.compile(r"[A-Za-z0-9_]+|\s+|.", re.DOTALL)

Kind = Literal["same", "differs"]


class Passage(NamedTuple):
    """A stretch of a text, and whether the other text has it too."""

    kind: Kind
    text: str


class Text(NamedTuple):
    """A text as it is shown, and how many characters of it were left out before and behind."""

    passages: tuple[Passage, ...]
    left_out_before: int = 0
    left_out_behind: int = 0


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
