"""Rows as the model reads them, token by token, with the tokens that carry loss marked: `fieldtune data --preview`.

What is shown is what `export.chat.encode` gives, which is what training, calibration and every check read; nothing is
rendered or masked here a second time. It can be read without colour: scored spans stand in ⟦ ⟧.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from export.chat import Conversation, encode, render
from export.errors import DataError
from finetune.data.shown import LINE_BREAK, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE, BORDER = "⟦", "⟧", "│"
_SCORED, _READ, _FURNITURE = "bold cyan underline", "", "dim"
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class Piece(NamedTuple):
    """One token as text, or the few that only together are whole characters; and whether they carry loss."""

    text: str
    tokens: int
    scored: bool


def pieces(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], scored: Sequence[bool]) -> tuple[Piece, ...]:
    """The tokens as text; joined, they are the text that the tokenizer read. For byte-level BPE, as Qwen's is.

    A character may be spread over several tokens: these are one piece, as no part of it is text. Tokens that carry
    loss never share one with those that do not. Bytes that are no UTF-8 at all are spelled out.
    """
    added = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
    names = tokenizer.convert_ids_to_tokens(list(ids))
    found: list[Piece] = []
    waiting, count = b"", 0

    def flush(carries_loss: bool) -> None:
        nonlocal waiting, count
        if count:
            found.append(Piece(waiting.decode("utf-8", errors="backslashreplace"), count, carries_loss))
        waiting, count = b"", 0

    for index, (token_id, name) in enumerate(zip(ids, names, strict=True)):
        if token_id in added or (index and scored[index] != scored[index - 1]):
            flush(scored[index - 1])
        waiting += added[token_id].encode() if token_id in added else _bytes_of(name)
        count += 1
        if token_id in added or _is_text(waiting):
            flush(scored[index])
    flush(bool(scored) and scored[-1])
    return tuple(found)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bytes_of(name: str) -> bytes:
    """The bytes that a token of byte-level BPE stands for; a character that stands for none is itself."""
    known = _byte_of_character()
    return b"".join(bytes([known[c]]) if c in known else c.encode() for c in name)


@cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 stands for itself, every other byte, in order, for U+0100 and on.

    Source: GPT-2's `bytes_to_unicode`, which `tokenizers.pre_tokenizers.ByteLevel` follows.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def show_preview(
    conversations: Iterable[tuple[str, Conversation]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    thinking: bool,
    console: "Console | None" = None,
) -> None:
    """Prints rows, each with where it comes from ("commands.jsonl, line 3"), its counts and its tokens.

    A row that cannot be encoded is shown with the reason, and the others follow.
    """
    from rich.console import Console

    console = console or Console()
    console.print(_legend(str(tokenizer.eos_token)), soft_wrap=True)
    for origin, conversation in conversations:
        console.print()
        try:
            shown = _row(origin, conversation, tokenizer, thinking=thinking)
        except DataError as error:
            shown = _plain(f"{visible(origin)}: cannot be encoded: {visible(str(error))}")
        # wrapped by the terminal, if at all: a pipe gets each line whole
        console.print(shown, soft_wrap=True)


def _legend(turn_end: str) -> "Text":
    legend = _plain("")
    legend.append(f"{OPEN}carries loss{CLOSE}", style=_SCORED)
    parts = f"turn end: {turn_end}", f"{BORDER} between tokens", f"{LINE_BREAK} line break", "₂ a character in 2 tokens"
    return legend.append(f"; {'; '.join(parts)}", style=_FURNITURE)


def _row(origin: str, conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", *, thinking: bool) -> "Text":
    """The row's heading, and its text with a line for each line that the template writes."""
    encoded = encode(tokenizer, conversation, thinking=thinking)
    found = pieces(tokenizer, encoded.ids, encoded.scored)
    tokens, scored = len(encoded.ids), sum(encoded.scored)
    turns = len(conversation.messages)
    counts = f"{turns:,} messages, {tokens:,} tokens, {scored:,} of them scored"
    shown = _plain("").append(f"{visible(origin)}: {counts}\n", style="bold")
    was_scored, is_line_start = False, True
    for piece in found:
        if piece.scored != was_scored:
            shown.append(OPEN if piece.scored else CLOSE, style=_SCORED)
        elif not is_line_start:
            shown.append(BORDER, style=_FURNITURE)
        shown.append(_text_of(piece), style=_SCORED if piece.scored else _READ)
        was_scored, is_line_start = piece.scored, piece.text.endswith("\n")
    if was_scored:
        shown.append(CLOSE, style=_SCORED)
    shown.rstrip()
    if "".join(piece.text for piece in found) != render(
        tokenizer, conversation.messages, thinking=thinking, open_turn=False
    ):
        shown.append("\nnote: the tokenizer changes characters of this row (as Unicode's normal form C does)")
    return shown


def _text_of(piece: Piece) -> str:
    """A piece with its line breaks and tabs shown, and in how many tokens it is where there are several."""
    text = visible(piece.text).replace("\t", "⇥").replace("\n", f"{LINE_BREAK}\n")
    return text if piece.tokens == 1 else f"{text}{str(piece.tokens).translate(_SUBSCRIPTS)}"


def _plain(text: str) -> "Text":
    from rich.text import Text

    return Text(text)
