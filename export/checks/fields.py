"""Does the answer say the right things in the right form? Structured output, field by field.

Whether it is JSON at all, whether it keeps a schema, whether it equals the reference, how many of its slots are right,
and whether what is out of scope is refused. How answers are read is `_json_answer.read`'s; slots are the leaves of a
JSON value, each its path and its value, and right where both are.
"""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from export.checks._base import Check, Items, Measurement, Observation, measurement, share
from export.checks._json_answer import Answer, Lists, leaves, read, same
from export.checks._json_schema import schema_validator

_SCHEMA_KEY = "check.measures.fields.json_schema"
_EXPLAINS = "no limit is asked of it: F1 by row is judged"


class Fields(Check):
    """Answers in JSON: valid, by a schema, equal to the reference, slot by slot, and refusing what is out of scope."""

    on_by_default: ClassVar[bool] = False
    reads: ClassVar[str] = "JSON that keeps the schema, where there is one"
    right_or_wrong: ClassVar[bool] = True

    json_schema: str | dict[str, Any] | None = Field(
        default=None, description="What answers must keep: a JSON schema, or the path of a file that holds one."
    )
    refusal: dict[str, Any] | None = Field(
        default=None,
        description="The fields and values that make an answer a refusal, such as {task: refuse}: rows whose reference "
        "has them are out of scope.",
    )
    lists: Lists = Field(
        default="ordered",
        description="Whether the order of a list's values counts. Where it does not, slots of objects in a list are "
        "counted by themselves: which of them stood in one object, fields_match tells and F1 does not.",
    )

    def options(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """None. Raises RecipeError for a schema that cannot be used."""
        if self.json_schema is not None:
            schema_validator(self.json_schema, _SCHEMA_KEY)
        return ()

    def unread(self, expected: Sequence[str], labels: tuple[str, ...]) -> tuple[str, ...]:
        """Those that are no JSON, whose rows are left out, and those that break the schema, which none can keep."""
        keeps = None if self.json_schema is None else schema_validator(self.json_schema, _SCHEMA_KEY)

        @cache
        def is_unfit(text: str) -> bool:
            answer = read(text)
            return not answer.has_value or (keeps is not None and not keeps(answer.plain))

        return tuple(filter(is_unfit, expected))

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """Scores of the rows whose reference is JSON; the others ask for no fields, and are counted in a note."""
        pairs = [(read(gold), read(answer)) for gold, answer in zip(work.expected(), work.given(seen), strict=True)]
        asked = [(gold, answer) for gold, answer in pairs if gold.has_value]
        note = (
            f"{len(pairs) - len(asked):,} rows whose reference is not JSON are left out"
            if len(asked) < len(pairs)
            else ""
        )
        slots = [_slots(gold, answer, self.lists) for gold, answer in asked]
        matches = [float(a.has_value and same(g.value, a.value, self.lists)) for g, a in asked]
        found = [
            share("fields_match", seen, matches, note=note),
            share("fields_row_f1", seen, [row.f1 for row in slots], note=note),
            _over_slots(seen, "slot_f1", [row.of_f1 for row in slots]),
            _over_slots(seen, "slot_precision", [row.of_precision for row in slots]),
            _over_slots(seen, "slot_recall", [row.of_recall for row in slots]),
            share("fields_json", seen, [float(answer.is_json) for _, answer in asked], note=note),
        ]
        if self.json_schema is not None:
            keeps = schema_validator(self.json_schema, _SCHEMA_KEY)
            kept = [float(answer.has_value and keeps(answer.plain)) for _, answer in asked]
            found.append(share("fields_schema", seen, kept, note=note))
        return (*found, *self._refusals(seen, asked))

    def _refusals(self, seen: Observation, asked: Sequence[tuple[Answer, Answer]]) -> list[Measurement]:
        """Of the rows out of scope the share that is refused, and of the others the share that is not."""
        if self.refusal is None:
            return []
        marks = self.refusal
        refused = [(_refuses(gold, marks), _refuses(answer, marks)) for gold, answer in asked]
        out, within = [a for g, a in refused if g], [a for g, a in refused if not g]
        spared = "rows in scope that are not refused, right or not: no limit is asked of it"
        return [
            share("refusal", seen, list(map(float, out)), note="rows out of scope that are refused"),
            share("in_scope_answered", seen, [float(not a) for a in within], note=spared, judged=False),
        ]


class Slots(NamedTuple):
    """One row's slots, counted: right, said though they should not be, and left out or said wrong."""

    right: int
    extra: int
    missed: int

    @property
    def f1(self) -> float:
        """The row's own F1: 2 right / (2 right + extra + missed)."""
        return 2 * self.right / (2 * self.right + self.extra + self.missed)

    @property
    def of_f1(self) -> tuple[int, int]:
        """Numerator, and what is left of the denominator, of F1 over all rows; likewise below."""
        return 2 * self.right, self.extra + self.missed

    @property
    def of_precision(self) -> tuple[int, int]:
        """Right slots, and those that should not be there."""
        return self.right, self.extra

    @property
    def of_recall(self) -> tuple[int, int]:
        """Right slots, and those that are missing."""
        return self.right, self.missed


def _slots(gold: Answer, answer: Answer, lists: Lists) -> Slots:
    wanted = leaves(gold.value, lists)
    said = leaves(answer.value, lists) if answer.has_value else Counter()
    right = (wanted & said).total()
    return Slots(right, said.total() - right, wanted.total() - right)


def _over_slots(seen: Observation, check: str, counts: Sequence[tuple[int, int]]) -> Measurement:
    """A ratio of sums over rows, whose error counts rows and not slots as independent (Cochran's ratio estimator).

    As a mean: each row brings as many ones as its numerator counts, and zeros for the rest of its denominator.
    """
    sample = [[1.0] * right + [0.0] * rest for right, rest in counts]
    note = f"over all slots of all rows; {_EXPLAINS}"
    return measurement(check, seen.subject, sample, unit="share", higher_is_better=True, note=note, judged=False)


def _refuses(answer: Answer, marks: dict[str, Any]) -> bool:
    said = answer.value
    return isinstance(said, dict) and all(
        key in said and same(said[key], _as_read(value), "ordered") for key, value in marks.items()
    )


def _as_read(value: Any) -> Any:
    """A setting's value as an answer's is read: with decimals for floats."""
    return read(json.dumps(value)).value


step = Fields
