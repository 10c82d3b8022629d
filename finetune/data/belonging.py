"""Which kept rows belong together and must never stand in two splits: a question, a conversation, a group.

Of each row hashes remain, so that millions fit in memory. Near copies are found elsewhere (`finetune.data.overlaps`)
and come as links.
"""

import hashlib
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from export.chat import Conversation, Message
from finetune.data.splitting import NO_GROUP, together

# Conversations may open with the same greeting: an opening of fewer bytes that more rows than these begin with is one.
_OPENING_BYTES, _GREETED_ROWS = 64, 20
# Where no more system messages than these occur they are settings, and tell rows apart no more than a template's own
# does; where there are more they hold what a row is about, a document or a persona, and are part of its question.
_FEW_SYSTEM_MESSAGES = 20
# What may end a question without making it another one.
_TERMINAL = " .?!。？！…~～"


class Belonging:
    """What is known of the kept rows, in the order they were kept."""

    def __init__(self) -> None:
        self._prompts, self._prompts_in_context = array("Q"), array("Q")
        self._openings, self._wholes, self._groups = array("Q"), array("Q"), array("Q")
        self._short_openings: Counter[int] = Counter()
        self._parts: list[tuple[int, int]] = []
        self._other_groups: list[tuple[int, int]] = []
        self._systems: set[int] = set()

    def add(self, conversation: Conversation) -> None:
        """Takes the next kept row."""
        row = len(self._prompts)
        system = _system_key(conversation)
        prompt = prompt_key(conversation)
        self._prompts.append(prompt)
        self._prompts_in_context.append(_key(f"{system} {prompt}"))
        opening, is_short = opening_key(conversation)
        self._openings.append(opening)
        if is_short:
            self._short_openings[opening] += 1
        self._groups.append(group_key(conversation))
        if len(self._systems) <= _FEW_SYSTEM_MESSAGES:
            self._systems.add(system)
        *parts, whole = _part_keys(conversation)
        self._wholes.append(whole)
        self._parts += [(row, part) for part in parts]

    def add_copy(self, row: int, conversation: Conversation) -> None:
        """A copy of a kept row, which is dropped: if it is of another group, that group is bound to the row."""
        group = group_key(conversation)
        if group not in (NO_GROUP, self._groups[row]):
            self._other_groups.append((row, group))

    @property
    def systems_vary(self) -> bool:
        """Whether system messages are part of what a row asks."""
        return len(self._systems) > _FEW_SYSTEM_MESSAGES

    @property
    def questions(self) -> Sequence[int]:
        """The key of each row's question."""
        return self._prompts_in_context if self.systems_vary else self._prompts

    def groups(self, links: Iterable[tuple[int, int]] = ()) -> list[list[int]]:
        """Row indexes by what belongs together; `links` are pairs of rows that do for another reason."""
        greetings = {key for key, rows in self._short_openings.items() if rows > _GREETED_ROWS}
        openings = [NO_GROUP if key in greetings else key for key in self._openings] if greetings else self._openings
        of_parts, of_copies = _links(self._parts, self._wholes), _links(self._other_groups, self._groups)
        return together((self.questions, openings, self._groups), [*links, *of_parts, *of_copies])


def _links(wanted: Sequence[tuple[int, int]], keys: Sequence[int]) -> list[tuple[int, int]]:
    """Each row of `wanted` with the first row whose key it wants; where there is none, with the first that wants it.

    Two parts of a conversation belong together though their common beginning is no row of its own.
    """
    sought = {key for _, key in wanted}
    first: dict[int, int] = {}
    for row, key in enumerate(keys) if sought else ():
        if key in sought:
            first.setdefault(key, row)
    return [(row, first.setdefault(key, row)) for row, key in wanted]


def prompt_key(conversation: Conversation) -> int:
    """A hash of the question's words, without case, width, spacing, the mark at their end, and system messages."""
    return _key(_plain(message for message in conversation.prompt if message.role != "system"))


def opening_key(conversation: Conversation) -> tuple[int, bool]:
    """A hash of the first exchange's words, with which rows of one conversation begin; and whether they are few."""
    turns = [message for message in conversation.messages if message.role != "system"]
    opening = _plain(turns[:2])
    return _key(opening), len(opening.encode()) < _OPENING_BYTES


def group_key(conversation: Conversation) -> int:
    """A hash of the group; `NO_GROUP` where there is none."""
    return _key(conversation.group) if conversation.group else NO_GROUP


def _part_keys(conversation: Conversation) -> list[int]:
    """Keys of the conversation up to each answer from the second on, the whole last.

    Of one with a single answer the whole alone; that others begin with it is for `opening_key` to say.
    """
    turns = [message for message in conversation.messages if message.role != "system"]
    ends = list(range(3, len(turns), 2)) or [len(turns) - 1]
    return [_key(_plain(turns[: end + 1])) for end in ends]


def _system_key(conversation: Conversation) -> int:
    return _key(_plain(message for message in conversation.messages if message.role == "system"))


def _plain(messages: Iterable[Message]) -> str:
    return "\n".join(_words(message.content) for message in messages)


def _words(text: str) -> str:
    words = " ".join(unicodedata.normalize("NFKC", text).split()).casefold()
    return words.rstrip(_TERMINAL) or words


def _key(text: str) -> int:
    """64 bits: among two million texts two different ones share a key once in ten million sets, and are then merely
    kept in the same split.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1
