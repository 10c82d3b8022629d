"""A prompt taken apart: what stands before every command, the command's place, and what opens the answer.

The text is the chat template's own. It is cut at special tokens only, where tokenizers cut it too, so that the parts'
token ids, one after another, are those of the whole. What stands before the last special token ahead of the command
never changes: its ids are kept, and a device keeps what the model made of them.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from export.chat import Message, render
from export.errors import ExportError
from export.frozen import Frozen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Two commands that no template holds: what differs between the two renderings is where the command stands.
_PLACES = ("COMMAND-ONE", "COMMAND-TWO")
_SYSTEM_PLACE = "SYSTEM-PROMPT-STANDS-HERE"


class Prompt(Frozen):
    """What is the same in every prompt. `prefix_text` is that of `prefix_ids`; `opening` begins with a special token.

    Before the command comes `before_command`, behind it `behind_command`; no special token is in either. llama.cpp
    reads the tokens of `always_read` as one wherever they stand, whether or not special tokens are asked for: added
    tokens that are not special, such as Qwen's <tool_call> and <think>.
    """

    prefix_text: str
    prefix_ids: tuple[int, ...]
    before_command: str
    behind_command: str
    opening: str
    always_read: tuple[str, ...] = ()


class TurnTexts(Frozen):
    """The text around a system prompt and a command, for runtimes that fill in a template of their own.

    `system_is_fixed`: the template writes a system message of its own, which is part of `before_system`.
    """

    before_system: str
    between: str
    opening: str
    turn_end: str
    system_is_fixed: bool


def prompt_of(
    tokenizer: "PreTrainedTokenizerBase", system: str | None, tokenize: Callable[[str], Sequence[int]]
) -> Prompt:
    """The parts of a prompt with this system prompt; `tokenize` is that of the file that will read it.

    Raises ExportError where the template changes the command or shows it more than once.
    """
    before, behind = _around(tokenizer, system)
    special = special_texts(tokenizer)
    last = max((before.rfind(token) + len(token) for token in special if token in before), default=0)
    first = min((place for token in special if (place := behind.find(token)) >= 0), default=len(behind))
    return Prompt(
        prefix_text=before[:last],
        prefix_ids=tuple(tokenize(before[:last])),
        before_command=before[last:],
        behind_command=behind[:first],
        opening=behind[first:],
        always_read=tuple(t.content for t in tokenizer.added_tokens_decoder.values() if not t.special),
    )


def turn_texts(tokenizer: "PreTrainedTokenizerBase", system: str | None) -> TurnTexts:
    """What stands around the system prompt and the command. Raises ExportError as `prompt_of` does."""
    before, opening = _around(tokenizer, _SYSTEM_PLACE if system else None)
    around = before.split(_SYSTEM_PLACE) if system else [before, ""]
    if len(around) != 2:
        raise ExportError("the chat template does not show the system prompt once and as it is. Use a plainer one.")
    return TurnTexts(
        before_system=around[0],
        between=around[1],
        opening=opening,
        turn_end=str(tokenizer.eos_token),
        system_is_fixed=not system,
    )


def special_texts(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The texts that a tokenizer reads as one token each, wherever they stand."""
    return tuple(str(token.content) for token in tokenizer.added_tokens_decoder.values())


def _around(tokenizer: "PreTrainedTokenizerBase", system: str | None) -> tuple[str, str]:
    """The rendered text before the command and behind it, up to where the model begins to write."""
    opening = [Message(role="system", content=system)] if system else []
    parts = []
    for place in _PLACES:
        messages = [*opening, Message(role="user", content=place)]
        parts.append(render(tokenizer, messages, thinking=False, open_turn=True).split(place))
    if len(parts[0]) != 2 or parts[0] != parts[1]:
        raise ExportError(
            "the chat template does not show a command once and as it is; expected a prompt in which only the command "
            "changes. Use a model whose template writes the user's words unchanged."
        )
    return parts[0][0], parts[0][1]
