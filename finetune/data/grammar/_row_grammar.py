"""The schema of a row grammar: rows with the very fields of a data template, in kinds, filled from slots.

    slots:
      count: {range: [2, 9]}
      price: {range: [2, 9]}
      cost: {compute: "count * price"}
      fruit:
        values:
          - {value: apple, en: apple, zh: 苹果, also: {many: {en: apples, zh: 苹果}}}
    rows:
      - name: cost
        share: 1
        fields:
          question: {en: "How much are {count} {fruit:many} at {price} coins?", zh: "..."}
          answer: "{count} * {price} = {cost}\n#### {cost}"
        group: "{count} {price}"

A *node* is a text, a list or an object of nodes, or any other JSON value; an object with the keys `en` and `zh` alone
is a choice of texts, by the row's language. In a text `{slot}` stands for the slot's words, `{slot:value}` for its
value and `{slot:name}` for what the value has under `also`; a text that is nothing but `{slot:...}` keeps the type. A
slot is the same wherever it stands in a row. `{language}` is always there.

Rows of one `group` never stand in two splits where the recipe says `data.group_by: group`. Slots stand there for their
values, which are the same in both languages, and `{slot:words}` for the words; without it a row is its own group.

What a grammar must be beyond its schema is checked in `_row_checks`; drawing rows is `_row_drawing`.
"""

import re
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from finetune.data.grammar._words import LANGUAGES, Language, Phrases, Scalar, Strict

LANGUAGE, VALUE, WORDS = "language", "value", "words"
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")


class Value(Phrases):
    """One value of a slot: as answers write it, the ways of saying it, and what else belongs to it."""

    value: Scalar
    also: dict[str, Phrases | Scalar] = Field(default={})

    def part(self, name: str) -> Phrases | Scalar:
        """The value itself, its words, or what it has under a name of `also`."""
        return self.value if name == VALUE else self if name == WORDS else self.also[name]


def plain(value: Scalar) -> Value:
    """A value that is said as it is written, in both languages: a number, a letter."""
    return Value(value=value, en=(str(value),), zh=(str(value),))


def _as_value(given: object) -> object:
    return plain(given) if isinstance(given, bool | int | str) else given


class Slot(Strict):
    """A gap in texts. Its values are listed, or a range of numbers, or other ones of another slot, or computed."""

    values: tuple[Annotated[Value, BeforeValidator(_as_value)], ...] = ()
    range: tuple[int, int] | None = None
    another: str | None = None
    differs_in: str | None = None
    compute: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("values", "range", "another", "compute") if getattr(self, name) not in (None, ())]
        if given not in (["values"], ["range"], ["another"], ["compute"], ["values", "compute"]):
            found = " and ".join(given) or "none"
            raise ValueError(f"a slot has values, range, another or compute (or values and compute); found {found}")
        if self.differs_in is not None and self.another is None:
            raise ValueError("differs_in says in what another value differs; it stands beside another")
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError(f"range is [smallest, largest]; found {list(self.range)}")
        return self


class Kind(Strict):
    """Rows of one kind: how often they come, which values their slots may take, and what their fields hold."""

    name: str
    share: float = Field(gt=0)
    languages: tuple[Language, ...] = Field(default=LANGUAGES, min_length=1)
    only: dict[str, tuple[Scalar, ...]] = Field(default={})
    fields: dict[str, JsonValue] = Field(min_length=1)
    group: str | None = None


class RowGrammar(Strict):
    """A whole file."""

    name: str
    description: str
    slots: dict[str, Slot] = Field(default={})
    rows: tuple[Kind, ...] = Field(min_length=1)


def is_choice(node: JsonValue) -> bool:
    """Whether a node is a choice of texts by language."""
    return isinstance(node, dict) and node.keys() == {"en", "zh"}
