"""What both kinds of grammar share: words in two languages, the gaps in texts, and drawing rows that differ.

What a grammar's parts mean is decided by the kinds themselves: commands (`_commands`) and rows (`_row_grammar`).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from export.errors import DataError

Language = Literal["en", "zh"]
Scalar = bool | int | str
LANGUAGES: tuple[Language, ...] = ("en", "zh")
DUPLICATES_BEFORE_GIVING_UP = 20_000

R = TypeVar("R")


class Strict(BaseModel):
    """Base of all parts of a grammar: unchangeable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _several(texts: object) -> object:
    return (texts,) if isinstance(texts, str) else texts


Texts = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]


class Phrases(Strict):
    """The same thing said in different ways, per language; a single way needs no list."""

    en: Texts
    zh: Texts

    def of(self, language: Language) -> tuple[str, ...]:
        """The ways of saying it in one language."""
        return self.en if language == "en" else self.zh


def texts_in(node: JsonValue) -> Iterator[str]:
    """Every text anywhere in a text, list or object, an object's keys included."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from texts_in(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from texts_in(value)


def canonical(value: object) -> str:
    """Compact JSON; the order of the keys is the grammar's."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def different(draw: Callable[[], R], key: Callable[[R], str], rows: int, path: Path, what: str) -> Iterator[R]:
    """Draws until there are `rows` rows of different keys.

    Raises DataError where so many draws in a row bring nothing new that the grammar at `path` cannot make that many.
    """
    seen: set[str] = set()
    duplicates = 0
    while len(seen) < rows:
        row = draw()
        duplicates = duplicates + 1 if key(row) in seen else 0
        if duplicates > DUPLICATES_BEFORE_GIVING_UP:
            raise DataError(
                f"{path} makes only about {len(seen):,} different {what}, {rows:,} were asked for. Ask for fewer "
                "(data.rows), or give the grammar more words."
            )
        if duplicates == 0:
            seen.add(key(row))
            yield row
