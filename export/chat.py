"""Conversations, and the one place where they become token ids.

Training, calibration and every check call `encode`, so that all of them see the same ids and the same mask. The
text comes from the tokenizer's own chat template; what is ours is finding the assistant's turns in it. Rows are made
into conversations elsewhere (`finetune.data.template`).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from export.errors import DataError, ModelError
from export.frozen import Frozen
from export.thought import THINK_END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant"]


class Message(Frozen):
    """One turn of a conversation."""

    role: Role
    content: str


class Conversation(Frozen):
    """The currency of the whole project: messages, and the group that must not be split across train and test.

    `category` is what the row is about, such as an exam's subject: scores are told for each besides; empty for none.
    """

    messages: tuple[Message, ...]
    group: str = ""
    category: str = ""

    @property
    def answer(self) -> str:
        """The last assistant turn: what a check compares a generated answer with."""
        return self.messages[-1].content

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the answer."""
        return self.messages[:-1]


class Encoded(Frozen):
    """Token ids of a rendered conversation and, for each, whether it carries loss; both of length (time,).

    `turns_without_thought` counts assistant turns whose thought the template left out, and which carry no loss.
    """

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    turns_without_thought: int = 0

    @property
    def scored_positions(self) -> tuple[int, ...]:
        """Indexes of the tokens that carry loss: the assistant's words and the token that ends each turn."""
        return tuple(index for index, is_scored in enumerate(self.scored) if is_scored)


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, thinking: bool, open_turn: bool
) -> str:
    """The text the tokenizer's template makes of `messages`; `open_turn` adds the start of an assistant turn.

    Raises ModelError when the tokenizer has no template, DataError when the template refuses the messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template. Use a model that has one, such as an "
            "Instruct model, or add a chat_template.jinja to its folder."
        )
    try:
        text = tokenizer.apply_chat_template(
            [message.model_dump() for message in messages],
            tokenize=False,
            add_generation_prompt=open_turn,
            enable_thinking=thinking,
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"the chat template refuses the turns {roles}: {error}.") from error
    assert isinstance(text, str)
    return text


def encode(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, *, thinking: bool = False) -> Encoded:
    """Token ids of the whole conversation, with the assistant's turns and their turn-end tokens marked as scored.

    An assistant turn begins where the template would let the model begin to write and ends with the turn-end token
    (the line break behind it is the template's, not the model's). The text is cut there before it becomes tokens, so
    that no token straddles the border: the ids begin with those of `encode_prompt`, whatever the answer begins with.

    An earlier turn whose thought the template leaves out is context and carries no loss while thinking is on: what is
    left of it would teach to answer without a thought.

    Raises DataError when the template rewrites earlier turns so that a turn cannot be found in the text, or would not
    give the model the same prompt when it answers, or when a turn holds one of the tokenizer's special tokens.
    """
    _refuse_special_tokens(tokenizer, conversation.messages)
    text = render(tokenizer, conversation.messages, thinking=thinking, open_turn=False)
    ids: list[int] = []
    scored: list[bool] = []
    position = without_thought = 0
    answers = [message.content for message in conversation.messages if message.role == "assistant"]
    spans = _assistant_spans(tokenizer, conversation.messages, text, thinking)
    for (begin, end), answer in zip(spans, answers, strict=True):
        learned = not thinking or THINK_END not in answer or THINK_END in text[begin:end]
        without_thought += not learned
        for piece, carries_loss in ((text[position:begin], False), (text[begin:end], learned)):
            piece_ids = _ids(tokenizer, piece)
            ids += piece_ids
            scored += [carries_loss] * len(piece_ids)
        position = end
    rest = _ids(tokenizer, text[position:])
    return Encoded(ids=(*ids, *rest), scored=(*scored, *[False] * len(rest)), turns_without_thought=without_thought)


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, thinking: bool = False
) -> tuple[int, ...]:
    """Token ids of a conversation that waits for the assistant: what an engine is given to generate from.

    They are the first ids of `encode` for any conversation that goes on from these messages with one answer. Raises
    DataError as `encode` does.
    """
    _refuse_special_tokens(tokenizer, messages)
    text = render(tokenizer, messages, thinking=thinking, open_turn=True)
    ids: list[int] = []
    position = 0
    for begin, end in _assistant_spans(tokenizer, messages, text, thinking):
        ids += [*_ids(tokenizer, text[position:begin]), *_ids(tokenizer, text[begin:end])]
        position = end
    return (*ids, *_ids(tokenizer, text[position:]))


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a piece of rendered text, in which special tokens are written out."""
    # verbose=False: a row longer than the model's context is dropped and counted by the caller, not warned about
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _refuse_special_tokens(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> None:
    """Raises DataError where a turn spells a special token: as an id it would end the turn or begin another."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for index, message in enumerate(messages):
        for token in special:
            if token in message.content:
                raise DataError(
                    f"turn {index + 1} holds the special token {token!r}, which would be read as a command and not "
                    "as text. Remove it from the row."
                )


def _assistant_spans(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], text: str, thinking: bool
) -> Iterator[tuple[int, int]]:
    """Character spans of the assistant turns in `text`, from the first character the model writes to the turn end."""
    turn_end = str(tokenizer.eos_token)
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        is_answer = index == len(messages) - 1
        begin = _turn_start(tokenizer, messages[:index], text, thinking, is_answer=is_answer)
        closing = text.find(turn_end, begin)
        if closing < 0:
            raise DataError(
                f"turn {index + 1} is not followed by the turn-end token {turn_end!r}: a model trained on it would "
                "never learn to stop. Set the tokenizer's eos_token to the token its chat template ends turns with."
            )
        # Templates trim turns, put think blocks before them, and leave out the reasoning of earlier ones.
        words = message.content.rpartition(THINK_END)[2].strip()
        if not text[begin:closing].rstrip().endswith(words):
            raise DataError(
                f"the chat template does not show turn {index + 1} as it was written: {message.content[:60]!r}. "
                "Use a template that keeps assistant turns unchanged, or drop such rows."
            )
        yield begin, closing + len(turn_end)


def _turn_start(
    tokenizer: "PreTrainedTokenizerBase", before: Sequence[Message], text: str, thinking: bool, *, is_answer: bool
) -> int:
    """Where in `text` the model starts to write the turn that follows the messages `before`.

    Qwen3's template opens a turn with an empty think block when thinking is off, but does not keep that block in
    turns further back; the plain header is tried second for those. For the answer itself it is not: a model would
    be trained behind one prompt and asked behind another.
    """
    opened = render(tokenizer, before, thinking=thinking, open_turn=True)
    if text.startswith(opened):
        return len(opened)
    closed = render(tokenizer, before, thinking=thinking, open_turn=False)
    header = opened[len(closed) :].split("\n", 1)[0] + "\n"
    if not is_answer and text.startswith(closed + header):
        return len(closed + header)
    raise DataError(
        f"the chat template does not show the prompt as it is before an answer (looked for {opened[-60:]!r}), so the "
        "assistant's turns cannot be told apart from the rest. Use a template that renders turns one after another; "
        "for answers with a think block, set thinking to true."
    )
