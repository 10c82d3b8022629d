"""Which data template the first rows of a file call for.

There is no list of forms here: every shipped template with `detect: true` is tried on the rows, and it fits when it
maps most of them. Of two that fit, one that uses all fields of the other and more is the better; otherwise nothing is
guessed.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from export.errors import DataError
from finetune.data import template
from finetune.data.sources import Row, kind_of
from finetune.data.template import DataTemplate, RowMapper

ROWS_LOOKED_AT = 50
_OWN_TEMPLATE = (
    "Or set data.template to columns, such as {prompt: '{question}', answer: '{answer}'}, or to a file of your own: "
    "`fieldtune init` lists the forms to start one from."
)


class Detected(NamedTuple):
    """The template that the rows call for, and why, in a sentence."""

    template: str
    because: str


class _Fit(NamedTuple):
    """How a template does on the rows: how many it maps, of the fields it may use those that the rows have."""

    name: str
    mapped: int
    used: frozenset[str]
    problem: str


def detect(rows: Sequence[Row]) -> Detected:
    """The template for rows like these, of which the first are looked at.

    Raises DataError, with the fields that were found and the forms that are known, when no template fits or several
    fit equally well.
    """
    looked_at = rows[:ROWS_LOOKED_AT]
    if not looked_at:
        raise DataError("there are no rows to choose a template by. Give rows, or set data.template.")
    fits = [_fit(name, known, looked_at) for name, known in detectable().items()]
    good = [fit for fit in fits if fit.mapped * 2 > len(looked_at)]
    best = [fit for fit in good if not any(fit.used < other.used for other in good)]
    if len(best) == 1:
        return Detected(best[0].name, _because(best[0], looked_at))
    if best:
        names = " and ".join(f"{fit.name} ({', '.join(sorted(fit.used))})" for fit in best)
        raise DataError(
            f"{_found(looked_at)} {names} fit equally well; expected rows of one form. Set data.template to the one "
            f"that is meant. {_OWN_TEMPLATE}"
        )
    raise DataError(
        f"{_found(looked_at)} None of the known forms fits: {_known_forms()}.{_nearly(fits, looked_at)} "
        f"Rename the fields. {_OWN_TEMPLATE}"
    )


@lru_cache(maxsize=1)
def detectable() -> dict[str, DataTemplate]:
    """The shipped templates that `template: auto` may choose, by name."""
    loaded = ((name, template.load(template.find(name))) for name in template.shipped_names())
    return {name: known for name, known in loaded if known.detect}


def _fit(name: str, known: DataTemplate, rows: Sequence[Row]) -> _Fit:
    mapper = RowMapper(known)
    present = {field for row in rows for field in row.fields}
    mapped, problem = 0, ""
    for row in rows:
        try:
            mapper.conversation(row)
            mapped += 1
        except DataError as error:
            problem = problem or str(error)
    return _Fit(name, mapped, frozenset({*known.fields, *known.optional_fields} & present), problem)


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
