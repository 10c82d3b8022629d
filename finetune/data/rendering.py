"""Texts over a row's fields: Jinja in a sandbox, and direct access where a text only names fields.

Most templates say `{{ field }}` and nothing else, and millions of rows are read: such a text is not rendered by Jinja
but put together here, with the same result and the same errors. What Jinja would print as Python's own words (None,
['a'], True) is refused with the name of the field.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from export.errors import DataError
from export.plugins import nearest
from finetune.data.sources import Row, kind_of

WHOLE_ROW = "row"
# A row, and all names that Jinja knows for it, to the words.
Rendered = Callable[[Row, Mapping[str, Any]], str]
_Chain = tuple[str | int, ...]


class Text:
    """One text of a template made ready. `place` names it in errors; raises jinja2.TemplateSyntaxError."""

    def __init__(self, source: str, place: str):
        self.place = place
        parsed = environment().parse(source)
        parts = _plain_parts(parsed)
        self.needs_jinja = parts is None
        self.render: Rendered = _by_jinja(source, parsed, place) if parts is None else _by_hand(parts, place)


def environment() -> ImmutableSandboxedEnvironment:
    """The one Jinja environment of all templates; it keeps nothing of a row."""
    return _environment()


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=_finalize)
    # Jinja's own globals would answer for a field of the same name that a row lacks
    made.globals.clear()
    made.filters |= {"compact_json": compact_json, "collect": collect, "pick": pick}
    return made


def compact_json(value: Any) -> str:
    """JSON without spaces, in the order given, with letters of every script as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_no_json)


def collect(entries: Iterable[Mapping[str, Any]], key: str, value: str) -> dict[str, Any]:
    """A mapping from each entry's `key` to its `value`, in order of appearance; a repeated key's values as a list."""
    collected: dict[str, list[Any]] = {}
    for entry in entries:
        collected.setdefault(entry[key], []).append(entry[value])
    return {name: values[0] if len(values) == 1 else values for name, values in collected.items()}


def pick(fields: Mapping[str, Any], names: Iterable[str], words: Mapping[Any, Any]) -> dict[str, Any]:
    """Those of the named fields whose value has a word in `words`, as that word; a word of none leaves a field out.

    Raises ValueError for a field that is missing or whose value has no word.
    """
    picked = {}
    for name in names:
        if name not in fields:
            raise ValueError(f"the field {name!r} is missing")
        if fields[name] not in words:
            known = ", ".join(map(str, words))
            raise ValueError(f"the field {name!r} holds {fields[name]!r}; expected one of {known}")
        if (word := words[fields[name]]) is not None:
            picked[name] = word
    return picked


def is_jinja(text: str) -> bool:
    """Whether a text is Jinja, where it may also be the name of a field."""
    return "{{" in text or "{%" in text


def printing(field: str) -> str:
    """Jinja that prints a field of any name."""
    return "{{ " + f"{WHOLE_ROW}[{json.dumps(field, ensure_ascii=False)}]" + " }}"


def names_in(text: str) -> set[str]:
    """The names that a text uses. Raises jinja2.TemplateSyntaxError where it is not sound Jinja."""
    return jinja2.meta.find_undeclared_variables(environment().parse(text))


class _Field(str):
    """A part of a text that is a field's value; other parts are words."""


def _plain_parts(parsed: nodes.Template) -> tuple[str, ...] | None:
    """The text's words and fields where it is nothing but these; None where Jinja has to work."""
    parts: list[str] = []
    for node in parsed.body:
        if not isinstance(node, nodes.Output):
            return None
        for part in node.nodes:
            chain = _chain(part)
            if isinstance(part, nodes.TemplateData):
                parts.append(part.data)
            elif isinstance(part, nodes.Const) and isinstance(part.value, str):
                parts.append(part.value)
            elif chain and len(chain) == 1 and chain[0] != WHOLE_ROW:
                parts.append(_Field(chain[0]))
            elif chain and len(chain) == 2 and chain[0] == WHOLE_ROW and isinstance(part, nodes.Getitem):
                parts.append(_Field(chain[1]))
            else:
                return None
    return tuple(parts)


def _by_hand(parts: tuple[str, ...], place: str) -> Rendered:
    if len(parts) == 1 and isinstance(name := parts[0], _Field):

        def one_field(row: Row, values: Mapping[str, Any]) -> str:
            value = row.fields.get(name)
            return value if type(value) is str else _as_text(value, name, row, place)

        return one_field

    def joined(row: Row, values: Mapping[str, Any]) -> str:
        fields = row.fields
        return "".join(
            part
            if type(part) is str
            else value
            if type(value := fields.get(part)) is str
            else _as_text(value, part, row, place)
            for part in parts
        )

    return joined


def _as_text(value: Any, name: str, row: Row, place: str) -> str:
    """A value that is not a text, as one: a number as it is written; all else is refused."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and not _is_no_number(value):
        return str(value)
    if name not in row.fields and value is None:
        raise missing(name, row, f", which {place} names,")
    raise _not_text(value, f"the field {name!r}", name, row, place)


def _is_no_number(value: object) -> bool:
    """Whether a value is NaN or infinite, as tables write what is missing."""
    return isinstance(value, float) and not math.isfinite(value)


def missing(name: str, row: Row, why: str = "") -> DataError:
    """What to say of a row that lacks a field; `why` says who asks for it."""
    here = tuple(map(str, row.fields))
    hint = nearest(name, here) if here else "It has none."
    return DataError(
        f"{row.origin}: the field {name!r}{why} is missing. {hint} Add it to the row, or choose another template."
    )


def _not_text(value: Any, what: str, path: str, row: Row, place: str) -> DataError:
    if value is None:
        found, remedy = "is null", f"Fill it in or remove the row; or let the template test it: {{% if {path} %}}."
    elif _is_no_number(value):
        found, remedy = "is not a number (NaN or infinite)", "Fill it in or remove the row."
    elif isinstance(value, bool):
        found = f"holds {json.dumps(value)}"
        remedy = f"Let the template say what it means: {{{{ 'yes' if {path} else 'no' }}}}."
    else:
        found = f"holds {kind_of(value)}, {value!r:.60}"
        one = f"{path}[0]" if isinstance(value, list) else f"{path}['name']"
        remedy = f"Let the template take one entry ({{{{ {one} }}}}) or write it as JSON ({path} | compact_json)."
    return DataError(f"{row.origin}: {place} cannot be made: {what} {found}; expected text. {remedy}")


class _UnprintableError(ValueError):
    """Jinja was about to print a value that is no text."""

    def __init__(self, value: Any):
        super().__init__(f"{kind_of(value)} is printed")
        self.value = value


def _finalize(value: Any) -> Any:
    """Refuses what Jinja would print as Python: None, lists, and a mapping's method found in place of its key."""
    if isinstance(value, str | jinja2.Undefined):
        return value
    if callable(value):
        raise ValueError("a method is printed; reach a key of that name with brackets: row['items']")
    if value is None or isinstance(value, bool | list | tuple | dict) or _is_no_number(value):
        raise _UnprintableError(value)
    return value


def _by_jinja(source: str, parsed: nodes.Template, place: str) -> Rendered:
    template = environment().from_string(source)
    printed = tuple(_printed(parsed))

    def render(row: Row, values: Mapping[str, Any]) -> str:
        try:
            return template.render(values)
        except _UnprintableError as error:
            path = next((path for path in printed if _at(path, values) is error.value), None)
            name = "the value" if path is None else _spelt(path)
            what = f"the field {name!r}" if path is not None and len(path) == 1 else f"{name} of this row"
            what = "a value that is printed" if path is None else what
            raise _not_text(error.value, what, name, row, place) from None
        # what a template does to a row can fail in any way Python can; each is the row's or the template's fault
        except Exception as error:
            fields = ", ".join(map(str, row.fields))
            raise DataError(
                f"{row.origin}: {place} cannot be made: {str(error).rstrip('.')}. Fields of this row: {fields}. "
                "Mend the row, or let the template test for it."
            ) from error

    return render


def _chain(node: nodes.Node) -> _Chain | None:
    """The keys that an expression such as `answers[0].text` takes, one after the other; None for any other."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    if isinstance(node, nodes.Getattr) and (above := _chain(node.node)):
        return (*above, node.attr)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and (above := _chain(node.node)):
        return (*above, node.arg.value) if isinstance(node.arg.value, str | int) else None
    return None


def _printed(parsed: nodes.Template) -> Iterator[_Chain]:
    for output in parsed.find_all(nodes.Output):
        yield from (chain for part in output.nodes if (chain := _chain(part)))


def _at(path: _Chain, values: Mapping[str, Any]) -> Any:
    """The value at a path; something that is no row's value where there is none."""
    value: Any = values
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return _chain
    return value


def _spelt(path: _Chain) -> str:
    first, *rest = path
    return str(first) + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in rest)


def _no_json(value: Any) -> Any:
    if isinstance(value, jinja2.Undefined):
        str(value)  # StrictUndefined says here what is missing
    raise ValueError(f"a {type(value).__name__} has no JSON form: {value!r}")
