"""Reads an answer as JSON, strictly, and takes values apart into leaves, so that two of them can be compared."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any, Literal, NamedTuple

# Markdown's fence around the whole answer, with or without a language's name.
_FENCED = re.compile(r"```(?:[\w+-]*[ \t]*\n|[\w+-]*[ \t]+|(?=[\[{]))(?P<inside>.*?)\n?```", re.DOTALL)

# Values that are nested deeper answer nothing, and would take more of Python's stack than there is.
_DEEPEST = 100
# Exact for every number that Python reads as a whole number (4,300 digits at most).
_EXACT = Context(prec=5000, Emax=MAX_EMAX, Emin=MIN_EMIN)

Lists = Literal["ordered", "unordered"]
Leaf = tuple[str, str]


class Answer(NamedTuple):
    """An answer read as JSON. `is_json`: the answer, and nothing around it, is JSON. Without a value it is none at all.

    `value` has numbers as whole numbers and decimals, exactly as they are written.
    """

    is_json: bool
    value: Any
    has_value: bool

    @property
    def plain(self) -> Any:
        """The value with floats for decimals, as other libraries expect it."""
        return json.loads(json.dumps(self.value, default=float)) if self.has_value else None


NOTHING = Answer(is_json=False, value=None, has_value=False)


def read(text: str) -> Answer:
    """What a text says as JSON (RFC 8259).

    JSON in a Markdown fence is not JSON, since a machine that reads answers would stop at it, but what it says is
    plain, and it is read. An object that says a key twice, and NaN or Infinity, are not JSON and say nothing: the RFC
    leaves open which of the two values counts (section 4), and has no such numbers (section 6).
    """
    stripped = text.strip()
    fenced = _FENCED.fullmatch(stripped)
    try:
        value = json.loads(
            fenced["inside"] if fenced else stripped,
            parse_float=Decimal,
            parse_constant=_refuse,
            object_pairs_hook=_without_repeated_keys,
        )
        _refuse_depth(value)
    except (ValueError, ArithmeticError, RecursionError):
        return NOTHING
    return Answer(is_json=fenced is None, value=value, has_value=True)


def leaves(value: Any, lists: Lists) -> Counter[Leaf]:
    """Every leaf of a JSON value: its path and what it is, with how often it is there.

    Leaves are texts, numbers, true, false, null, and objects and lists that are empty. A number is its value: 1.0 is 1,
    and neither is true. In `unordered` lists a place is not part of the path.
    """
    return Counter(_walk(value, "", lists))


def same(first: Any, second: Any, lists: Lists) -> bool:
    """Whether two JSON values are equal whatever the order of their keys; and that of their lists, if `unordered`."""
    return _canonical(first, lists) == _canonical(second, lists)


def _walk(value: Any, path: str, lists: Lists) -> Iterator[Leaf]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _walk(inner, f"{path}/{_escaped(key)}", lists)
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from _walk(inner, f"{path}/{place if lists == 'ordered' else '*'}", lists)
    else:
        yield path, _scalar(value)


def _canonical(value: Any, lists: Lists) -> str:
    """Text that equal values share."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_canonical(value[key], lists)}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        parts = [_canonical(inner, lists) for inner in value]
        return "[" + ",".join(parts if lists == "ordered" else sorted(parts)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """Text that equal leaves share: JSON's, with numbers in one form."""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return str(_EXACT.normalize(Decimal(value))) if value else "0"
    return json.dumps(value)


def _escaped(key: str) -> str:
    """A key as a part of a path (JSON Pointer, RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def _refuse_depth(value: Any) -> None:
    """Raises ValueError for a value that is nested too deep."""
    level = [value]
    for _ in range(_DEEPEST):
        held = [
            outer.values() if isinstance(outer, dict) else outer for outer in level if isinstance(outer, dict | list)
        ]
        level = [inner for values in held for inner in values]
        if not level:
            return
    raise ValueError(f"nested more than {_DEEPEST} levels deep")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
