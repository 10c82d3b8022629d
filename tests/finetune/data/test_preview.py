"""A preview shows what the model reads and what carries loss: encode's own ids and mask, on the starter's tokenizer."""

import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import finetune
from export.chat import Conversation, Message, encode, render
from export.loading import open_tokenizer
from finetune.data.preview import BORDER, CLOSE, OPEN, pieces, show_preview
from finetune.data.shown import LINE_BREAK
from tests.export.chat_tokenizers import build_tokenizer

STARTER = Path(finetune.__file__).parent / "starter" / "model"
ROWS = {
    "english": ("Turn on the light.", "The light is on."),
    "chinese": ("打开厨房的灯。", "好的，厨房的灯已经打开。"),
    "rare characters": ("龘靐齉", "𠮷野家 ☃"),
    "emoji": ("🧹 please", "done 👩‍👩‍👧 ok 🇨🇳"),
    "several turns": ("one", "一", "two", '{"task":"mop"}', "three", "三\n\n行"),
    "white space": ("\ttab  and\n\nlines", "  x \n"),
    "brackets": ("[a]", "[1, 2]"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(STARTER)


def conversation(*turns, system=None):
    spoken = [Message(role="assistant" if i % 2 else "user", content=turn) for i, turn in enumerate(turns)]
    opening = [] if system is None else [Message(role="system", content=system)]
    return Conversation(messages=(*opening, *spoken))


def preview(tokenizer, *rows, **options):
    """What is printed for the rows, as a pipe gets it."""
    out = io.StringIO()
    show_preview(rows, tokenizer, thinking=False, console=Console(file=out, width=40, **options))
    return out.getvalue()


@pytest.mark.parametrize("name", ROWS)
def test_pieces_joined_are_the_rendered_text_and_their_mask_is_encodes(tokenizer, name):
    row = conversation(*ROWS[name], system="Be brief.")
    encoded = encode(tokenizer, row)
    found = pieces(tokenizer, encoded.ids, encoded.scored)
    assert "".join(p.text for p in found) == render(tokenizer, row.messages, thinking=False, open_turn=False)
    assert tuple(p.scored for p in found for _ in range(p.tokens)) == encoded.scored
    assert "\ufffd" not in "".join(p.text for p in found)
    # as fine as can be: a piece of several tokens has no smaller part that is text
    at = 0
    for piece in found:
        ids = encoded.ids[at : at + piece.tokens]
        assert tokenizer.decode(ids) == piece.text
        assert all("\ufffd" in tokenizer.decode(ids[:part]) for part in range(1, piece.tokens))
        at += piece.tokens


def test_a_character_of_several_tokens_is_one_piece(tokenizer):
    encoded = encode(tokenizer, conversation("x", "龘"))
    (piece,) = [p for p in pieces(tokenizer, encoded.ids, encoded.scored) if "龘" in p.text]
    assert piece.tokens > 1 and piece.scored


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), min_size=2, max_size=4))
def test_pieces_joined_are_what_the_tokenizer_read_whatever_is_said(turns):
    tokenizer = build_tokenizer("plain")
    row = conversation(*turns[: len(turns) // 2 * 2])
    if any(not m.content.strip() for m in row.messages):
        return
    encoded = encode(tokenizer, row)
    found = pieces(tokenizer, encoded.ids, encoded.scored)
    assert "".join(p.text for p in found) == tokenizer.decode(encoded.ids, skip_special_tokens=False)
    assert sum(p.tokens for p in found) == len(encoded.ids)


def _spans(printed):
    return re.findall(f"{OPEN}(.*?){CLOSE}", printed, re.S)


def _bare(text):
    """A printed text without what the preview adds to it."""
    furniture = str.maketrans("", "", f"{BORDER}{OPEN}{CLOSE}₀₁₂₃₄₅₆₇₈₉")
    return text.translate(furniture).replace(f"{LINE_BREAK}\n", "\n").replace("⇥", "\t")


@pytest.mark.parametrize("name", ROWS)
def test_marked_spans_are_the_answers_with_their_turn_end_and_nothing_else(tokenizer, name):
    row = conversation(*ROWS[name])
    heading, text = preview(tokenizer, ("rows.jsonl, line 7", row)).split("\n", 3)[2:]
    encoded = encode(tokenizer, row)
    counts = f"{len(row.messages)} messages, {len(encoded.ids)} tokens, {sum(encoded.scored)} of them scored"
    assert heading == f"rows.jsonl, line 7: {counts}"
    answers = [m.content + tokenizer.eos_token for m in row.messages if m.role == "assistant"]
    assert list(map(_bare, _spans(text))) == answers
    assert _bare(text) == render(tokenizer, row.messages, thinking=False, open_turn=False)


def test_a_pipe_gets_no_colour_and_whole_lines_and_a_terminal_both_marks(tokenizer):
    row = ("line 1", conversation("go " * 60, "gone " * 60))
    piped = preview(tokenizer, row)
    assert "\x1b" not in piped
    assert any(len(line) > 200 for line in piped.splitlines())
    coloured = preview(tokenizer, row, force_terminal=True, color_system="standard")
    assert "\x1b[1;4;36m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == piped


def test_the_legend_is_one_line_and_names_the_turn_end(tokenizer):
    legend = preview(tokenizer).splitlines()
    assert len(legend) == 1
    assert all(word in legend[0] for word in (f"{OPEN}carries loss{CLOSE}", tokenizer.eos_token, BORDER, LINE_BREAK))


def test_a_row_cannot_command_the_terminal(tokenizer):
    printed = preview(tokenizer, ("\x1b[2J", conversation("\x1b[31mred [bold]x[/bold] :smile:", "\x07")))
    assert "\x1b" not in printed and "\x07" not in printed
    assert r"\x1b" in printed and "smile" in printed.replace(BORDER, "") and "[bold]" in printed.replace(BORDER, "")


def test_a_row_that_cannot_be_encoded_is_said_and_the_others_follow(tokenizer):
    printed = preview(tokenizer, ("line 1", conversation("<|im_end|>", "x")), ("line 2", conversation("a", "b")))
    assert "line 1: cannot be encoded: turn 1 holds the special token" in printed
    assert "line 2: 2 messages" in printed


def test_a_text_that_the_tokenizer_changes_is_noted(tokenizer):
    assert "changes characters" in preview(tokenizer, ("line 1", conversation("e\u0301", "x")))
    assert "changes characters" not in preview(tokenizer, ("line 1", conversation("é", "x")))
