"""What a reasoning model writes before it answers: how a thought is marked, what it may cost, and what lies behind it.

Only words and numbers; how a thought is held to its budget while it is written is `export.budgeted`.
"""

from typing import Literal

from pydantic import Field

from export.frozen import Frozen

THINK_BEGIN = "<think>"
THINK_END = "</think>"

# How a thought ended: the model closed it; the budget was used up; the model ended its turn within it; there was none.
Ending = Literal["closed", "cut", "stopped", "none"]


class ThinkingBudget(Frozen):
    """How long a model may think before it answers: budget forcing (Muennighoff et al. 2025, arXiv 2501.19393, sec. 3).

    A thought that is not closed within the budget is closed for it. One that ends earlier is sent on by the wait word
    as often as `waits` says.
    """

    max_thinking_tokens: int = Field(
        ge=1, description="Tokens a thought may have, its opening marker and the wait words included."
    )
    waits: int = Field(default=0, ge=0, description="How often a thought that ends within its budget is made to go on.")
    wait: str = Field(
        default="Wait", min_length=1, description="What stands in place of the end of a thought that goes on."
    )
    begin: str = Field(default=THINK_BEGIN, pattern=r"\S", description="What opens a thought.")
    end: str = Field(
        default=THINK_END,
        pattern=r"\S",
        description="What closes one; white space around it is written where a thought is closed, and not looked for.",
    )

    @property
    def begin_marker(self) -> str:
        """What is looked for as the opening."""
        return self.begin.strip()

    @property
    def end_marker(self) -> str:
        """What is looked for as the end."""
        return self.end.strip()

    @property
    def most_end_tokens(self) -> int:
        """More tokens than an end can have, written by the model or by us: a token holds at least one byte."""
        return len(self.end.encode())

    @property
    def most_tokens(self) -> int:
        """More tokens than an engine ever holds between prompt and answer."""
        # all thoughts of a round are given the room of the one that has most left
        rounds = 2 if self.waits else 1
        return rounds * self.max_thinking_tokens + 2 * self.most_end_tokens


class Thought(Frozen):
    """One thought under a budget: its tokens, how it ended, and how often it was made to go on.

    `tokens` counts what stands before the end marker, an opening marker that the model wrote and wait words included.
    """

    tokens: int
    ended: Ending
    waits: int


def answer_behind_thought(text: str, begin: str = THINK_BEGIN, end: str = THINK_END) -> str:
    """What a text says behind its thought: all of it where there is none, nothing where the thought has no end.

    A thought opens the text; or it was opened in the prompt, and the text has its end alone. The first end counts, as
    it does where a thought is held to a budget. Markers further inside, as in an answer about markers, make no thought.
    """
    before, marker, answer = text.partition(end)
    opened = text.lstrip().startswith(begin)
    if marker and (opened or begin not in before):
        return answer.lstrip()
    return "" if opened else text
