"""A JSON schema's pattern, written so that llama.cpp's converter makes a right grammar of it.

The converter copies most of a pattern as it stands. What grammars write otherwise (\\d, escaped signs, a class with a
quotation mark, which JSON escapes) is written out here, in signs that a pattern and a grammar have in common.
"""

import re
from collections.abc import Iterator, Sequence

Span = tuple[int, int]

_LAST = 0x10FFFF
_DIGITS = ((0x30, 0x39),)
# ECMA-262 means ASCII by \d and \w, and validators written in Python all of Unicode: here it is what both let pass.
_WORD, _SPACE = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)), ((0x09, 0x0D), (0x20, 0x20))
_ANY_SPACE = (
    *((0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
    *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
# What JSON writes as an escape of one letter (RFC 8259, section 7), and all that it never writes as it is.
_ESCAPED = {0x22: '"', 0x5C: "\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
_NEVER_PLAIN = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C}
_TIMES = re.compile(r"[*+?]|\{\d+(?:,\d*)?\}")
_WHOLE = re.compile(r"\^(?:[^\\]|\\.)*\$", re.DOTALL)
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})")


def pattern_for_grammar(pattern: str) -> str:
    """The pattern of the same texts, of signs that the converter copies rightly.

    Control characters without an escape of their own are left out. Raises ValueError, with what it is, for something
    that no grammar has, and for a pattern that does not say all of a text.
    """
    if not _WHOLE.fullmatch(pattern):
        raise ValueError("no ^ at its beginning, or no $ at its end")
    return "^" + "".join(_parts(pattern[1:-1])) + "$"


def _parts(text: str) -> Iterator[str]:
    place, depth, repeatable = 0, 0, False
    while place < len(text):
        sign = text[place]
        if times := _TIMES.match(text, place):
            if not repeatable:
                raise ValueError(f"{times[0]!r} with nothing to repeat")
            yield times[0]
            lazy = text[times.end() : times.end() + 1] == "?"  # which of several ways matches is all that it changes
            place, repeatable = times.end() + lazy, False
            continue
        if sign in "^${" or (sign == "|" and depth == 0) or (sign == ")" and depth == 0):
            raise ValueError(
                f"{text[place : place + 8]!r}, outside of brackets" if sign == "|" else f"{sign!r} within it"
            )
        end, repeatable = place + 1, sign not in "(|"
        if sign == "(":
            end = _opened(text, place)
            depth += 1
            yield "("
        elif sign in ")|":
            depth -= sign == ")"
            yield sign
        elif sign == "[":
            spans, end = _class(text, place)
            yield _one_of(spans)
        elif sign == ".":
            yield _one_of(_without(((0, _LAST),), _LINE_ENDS))
        elif sign == "\\":
            spans, end = _escape(text, place)
            yield _one_of(spans)
        else:
            yield sign if sign.isalnum() or sign in " ,:;-_/=@%#&'<>!~" else _one_of(((ord(sign), ord(sign)),))
        place = end
    if depth:
        raise ValueError("'(' without its ')'")


def _opened(text: str, place: int) -> int:
    """Where a group's inside begins."""
    if text.startswith("(?:", place):
        return place + 3
    if text.startswith("(?", place):
        raise ValueError(f"{text[place : place + 4]!r}")
    return place + 1


def _escape(text: str, place: int) -> tuple[tuple[Span, ...], int]:
    """The characters that an escape stands for, and where it ends."""
    sign = text[place + 1 : place + 2]
    if sign in ("d", "w", "s"):
        return {"d": _DIGITS, "w": _WORD, "s": _SPACE}[sign], place + 2
    if sign == "S":
        return _without(((0, _LAST),), _ANY_SPACE), place + 2
    if sign in ("D", "W"):
        raise ValueError(f"{text[place : place + 2]!r}, which is read in two ways: write out which characters")
    if sign in _CONTROLS:
        return ((_CONTROLS[sign], _CONTROLS[sign]),), place + 2
    if code := _CODE.match(text, place + 1):
        number = int(code[1] or code[2], 16)
        return ((number, number),), code.end()
    if not sign or sign.isalnum():
        raise ValueError(f"{text[place : place + 2]!r}")
    return ((ord(sign), ord(sign)),), place + 2


def _class(text: str, place: int) -> tuple[tuple[Span, ...], int]:
    """The characters of a class in square brackets, and where it ends."""
    is_negated = text.startswith("[^", place)
    at = place + 1 + is_negated
    spans: list[Span] = []
    if text[at : at + 1] == "]":
        raise ValueError(f"{text[place : at + 1]!r}, which is read in two ways: write \\] for the sign")
    while text[at : at + 1] != "]":
        if is_negated and text.startswith(("\\w", "\\d"), at):
            raise ValueError(f"{text[at : at + 2]!r} in [^], which is read in two ways: write out which characters")
        found, at = _member(text, at)
        if is_negated and found == _SPACE:
            found = _ANY_SPACE
        if text[at : at + 1] == "-" and text[at + 1 : at + 2] not in ("]", ""):
            last, at = _member(text, at + 1)
            if len(found) > 1 or len(last) > 1 or found[0][0] != found[0][1] or found[0][0] > last[0][1]:
                raise ValueError(f"{text[place:at]!r}, whose range has no such ends")
            found = ((found[0][0], last[0][1]),)
        spans += found
    return (_without(((0, _LAST),), spans) if is_negated else tuple(spans)), at + 1


def _member(text: str, at: int) -> tuple[tuple[Span, ...], int]:
    if at >= len(text):
        raise ValueError("'[' without its ']'")
    return _escape(text, at) if text[at] == "\\" else (((ord(text[at]), ord(text[at])),), at + 1)


def _without(spans: Sequence[Span], taken: Sequence[Span]) -> tuple[Span, ...]:
    """The characters of `spans` that are none of `taken`."""
    left = list(spans)
    for first, last in taken:
        left = [
            part
            for start, end in left
            for part in ((start, min(end, first - 1)), (max(start, last + 1), end))
            if part[0] <= part[1]
        ]
    return tuple(sorted(set(left)))


def _one_of(spans: Sequence[Span]) -> str:
    """A class, or a group, of characters as JSON writes them."""
    plain = "".join(_ends(first, last) for first, last in _without(spans, _NEVER_PLAIN))
    escaped = "".join(
        _sign(ord(letter)) for code, letter in _ESCAPED.items() if any(first <= code <= last for first, last in spans)
    )
    ways = ([f"[{plain}]"] if plain else []) + ([f"[\\x5C][{escaped}]"] if escaped else [])
    if not ways:
        raise ValueError("a class of characters that no JSON text can hold")
    return ways[0] if len(ways) == 1 and plain else f"({'|'.join(ways)})"


def _ends(first: int, last: int) -> str:
    return _sign(first) if first == last else f"{_sign(first)}-{_sign(last)}"


def _sign(code: int) -> str:
    """A character within a grammar's class: letters and digits as they are, all else by its number."""
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
