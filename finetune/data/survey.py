"""Counts what the rows are like while they pass: lengths, turns, scripts, personal data, what carries loss.

Nothing here keeps a row. What the counts are held to is `finetune.data.contract`.
"""

import re
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from export.chat import Conversation, Encoded
from finetune.data.account import Histogram, LengthLimit, PersonalCount, ScriptCount
from finetune.data.personal import PersonalKind, find_personal, shown_partly

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase

# Limits that people set, and libraries by default: how many rows each would cut.
COMMON_LIMITS = (512, 1024, 2048)
EXAMPLES = 5
# A thank-you may be said twice; a turn of this many characters that is repeated is a copy.
_REPEATED_FROM_CHARACTERS = 12
_TOKEN_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_TURN_EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24)
# Most of a text's words must be of a script for the text to be of that script.
_MOSTLY = 0.7
# A Chinese character is a word (CJK Unified Ideographs with extension A and the compatibility block), and so is
# a run of Latin letters (with the accented blocks) or of any others.
_WORDS = {
    "Chinese": re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"),
    "Latin": re.compile("[A-Za-z\u00c0-\u024f]+"),
    "other": re.compile("[^\\W\\d_A-Za-z\u00c0-\u024f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"),
}


class Survey:
    """What was counted so far."""

    def __init__(self, max_tokens: int) -> None:
        self._limits = tuple(sorted({*COMMON_LIMITS, max_tokens}))
        self._longer: Counter[int] = Counter()
        self._turns = array("H")
        self._scripts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._personal: dict[PersonalKind, list[int]] = {}
        self._personal_examples: dict[PersonalKind, list[str]] = defaultdict(list)
        self.examples: dict[str, list[str]] = defaultdict(list)
        self.encoded = self.looked_through = self.personal_rows = self.personal_left_rows = 0
        self.assistant_turns = self.ended_turns = self.repeated_turn_rows = 0

    def example(self, what: str, origin: str) -> None:
        """Keeps the first few rows of a kind by name."""
        if len(self.examples[what]) < EXAMPLES:
            self.examples[what].append(origin)

    def personal(self, conversation: Conversation, origin: str) -> None:
        """Looks for personal data in every message."""
        self.looked_through += 1
        kinds: Counter[PersonalKind] = Counter()
        for message in conversation.messages:
            for found in find_personal(message.content):
                kinds[found.kind] += 1
                if len(self._personal_examples[found.kind]) < EXAMPLES:
                    self._personal_examples[found.kind].append(f"{origin}: {shown_partly(message.content, found)}")
        for kind, count in kinds.items():
            rows = self._personal.setdefault(kind, [0, 0])
            rows[0] += 1
            rows[1] += count
        if kinds.keys() - {"url"}:
            self.personal_rows += 1
            self.example("personal", origin)

    def personal_left(self, masked: Conversation, origin: str) -> None:
        """Looks for personal data that masking left."""
        kinds = {found.kind for message in masked.messages for found in find_personal(message.content)}
        if kinds - {"url"}:
            self.personal_left_rows += 1
            self.example("personal_left", origin)

    def length(self, tokens: int) -> None:
        """Counts a row's tokens, whether it is kept or not."""
        self.encoded += 1
        for limit in self._limits:
            if tokens > limit:
                self._longer[limit] += 1

    def kept(
        self, conversation: Conversation, encoded: Encoded, origin: str, tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        """Counts what a kept row holds."""
        turns = [message for message in conversation.messages if message.role != "system"]
        self._turns.append(min(len(turns), 2**16 - 1))
        answers = sum(message.role == "assistant" for message in turns) - encoded.turns_without_thought
        ended = _scored_ends(encoded, tokenizer.eos_token_id)
        self.assistant_turns += answers
        self.ended_turns += min(ended, answers)
        if ended < answers:
            self.example("turn_end", origin)
        if _says_twice(conversation):
            self.repeated_turn_rows += 1
            self.example("repeated_turn", origin)
        words = "\n".join(message.content for message in turns)
        counted = self._scripts[script_of(words)]
        counted[0] += 1
        counted[1] += len(words.encode())
        counted[2] += len(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])

    def turns(self) -> Histogram:
        """Turns of user and assistant per kept row."""
        return histogram(self._turns, _TURN_EDGES)

    def lengths(self) -> tuple[LengthLimit, ...]:
        """How many rows are longer than each usual limit, and than the recipe's."""
        return tuple(LengthLimit(max_tokens=n, rows=self._longer[n], n=self.encoded) for n in self._limits)

    def scripts(self) -> tuple[ScriptCount, ...]:
        """Kept rows by the script of what user and assistant say, the most frequent first."""
        found = [
            ScriptCount(script=name, rows=rows, bytes=size, tokens=tokens)
            for name, (rows, size, tokens) in self._scripts.items()
        ]
        return tuple(sorted(found, key=lambda count: -count.rows))

    def personal_counts(self) -> tuple[PersonalCount, ...]:
        """What was found of each kind of personal data; kinds that were not found are left out."""
        return tuple(
            PersonalCount(kind=kind, rows=rows, findings=count, examples=tuple(self._personal_examples[kind]))
            for kind, (rows, count) in sorted(self._personal.items())
        )


def token_histogram(tokens: Sequence[int]) -> Histogram:
    """Tokens per kept row."""
    return histogram(tokens, _TOKEN_EDGES)


def histogram(values: "Iterable[int]", edges: tuple[int, ...]) -> Histogram:
    """How many values lie from each edge to below the next. Values below the first edge count with the first."""
    counts = [0] * len(edges)
    for value in values:
        counts[max(bisect_right(edges, value) - 1, 0)] += 1
    return Histogram(edges=edges, counts=tuple(counts))


def script_of(text: str) -> str:
    """The script of most of a text's words: Chinese, Latin or other; mixed; none where it has no words."""
    counts = {script: len(words.findall(text)) for script, words in _WORDS.items()}
    total = sum(counts.values())
    if total == 0:
        return "none"
    most = max(counts, key=lambda script: counts[script])
    return most if counts[most] >= _MOSTLY * total else "mixed"


def _scored_ends(encoded: Encoded, turn_end: int | None) -> int:
    """How many runs of tokens that carry loss end with the turn's end."""
    following = [*encoded.scored[1:], False]
    return sum(
        scored and not then and token == turn_end
        for token, scored, then in zip(encoded.ids, encoded.scored, following, strict=True)
    )


def _says_twice(conversation: Conversation) -> bool:
    """Whether a speaker says the same words twice, or the two speakers the same one after the other."""
    said: set[tuple[str, str]] = set()
    for message in conversation.messages:
        words = message.content.strip()
        if len(words) < _REPEATED_FROM_CHARACTERS:
            continue
        if (message.role, words) in said:
            return True
        said.add((message.role, words))
    return any(
        first.content.strip() == second.content.strip() and len(first.content.strip()) >= _REPEATED_FROM_CHARACTERS
        for first, second in pairwise(conversation.messages)
    )
