"""What becomes of each row: kept and put down on disk, or dropped for a reason that is counted.

Rows pass one at a time: of a kept row only its lengths, a few hashes and a line in a file remain, so that millions fit
in little memory. The file is read again to split it (`finetune.data.preparation`).
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from export.chat import Conversation, Encoded, encode
from export.errors import DataError
from export.frozen import Frozen
from finetune.data.account import DropReason
from finetune.data.belonging import Belonging
from finetune.data.personal import mask_personal
from finetune.data.sources import Row
from finetune.data.survey import Survey
from finetune.data.template import RowMapper

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Broken rows are collected before they are told of, so that they can be mended in one go; many tell no more than these.
_BROKEN_SHOWN = 10
# Where nothing has fitted the template so far, it is the template and not the rows.
_BROKEN_AND_NOTHING_ELSE = 50


class Taken(NamedTuple):
    """A conversation that is said for the first time, where it was read, and what its words are known by."""

    conversation: Conversation
    origin: str
    digest: bytes


class Line(Frozen):
    """A kept row on disk: the conversation, and where it was read."""

    conversation: Conversation
    origin: str


# What became of words that were seen before and not kept; a row that was kept is known by its number.
_DROPPED: dict[int, DropReason] = {-1: "too_long", -2: "nothing_to_learn", -3: "broken"}
_CODES = {reason: code for code, reason in _DROPPED.items()}


class Intake:
    """The rows that were read, and an account of each. `opened` makes one."""

    def __init__(self, path: Path, file: TextIO, *, max_tokens: int, tolerated: bool, mask: bool) -> None:
        self._path = path
        self._file = file
        self._max_tokens = max_tokens
        self._tolerated = tolerated
        self._mask = mask
        self._seen: dict[bytes, int] = {}
        self.read = 0
        self.dropped: Counter[DropReason] = Counter()
        self.broken: list[str] = []
        self.survey = Survey(max_tokens)
        self.belonging = Belonging()
        self.tokens, self.scored_tokens = array("I"), array("I")

    @property
    def kept(self) -> int:
        """Rows on disk."""
        return len(self.tokens)

    def take(self, rows: Iterable[Row], mapper: RowMapper) -> Iterator[Taken]:
        """Maps rows and passes on those that are whole, filled and said for the first time: what needs no tokenizer.

        Raises DataError, at the end, with the rows that do not fit the template, unless the contract tolerates them.
        """
        for row in rows:
            self.read += 1
            try:
                conversation = mapper.conversation(row)
            except DataError as error:
                self._note_broken(str(error))
                continue
            if (reason := _empty(conversation)) is not None:
                self._drop(reason, row.origin)
                continue
            if self._mask:  # first: two rows may be the same without their names
                conversation = self._masked(conversation, row.origin)
            digest = _digest(conversation)
            if digest not in self._seen:
                self._seen[digest] = self.kept
                yield Taken(conversation, row.origin, digest)
            elif (place := self._seen[digest]) < 0:
                self._drop(_DROPPED[place], row.origin)
            else:
                self._drop("duplicate", row.origin)
                self.belonging.add_copy(place, conversation)
        self._refuse_broken()

    def keep(self, taken: Iterable[Taken], tokenizer: "PreTrainedTokenizerBase", *, thinking: bool) -> None:
        """Turns conversations into token ids, drops what is too long or teaches nothing, and puts the rest down."""
        for conversation, origin, digest in taken:
            if not self._mask:
                self.survey.personal(conversation, origin)
            try:
                encoded = encode(tokenizer, conversation, thinking=thinking)
            except DataError as error:
                self._seen[digest] = _CODES["broken"]
                self._note_broken(f"{origin}: {error}")
                continue
            self.survey.length(len(encoded.ids))
            if (reason := _unusable(encoded, self._max_tokens)) is not None:
                self._seen[digest] = _CODES[reason]
                self._drop(reason, origin)
                continue
            self.survey.kept(conversation, encoded, origin, tokenizer)
            self._put_down(conversation, encoded, origin)
        self._refuse_broken()
        self._file.flush()

    def lines(self) -> Iterator[Line]:
        """The kept rows, in the order they were read."""
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                yield Line.model_validate_json(line)

    def conversations(self) -> Iterator[Conversation]:
        """The kept conversations, in the order they were read."""
        return (line.conversation for line in self.lines())

    def _put_down(self, conversation: Conversation, encoded: Encoded, origin: str) -> None:
        self.tokens.append(len(encoded.ids))
        self.scored_tokens.append(sum(encoded.scored))
        self.belonging.add(conversation)
        self._file.write(Line(conversation=conversation, origin=origin).model_dump_json(exclude_defaults=True) + "\n")

    def _masked(self, conversation: Conversation, origin: str) -> Conversation:
        """The conversation without its personal data, which is counted before and after."""
        self.survey.personal(conversation, origin)
        masked = _masked(conversation)
        self.survey.personal_left(masked, origin)
        return masked

    def _drop(self, reason: DropReason, origin: str) -> None:
        self.dropped[reason] += 1
        self.survey.example(reason, origin)

    def _note_broken(self, problem: str) -> None:
        """Counts a row that does not fit. Raises DataError where none fits: the template is the wrong one."""
        self.dropped["broken"] += 1
        if len(self.broken) < _BROKEN_SHOWN:
            self.broken.append(mask_personal(problem) if self._mask else problem)
        if self.dropped["broken"] == _BROKEN_AND_NOTHING_ELSE and self.kept == 0 and not self._tolerated:
            self._refuse_broken()

    def _refuse_broken(self) -> None:
        """Raises DataError with the first rows that do not fit the template, where none is tolerated."""
        count = self.dropped["broken"]
        if not count or self._tolerated:
            return
        if count == 1:
            raise DataError(self.broken[0])
        shown = "\n  ".join(line.replace("\n", " ") for line in self.broken)
        first = f"the first {len(self.broken)}" if count > len(self.broken) else "they are"
        raise DataError(
            f"{count:,} of the {self.read:,} rows that were read cannot be used; {first}:\n  {shown}\n"
            "Mend them, or let such rows be dropped and counted with data.contract.broken_share."
        )


@contextmanager
def opened(path: Path, *, max_tokens: int, tolerated: bool, mask: bool) -> Iterator[Intake]:
    """An intake that puts rows down in a new file at `path`. `tolerated`: broken rows are dropped and counted."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        yield Intake(path, file, max_tokens=max_tokens, tolerated=tolerated, mask=mask)


def _empty(conversation: Conversation) -> DropReason | None:
    for message in conversation.messages:
        if message.role != "system" and not message.content.strip():
            return "empty_answer" if message.role == "assistant" else "empty_prompt"
    return None


def _unusable(encoded: Encoded, max_tokens: int) -> DropReason | None:
    if len(encoded.ids) > max_tokens:
        return "too_long"
    return None if any(encoded.scored) else "nothing_to_learn"


def _masked(conversation: Conversation) -> Conversation:
    """The conversation without personal data. Its group is only ever compared, and becomes a hash of what it was."""
    messages = (m.model_copy(update={"content": mask_personal(m.content)}) for m in conversation.messages)
    group = hashlib.sha256(conversation.group.encode()).hexdigest()[:16] if conversation.group else ""
    return conversation.model_copy(update={"messages": tuple(messages), "group": group})


def _digest(conversation: Conversation) -> bytes:
    """What is the same for the very same words in the very same roles, whatever the group."""
    digest = hashlib.blake2b(digest_size=16)
    for message in conversation.messages:
        digest.update(f"{message.role}\0{message.content}\0".encode())
    return digest.digest()
