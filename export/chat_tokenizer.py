"""A folder's tokenizer as everything here reads it: its end is the token that its chat template ends turns with."""

from pathlib import Path
from typing import TYPE_CHECKING

from export.chat import Message, render
from export.errors import ModelError
from export.loading import open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Qwen's own padding token; where it exists it pads, so that padding is never mistaken for the end of a turn.
_PADDING = "<|endoftext|>"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer, with the token its chat template ends turns with as `eos_token`.

    Qwen's base models name `<|endoftext|>` as their end, but their template ends turns with `<|im_end|>`: trained as
    it comes, such a model never learns to stop. Padding uses a token that is not the turn end, so that the end is
    never masked as padding. Raises ModelError when there is no chat template or it ends turns with plain text.
    """
    tokenizer = open_tokenizer(folder)
    name_turn_end(tokenizer, folder)
    return tokenizer


def name_turn_end(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Gives a tokenizer of `folder`, opened as it comes, the end and padding of `load_tokenizer`; raises as it does."""
    if not tokenizer.is_fast:
        raise ModelError(f"{folder} has no tokenizer.json: its tokenizer cannot say where in the text a token lies.")
    if tokenizer.chat_template is None:
        raise ModelError(f"{folder} has no chat template. Use an instruct or chat model, or add chat_template.jinja.")
    tokenizer.eos_token = _turn_end(tokenizer, folder)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = _padding_token(tokenizer, folder)


def _turn_end(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> str:
    """The special token that the template puts behind an assistant's words."""
    words = "fieldtune looks for what follows these words"
    turns = [Message(role="user", content="?"), Message(role="assistant", content=words)]
    tail = render(tokenizer, turns, thinking=False, open_turn=False).rpartition(words)[2].strip()
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    first = tokenizer.convert_ids_to_tokens(ids[0]) if ids else None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if first is None or ids[0] not in special:
        raise ModelError(
            f"the chat template of {folder} ends an assistant's turn with {tail[:20]!r}, which is not a special token: "
            "a model trained on it could not be stopped. Use a template such as ChatML (<|im_end|>)."
        )
    return str(first)


def _padding_token(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> str:
    others = [str(token) for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    if _PADDING in tokenizer.get_vocab():
        return _PADDING
    if others:
        return others[0]
    raise ModelError(f"{folder} has no special token besides its turn end to pad with; add {_PADDING!r}.")
