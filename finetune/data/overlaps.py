"""Which kept rows are near copies of one another, and what the held-out rows share with the training rows.

The search itself is `finetune.data.duplicates`; here rows become texts, and indexes the names of rows. A row is a near
copy of another when the whole of it is, or its question alone: the same question with another answer gives it away.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

from export.chat import Conversation
from finetune.data.account import Overlap, OverlapKind, SplitName
from finetune.data.belonging import prompt_key
from finetune.data.duplicates import near_copies, near_copies_among, shared_ngrams
from finetune.data.intake import Intake
from finetune.data.survey import EXAMPLES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NearCopies = Literal["together", "counted", "ignored"]
Links = Sequence[tuple[int, int]]
_Words = Callable[[Conversation], str]
# In fewer bytes of UTF-8 one word or number more is another question, though little else is in it.
_QUESTION_BYTES = 32
# A search takes seconds from about here.
_SAY_FROM_ROWS = 20_000


class Copies(NamedTuple):
    """What a search among the kept rows found; `links` join each copy with a row that it resembles."""

    searched: bool
    rows: int
    examples: tuple[str, ...]
    links: Links


def copies_in(intake: Intake, wanted: NearCopies, say: Callable[[str], None]) -> Copies:
    """Rows of which the whole or the question is a near copy of an earlier row's."""
    if wanted == "ignored":
        return Copies(searched=False, rows=0, examples=(), links=())
    if intake.kept >= _SAY_FROM_ROWS:
        say(f"data: looking for near copies among {intake.kept:,} rows (data.near_copies: ignored leaves it out)")
    rows = range(intake.kept)
    links = [pair for words in _views(intake) for pair in _pairs(near_copies(_texts(intake, words)), rows)]
    first = dict(reversed(links))
    examples = tuple(f"{row} / {other}" for row, other in _named(intake, sorted(first.items())[:EXAMPLES]))
    return Copies(searched=True, rows=len(first), examples=examples, links=links)


def near_rows_apart(intake: Intake, splits: dict[SplitName, list[int]]) -> list[tuple[int, int]]:
    """Rows that are near copies of a row in another split, each with such a row.

    The links of `copies_in` lead from every copy to one row only: two may resemble a third that they do not name.
    """
    found: list[tuple[int, int]] = []
    for first, second in combinations(splits, 2):
        found += _near(intake, splits[first], splits[second])
    return found


def overlaps_between(
    intake: Intake, held_out: Sequence[int], train: Sequence[int], *, near_searched: bool
) -> tuple[Overlap, ...]:
    """What the held-out rows share with the training rows, from which calibration rows are drawn too."""
    found: list[tuple[OverlapKind, Links]] = [("exact", _same_question(intake, held_out, train))]
    if near_searched:
        found.append(("near", _near(intake, held_out, train)))
    words, _ = _views(intake)
    matches = shared_ngrams(_texts(intake, words, held_out), _texts(intake, words, train))
    found.append(("ngram", [(row, train[other]) for row, other in _pairs(matches, held_out)]))
    return tuple(
        Overlap(
            kind=kind,
            of="held-out",
            among="train",
            rows=len(pairs),
            n=len(held_out),
            examples=tuple(_named(intake, pairs[:EXAMPLES])),
        )
        for kind, pairs in found
    )


def resembling(rows: Sequence[Conversation], of: Sequence[Conversation]) -> frozenset[int]:
    """Places in `rows` that ask what one `of` another set asks, or are near copies of one: across two data sets."""
    questions = {prompt_key(row) for row in of}
    found = {place for place, row in enumerate(rows) if prompt_key(row) in questions}
    for words in (_spoken_words, _spoken_question):
        texts = [
            [_text(row, words, f"{name} {place}") for place, row in enumerate(part)]
            for name, part in (("rows", rows), ("of", of))
        ]
        found |= {place for place, match in enumerate(near_copies_among(*texts).tolist()) if match >= 0}
    return frozenset(found)


def _near(intake: Intake, rows: Sequence[int], of: Sequence[int]) -> list[tuple[int, int]]:
    """Each of `rows` that is a near copy of one in `of`, with it."""
    found: dict[int, int] = {}
    for words in _views(intake):
        matches = near_copies_among(_texts(intake, words, rows), _texts(intake, words, of))
        found |= {row: of[other] for row, other in _pairs(matches, rows)}
    return sorted(found.items())


def _same_question(intake: Intake, held_out: Sequence[int], train: Sequence[int]) -> list[tuple[int, int]]:
    """Held-out rows that ask what a training row asks; the split is made so that there are none."""
    questions = intake.belonging.questions
    of_train = {questions[index]: index for index in train}
    return [(row, of_train[key]) for row in held_out if (key := questions[row]) in of_train]


def _pairs(matches: "NDArray[np.int64]", rows: Sequence[int]) -> list[tuple[int, int]]:
    return [(rows[place], int(match)) for place, match in enumerate(matches.tolist()) if match >= 0]


def _views(intake: Intake) -> tuple[_Words, ...]:
    """What of a row is compared: the whole, and the question alone; with system messages where they vary."""
    if intake.belonging.systems_vary:
        return (_all_words, _all_of_question)
    return (_spoken_words, _spoken_question)


def _texts(intake: Intake, words: _Words, indexes: Sequence[int] | None = None) -> Iterator[str]:
    """The words of all kept rows, or of those at ascending `indexes`."""
    wanted = None if indexes is None else set(indexes)
    for index, conversation in enumerate(intake.conversations()):
        if wanted is None or index in wanted:
            yield _text(conversation, words, str(index))


def _text(conversation: Conversation, words: _Words, name: str) -> str:
    """The words of a row; of a short question what resembles none, made of the row's name."""
    text = words(conversation)
    is_short = words in (_all_of_question, _spoken_question) and len(text.encode()) < _QUESTION_BYTES
    return hashlib.sha256(name.encode()).hexdigest() if is_short else text


def _all_words(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.messages)


def _spoken_words(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.messages if message.role != "system")


def _all_of_question(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.prompt)


def _spoken_question(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.prompt if message.role != "system")


def _named(intake: Intake, pairs: Links) -> list[tuple[str, str]]:
    """Pairs of rows by where they were read, each with the beginning of its words."""
    wanted = {index for pair in pairs for index in pair}
    names = {
        index: f"{line.origin}: {_spoken_words(line.conversation)[:120]!r}"
        for index, line in enumerate(intake.lines())
        if index in wanted
    }
    return [(names[row], names[other]) for row, other in pairs]
