"""Answers whose thoughts are held to a budget: budget forcing (Muennighoff et al. 2025, arXiv 2501.19393, section 3.1).

A thought that is not closed within the budget is closed for it, and the answer is generated behind the end. A thought
that ends earlier loses its end and goes on behind the wait word, as often as the budget says. Nothing is asked of an
engine but greedy answers to token ids, so that every engine is held to the budget in the same way.

Markers are found in decoded text: `</think>` is one token in Qwen3's vocabulary and several in Qwen2.5's, where they
may be joined with what stands beside them. Ids that the model wrote are never encoded anew, with one exception: where a
token holds the end of a thought and the beginning of its marker, and the marker is taken away.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from export.engines import Engine, Generation
from export.thought import Ending, ThinkingBudget, Thought


class Codec(Protocol):
    """Text to ids and back, by the vocabulary that all subjects share; special tokens are written out."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added around it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


class Answer(NamedTuple):
    """All that was written behind a prompt, thought, end and answer; whether a stop token ended it; and the thought."""

    ids: tuple[int, ...]
    stopped: bool
    thought: Thought


def answer_within(
    engine: Engine, prompts: Sequence[Sequence[int]], budget: ThinkingBudget, max_answer_tokens: int, codec: Codec
) -> list[Answer]:
    """Greedy answers to prompts of ids, in order, with thoughts within the budget.

    Behind a thought, and where there is none, an answer has at most `max_answer_tokens`. No sequence becomes longer
    than its prompt, `budget.most_tokens` and those.
    """
    turns = [_Turn(tuple(prompt), budget, max_answer_tokens, codec) for prompt in prompts]
    thinking = turns
    while thinking:
        limit = max(turn.room for turn in thinking) + budget.most_end_tokens
        written = engine.generate([turn.sequence for turn in thinking], limit)
        for turn, generation in zip(thinking, written, strict=True):
            turn.take(generation)
        thinking = [turn for turn in thinking if turn.goes_on]
    waiting = [turn for turn in turns if turn.answer is None]
    if waiting:
        written = engine.generate([turn.sequence for turn in waiting], max_answer_tokens)
        for turn, generation in zip(waiting, written, strict=True):
            turn.finish(generation.ids, stopped=generation.stopped)
    return [answer for turn in turns if (answer := turn.answer) is not None]


class _Turn:
    """One prompt on its way to an answer. `written` are the ids behind the prompt that stay."""

    def __init__(self, prompt: tuple[int, ...], budget: ThinkingBudget, max_answer_tokens: int, codec: Codec) -> None:
        self._prompt = prompt
        self._budget = budget
        self._max_answer_tokens = max_answer_tokens
        self._codec = codec
        self._written: list[int] = []
        self._waits = 0
        self._thought: Thought | None = None
        self.answer: Answer | None = None
        # of a user's words about markers nothing is opened: the opening is the last thing the template wrote
        tail = codec.decode(prompt[-2 * len(budget.begin.encode()) :])
        self._opened = tail.rstrip().endswith(budget.begin_marker)

    @property
    def sequence(self) -> tuple[int, ...]:
        """What the engine is to go on from."""
        return (*self._prompt, *self._written)

    @property
    def room(self) -> int:
        """Tokens the thought may still have."""
        return self._budget.max_thinking_tokens - len(self._written)

    @property
    def goes_on(self) -> bool:
        """Whether the thought is not over."""
        return self._thought is None

    def take(self, generation: Generation) -> None:
        """Reads what the model wrote, which may be a thought's end and the answer too, and decides how it goes on."""
        most = self._budget.max_thinking_tokens
        ids = [*self._written, *generation.ids]
        # where others had more room this may be more than was asked for: an end behind the budget comes too late
        end = _find(self._budget.end_marker, ids, self._codec)
        if not self._is_thought(self._codec.decode(ids)):
            self._close("none", 0, [], [])
            self._answer_from(ids, generation.stopped)
        elif end is not None and end.tokens_before <= most:
            if not self._sent_on(end.before):
                self._close("closed", end.tokens_before, ids[: end.behind], [])
                self._answer_from(ids[end.behind :], generation.stopped)
        elif generation.stopped and len(ids) <= most:
            if not self._sent_on(ids):
                self._close("stopped", len(ids), ids, self._codec.encode(self._budget.end))
        else:
            self._close("cut", most, ids[:most], self._codec.encode(self._budget.end))

    def finish(self, ids: Sequence[int], *, stopped: bool) -> None:
        """Takes the answer behind what is written."""
        assert self._thought is not None
        whole = len(ids) <= self._max_answer_tokens
        kept = tuple(ids[: self._max_answer_tokens])
        self.answer = Answer((*self._written, *kept), stopped and whole, self._thought)

    def _answer_from(self, ids: Sequence[int], stopped: bool) -> None:
        """The answer, where the model wrote all of it already."""
        if stopped or len(ids) >= self._max_answer_tokens:
            self.finish(ids, stopped=stopped)

    def _sent_on(self, thought: list[int]) -> bool:
        """Puts the wait word behind a thought, where one is left and the budget has room for more than it."""
        wait = self._codec.encode(self._budget.wait)
        if self._waits == self._budget.waits or len(thought) + len(wait) >= self._budget.max_thinking_tokens:
            return False
        self._waits += 1
        self._written = [*thought, *wait]
        return True

    def _close(self, ended: Ending, tokens: int, written: list[int], end: list[int]) -> None:
        self._thought = Thought(tokens=tokens, ended=ended, waits=self._waits)
        self._written = [*written, *end]

    def _is_thought(self, text: str) -> bool:
        """Whether what is written is a thought, and maybe more: as `thought.answer_behind_thought` sees it."""
        begin = self._budget.begin_marker
        before, end, _ = text.partition(self._budget.end_marker)
        return self._opened or self._waits > 0 or text.lstrip().startswith(begin) or bool(end and begin not in before)


class _End(NamedTuple):
    """An end marker among ids: what stands before it, how many tokens hold any of that, and where it is over.

    `before` are the model's own ids, but for a last token that also holds a part of the marker.
    """

    before: list[int]
    tokens_before: int
    behind: int


def _find(marker: str, ids: Sequence[int], codec: Codec) -> _End | None:
    """The first end marker in the text of `ids`."""
    text = codec.decode(ids)
    start = text.find(marker)
    if start < 0:
        return None
    low, high = 1, len(ids)
    while low < high:  # the fewest ids whose text has the marker
        middle = (low + high) // 2
        low, high = (low, middle) if marker in codec.decode(ids[:middle]) else (middle + 1, high)
    before = low - 1
    while not text[:start].startswith(codec.decode(ids[:before])):
        before -= 1
    rest = text[len(codec.decode(ids[:before])) : start]  # of a token that holds a part of the marker as well
    return _End([*ids[:before], *(codec.encode(rest) if rest else [])], before + bool(rest), low)
