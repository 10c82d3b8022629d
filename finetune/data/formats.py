"""Which data template the first rows of a file call for.

There is no list of forms here: every shipped template with `detect: true` is tried on the rows, and it fits when it
maps most of them. Of two that fit, one that uses all fields of the other and more is the better; otherwise nothing is
guessed.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from export.chat import Message
from export.errors import DataError
from finetune.data import template
from finetune.data.sources import Row, kind_of
from finetune.data.template import DataTemplate, RowMapper

ROWS_LOOKED_AT = 50


class _Aim(NamedTuple):
    """What is made of a row, and how a user names the template for it where it cannot be told."""

    make: Callable[[RowMapper, Row], Sequence[Message]]
    name_one: str
    own: str


_LEARN = _Aim(
    make=lambda mapper, row: mapper.conversation(row).messages,
    name_one="Set data.template to the one that is meant.",
    own="Or set data.template to columns, such as {prompt: '{question}', answer: '{answer}'}, or to a file of your "
    "own: `fieldtune init` lists the forms to start one from.",
)
_ASK = _Aim(
    make=RowMapper.prompt,
    name_one="Name the one that is meant with --template.",
    own="Or say what is asked with --prompt, such as --prompt '{review}', or name a template with --template.",
)


class Detected(NamedTuple):
    """The template that the rows call for, and why, in a sentence."""

    template: str
    because: str


class _Fit(NamedTuple):
    """How a template does on the rows: how many it maps and to what, of the fields it may use those that are there."""

    name: str
    mapped: int
    used: frozenset[str]
    problem: str
    made: tuple[Sequence[Message] | None, ...]


def detect(rows: Sequence[Row]) -> Detected:
    """The template for rows like these, of which the first are looked at.

    Raises DataError, with the fields that were found and the forms that are known, when no template fits or several
    fit equally well.
    """
    looked_at, fits = _tried(rows, _LEARN)
    best = _best(fits, looked_at)
    if len(best) != 1:
        raise _undecided(fits, best, looked_at, _LEARN)
    return Detected(best[0].name, _because(best[0], looked_at))


def detect_prompt(rows: Sequence[Row]) -> Detected:
    """The template for rows of which only the prompt is made, and that may lack an answer; raises as `detect` does.

    Of several that fit equally well and ask the same, any will do.
    """
    looked_at, fits = _tried(rows, _ASK)
    best = _best(fits, looked_at)
    if not best or any(fit.made != best[0].made for fit in best):
        raise _undecided(fits, best, looked_at, _ASK)
    return Detected(best[0].name, _because(best[0], looked_at))


def _tried(rows: Sequence[Row], aim: _Aim) -> tuple[Sequence[Row], list[_Fit]]:
    """The rows that are looked at, and how each template does on them."""
    looked_at = rows[:ROWS_LOOKED_AT]
    if not looked_at:
        raise DataError(f"there are no rows to choose a template by. Give rows. {aim.own}")
    return looked_at, [_fit(name, known, looked_at, aim) for name, known in detectable().items()]


def _best(fits: Sequence[_Fit], rows: Sequence[Row]) -> list[_Fit]:
    """Those that map most of the rows, and of whose fields no other uses all and more."""
    good = [fit for fit in fits if fit.mapped * 2 > len(rows)]
    return [fit for fit in good if not any(fit.used < other.used for other in good)]


def _undecided(fits: Sequence[_Fit], best: Sequence[_Fit], rows: Sequence[Row], aim: _Aim) -> DataError:
    """What is said where no template fits, or several fit equally well."""
    if best:
        names = " and ".join(f"{fit.name} ({', '.join(sorted(fit.used))})" for fit in best)
        return DataError(
            f"{_found(rows)} {names} fit equally well; expected rows of one form. {aim.name_one} {aim.own}"
        )
    return DataError(
        f"{_found(rows)} None of the known forms fits: {_known_forms()}.{_nearly(fits, rows)} "
        f"Rename the fields. {aim.own}"
    )


@lru_cache(maxsize=1)
def detectable() -> dict[str, DataTemplate]:
    """The shipped templates that `template: auto` may choose, by name."""
    loaded = ((name, template.load(template.find(name))) for name in template.shipped_names())
    return {name: known for name, known in loaded if known.detect}


def _fit(name: str, known: DataTemplate, rows: Sequence[Row], aim: _Aim) -> _Fit:
    mapper = RowMapper(known)
    present = {field for row in rows for field in row.fields}
    made: list[Sequence[Message] | None] = []
    problem = ""
    for row in rows:
        try:
            made.append(aim.make(mapper, row))
        except DataError as error:
            made.append(None)
            problem = problem or str(error)
    mapped = sum(messages is not None for messages in made)
    used = frozenset({*known.fields, *known.optional_fields} & present)
    return _Fit(name, mapped, used, problem, tuple(made))


def _because(fit: _Fit, rows: Sequence[Row]) -> str:
    known = detectable()[fit.name]
    present = dict.fromkeys(str(field) for row in rows for field in row.fields)
    unused = [field for field in present if field not in fit.used]
    rest = f"; not used: {', '.join(unused)}" if unused else ""
    how_many = f"{'all' if fit.mapped == len(rows) else fit.mapped} of the first {len(rows)} rows"
    fields = ", ".join(field for field in present if field in fit.used)
    return f"{how_many} have its form, with {fields}: {known.description.rstrip('.')}{rest}."


def _found(rows: Sequence[Row]) -> str:
    kinds: dict[str, str] = {}
    for row in rows:
        for field, value in row.fields.items():
            if kinds.get(str(field), "null") == "null":
                kinds[str(field)] = kind_of(value)
    fields = ", ".join(f"{field} ({kind})" for field, kind in kinds.items()) or "none"
    return f"{rows[0].origin}: no data template can be chosen by the rows' fields, which are: {fields}."


def _known_forms() -> str:
    return "; ".join(f"{name}: {', '.join(known.fields)}" for name, known in detectable().items())


def _nearly(fits: Sequence[_Fit], rows: Sequence[Row]) -> str:
    """What kept a template from fitting whose fields are all there."""
    known = detectable()
    near = [fit for fit in fits if fit.problem and known[fit.name].fields.keys() <= rows[0].fields.keys()]
    return f" {near[0].name} has these fields, but {near[0].problem.rstrip('.')}." if near else ""
