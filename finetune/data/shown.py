"""A row's text as a reader is shown it: nothing in it can command a terminal or turn the reading order about.

Rows are written by anyone. An escape sequence printed as it stands would move the cursor or recolour the screen, and a
direction override would make a page say something else than its source.
"""

import re

LINE_BREAK = "↵"
# Control characters but for tab and line feed, line and paragraph separators, byte order marks, and the marks that
# change the reading direction. Joiners stay: emoji and several scripts are spelled with them.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    r"""The text with each character that commands rather than shows spelled out, as in \x1b; line breaks stay."""
    return _COMMANDS.sub(lambda found: _spelled(found.group()), text)


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def in_one_line(text: str, characters: int) -> str:
    """The text, visible, on one line and at most so long; an ellipsis stands for what is left out."""
    # one character more than is needed tells whether anything is left out, however long the text is
    flat = re.sub(r"\s+", " ", visible(text[: 4 * characters].replace("\n", LINE_BREAK))).strip()
    is_cut = len(flat) > characters or len(text) > 4 * characters
    return f"{flat[: characters - 1]}…" if is_cut else flat
