"""Conversations, and the one place where they become token ids.

Training, calibration and every check call `encode`, so that all of them see the same ids and the same mask. The
text comes from the tokenizer's own chat template; what is ours is finding the assistant's turns in it. Rows are made
into conversations elsewhere (`finetune.template`).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from export.errors import DataError
from export.frozen import Frozen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant"]


class Message(Frozen):
    """One turn of a conversation."""

    role: Role
    content: str


class Conversation(Frozen):
    """The currency of the whole project: messages, and the group that must not be split across train and test."""

    messages: tuple[Message, ...]
    group: str = ""

    @property
    def answer(self) -> str:
        """The last assistant turn: what a check compares a generated answer with."""
        return self.messages[-1].content

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the answer."""
        return self.messages[:-1]


class Encoded(Frozen):
    """Token ids of a rendered conversation and, for each, whether it carries loss; both of length (time,)."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]

    @property
    def scored_positions(self) -> tuple[int, ...]:
        """Indexes of the tokens that carry loss: the assistant's words and the token that ends each turn."""
        return tuple(index for index, is_scored in enumerate(self.scored) if is_scored)


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, thinking: bool, open_turn: bool
) -> str:
    """The text the tokenizer's template makes of `messages`; `open_turn` adds the start of an assistant turn."""
    text = tokenizer.apply_chat_template(
        [message.model_dump() for message in messages],
        tokenize=False,
        add_generation_prompt=open_turn,
        enable_thinking=thinking,
    )
    assert isinstance(text, str)
    return text


def encode(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, *, thinking: bool = False) -> Encoded:
    """Token ids of the whole conversation, with the assistant's turns and their turn-end tokens marked as scored.

    A token is scored when it starts inside an assistant turn, which begins where the template would let the model
    begin to write and ends with the turn-end token (the line break behind it is the template's, not the model's).

    Raises DataError when the template rewrites earlier turns so that a turn cannot be found in the text.
    """
    text = render(tokenizer, conversation.messages, thinking=thinking, open_turn=False)
    spans = list(_assistant_spans(tokenizer, conversation.messages, text, thinking))
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoding["offset_mapping"]]
    scored = tuple(any(begin <= start < end for begin, end in spans) for start in starts)
    return Encoded(ids=tuple(encoding["input_ids"]), scored=scored)


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, thinking: bool = False
) -> tuple[int, ...]:
    """Token ids of a conversation that waits for the assistant: what an engine is given to generate from."""
    text = render(tokenizer, messages, thinking=thinking, open_turn=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _assistant_spans(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], text: str, thinking: bool
) -> Iterator[tuple[int, int]]:
    """Character spans of the assistant turns in `text`, from the first character the model writes to the turn end."""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        begin = _turn_start(tokenizer, messages[:index], text, thinking)
        end = text.find(message.content.strip(), begin)
        if end < 0:
            raise DataError(
                f"the chat template does not show turn {index + 1} as it was written: {message.content[:60]!r}. "
                "Use a template that keeps assistant turns unchanged, or drop such rows."
            )
        end += len(message.content.strip())
        turn_end = str(tokenizer.eos_token)
        closing = text.find(turn_end, end)
        if closing < 0 or text[end:closing].strip():
            raise DataError(
                f"turn {index + 1} is not followed by the turn-end token {turn_end!r}: a model trained on it would "
                "never learn to stop. Set the tokenizer's eos_token to the token its chat template ends turns with."
            )
        yield begin, closing + len(turn_end)


def _turn_start(tokenizer: "PreTrainedTokenizerBase", before: Sequence[Message], text: str, thinking: bool) -> int:
    """Where in `text` the model starts to write the turn that follows the messages `before`.

    Qwen3's template opens a turn with an empty think block when thinking is off, but does not keep that block in
    turns further back; the plain header is tried second for those.
    """
    opened = render(tokenizer, before, thinking=thinking, open_turn=True)
    closed = render(tokenizer, before, thinking=thinking, open_turn=False)
    header = opened[len(closed) :].split("\n", 1)[0] + "\n"
    for prefix in (opened, closed + header):
        if text.startswith(prefix):
            return len(prefix)
    raise DataError(
        "the chat template changes earlier turns when later ones follow, so the assistant's turns cannot be told "
        f"apart from the rest (looked for {opened[-60:]!r}). Use a template that renders turns one after another."
    )
