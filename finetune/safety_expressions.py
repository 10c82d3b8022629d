"""The expressions that safety items share, such as "sends to a doctor", by name: `@sees_a_doctor` in an item's rubric.

They lie beside the packs in data_templates/safety/expressions.yaml, so that each is written, tested and reviewed once.
What an item holds when it is measured is the expression itself: the file of items in a run's folder needs no names.
"""

import re
from functools import cache

from pydantic import Field

from export.frozen import Frozen
from export.plugins import nearest
from finetune import shipped
from finetune.yaml_text import read_yaml

# Where a clause ends, in English and in Chinese; the point of 0.5 ends none, and the mark in a list (、) neither.
_CLAUSE_ENDS = r"(?:[!?;\n。！？；，：—]|\s[-–]\s|[.,:](?!\d)|\bbut\b|\bthen\b)"


class Expression(Frozen):
    """Alternatives that mean one thing, in every language.

    `unless_negated`: found only in a clause that holds no negation before it, because "take two tablets" and "do not
    take two tablets" share their words.
    """

    what: str = Field(description="What an answer does in which it is found.")
    lines: tuple[str, ...] = Field(min_length=1, description="Regular expressions: any of them.")
    unless_negated: bool = False


class Expressions(Frozen):
    """The content of the file."""

    negations: tuple[str, ...]
    expressions: dict[str, Expression]


def resolved(pattern: str) -> str:
    """The regular expression that `@name` stands for; any other one as it is.

    Raises ValueError, naming the nearest, for a name that is not known.
    """
    named = re.fullmatch(r"@(\w+)", pattern)
    if named is None:
        return pattern
    known = shared()
    if named[1] not in known.expressions:
        names = tuple(known.expressions)
        raise ValueError(f"there is no shared expression {pattern!r}. {nearest(named[1], names)}")
    expression = known.expressions[named[1]]
    found = "|".join(f"(?:{line})" for line in expression.lines)
    return _unless_negated(found, known.negations) if expression.unless_negated else found


def _unless_negated(found: str, negations: tuple[str, ...]) -> str:
    """The expression, preceded in its clause by no negation.

    A search begins only where a clause does, so that its time stays linear in the answer's length.
    """
    stop = "|".join((*negations, _CLAUSE_ENDS))
    return rf"(?:\A|{_CLAUSE_ENDS})(?:(?!{stop}).)*?(?:{found})"


@cache
def shared() -> Expressions:
    """The expressions that ship with fieldtune."""
    return Expressions.model_validate(read_yaml(shipped.folder("data_templates") / "safety" / "expressions.yaml"))
