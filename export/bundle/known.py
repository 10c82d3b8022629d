"""What training rows say of each field of an answer: the values it may have, or that it repeats the command's words.

A device holds every action to it (`device/client.py`, whose `leaves` are the fields). What a field's kind is, is read
off the rows, and how often the rule would refuse right answers is counted on rows that took no part.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from export.bundle.device.client import leaves, meaning_problem, says, spoken
from export.frozen import Frozen

# A field's values are closed when they repeat: few of them, each often enough that another one would have been seen.
_MOST_VALUES = 64
_LEAST_ROWS_A_VALUE = 10
# A field repeats the command when nearly all its values do; those that do not would be refused.
_LEAST_QUOTED = 0.995
_LEAST_ROWS = 10


class Asked(NamedTuple):
    """A command and the value of its reference answer."""

    command: str
    action: Any


class FieldRule(Frozen):
    """What a field may hold: one of `values` (closed), words of the command (quoted), or anything (free).

    `said` is in how many of the `rows` the command holds the value.
    """

    kind: Literal["closed", "quoted", "free"]
    rows: int
    said: int
    values: tuple[Any, ...] = ()


class KnownValues(Frozen):
    """A rule for every field that training rows have. `refused` of `held_out` right answers would break one."""

    fields: dict[str, FieldRule]
    training_rows: int
    held_out: int = 0
    refused: int = 0
    refused_because: tuple[str, ...] = Field(default=(), description="The first reasons, in words.")


def known_values(training: Sequence[Asked], held_out: Sequence[Asked]) -> KnownValues:
    """The rules of the training rows' fields, and how they do on held-out rows."""
    seen: defaultdict[str, list[tuple[Any, bool]]] = defaultdict(list)
    for row in training:
        said = spoken(row.command)
        for path, value in leaves(row.action):
            seen[path].append((value, says(said, value)))
    known = KnownValues(
        fields={path: _rule(found) for path, found in sorted(seen.items())}, training_rows=len(training)
    )
    problems = [meaning_problem(known.model_dump(), row.action, row.command) for row in held_out]
    refused = [problem for problem in problems if problem is not None]
    counted = {"held_out": len(held_out), "refused": len(refused), "refused_because": tuple(refused[:10])}
    return known.model_copy(update=counted)


def _rule(found: Sequence[tuple[Any, bool]]) -> FieldRule:
    # by type and JSON: 1, 1.0 and true are three values to the client, and a list is one too
    values = tuple({(type(value), json.dumps(value)): value for value, _ in found}.values())
    rows, said = len(found), sum(is_said for _, is_said in found)
    if len(values) <= _MOST_VALUES and rows >= _LEAST_ROWS_A_VALUE * len(values):
        return FieldRule(kind="closed", rows=rows, said=said, values=values)
    is_quoted = rows >= _LEAST_ROWS and said >= _LEAST_QUOTED * rows
    return FieldRule(kind="quoted" if is_quoted else "free", rows=rows, said=said)
