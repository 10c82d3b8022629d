"""A JSON schema as llama.cpp's converter makes a right grammar of it: of what it reads nothing else, and in its words.

It knows no schema that is true or empty, takes a property's rule for that of a definition of the same name, and makes
wrong grammars of patterns, of optional keys beside further ones and of quotation marks in texts. What can be said
otherwise is; the rest is refused by its place.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from export.bundle._patterns import pattern_for_grammar
from export.bundle._schema_reading import DEFINITIONS, WITHOUT_RULE, read_of
from export.errors import ExportError

_ANY: Mapping[str, Any] = {"type": ["object", "array", "string", "number", "boolean", "null"]}


def prepared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema for the converter; what it refers to stands in its $defs, under names that nothing else has.

    Where keys may be left out and any others may come, only those that are named may come. Raises ExportError, with the
    place, for what cannot be a grammar.
    """
    return _Preparing(schema).whole()


class _Preparing:
    """One schema being prepared: the names of what was referred to, and what is still to be prepared."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._names: dict[str, str] = {}

    def whole(self) -> dict[str, Any]:
        found = self._schema_at(self._schema, "#")
        definitions: dict[str, Any] = {}
        while len(definitions) < len(self._names):
            pointer, name = list(self._names.items())[len(definitions)]
            definitions[name] = self._schema_at(self._target(pointer), pointer)
        return {**found, "$defs": definitions} if definitions else found

    def _schema_at(self, schema: Any, where: str) -> dict[str, Any]:
        if schema is True or (isinstance(schema, Mapping) and not schema.keys() - WITHOUT_RULE - DEFINITIONS):
            return dict(_ANY)
        if not isinstance(schema, Mapping):
            raise _refused(
                where, f"is {json.dumps(schema)}", "A schema is an object; leave out a key that never comes."
            )
        found = {keyword: schema[keyword] for keyword in schema if keyword in read_of(schema)}
        if "$ref" in found:
            found["$ref"] = self._renamed(found["$ref"], where)
        if "pattern" in found:
            found["pattern"] = _pattern(found["pattern"], f"{where}/pattern")
        for keyword in ("const", "enum"):
            _refuse_marks(found.get(keyword), f"{where}/{keyword}")
        for keyword in ("anyOf", "oneOf", "prefixItems", "items"):
            if isinstance(found.get(keyword), list):
                listed = enumerate(found[keyword])
                found[keyword] = [self._schema_at(inner, f"{where}/{keyword}/{place}") for place, inner in listed]
        if "items" in found and not isinstance(found["items"], list):
            found["items"] = self._schema_at(found["items"], f"{where}/items")
        if "allOf" in found:
            listed = enumerate(found["allOf"])
            found["allOf"] = [self._part(part, f"{where}/allOf/{place}") for place, part in listed]
        return self._of_object(found, where)

    def _of_object(self, found: dict[str, Any], where: str) -> dict[str, Any]:
        if "properties" in found:
            found["properties"] = self._properties(found["properties"], where)
        further = found.get("additionalProperties", False)
        if further is False:
            return found
        named = found.get("properties", {})
        if further in (True, {}):
            if named.keys() - set(found.get("required", ())):
                return {keyword: value for keyword, value in found.items() if keyword != "additionalProperties"}
            return {**found, "additionalProperties": dict(_ANY) if named else True}
        if named.keys() - set(found.get("required", ())):
            to_do = "Name every key that may come, or require those that are named."
            raise _refused(f"{where}/additionalProperties", "stands beside keys that may be left out", to_do)
        return {**found, "additionalProperties": self._schema_at(further, f"{where}/additionalProperties")}

    def _part(self, part: Any, where: str) -> dict[str, Any]:
        """Of a part of an allOf its properties, and those of what it refers to, are all that is read."""
        if not isinstance(part, Mapping):
            return {}
        found = {keyword: part[keyword] for keyword in ("$ref", "properties", "anyOf") if keyword in part}
        if "$ref" in found:
            found["$ref"] = self._renamed(found["$ref"], where)
        if "properties" in found:
            found["properties"] = self._properties(found["properties"], where)
        if "anyOf" in found:
            listed = enumerate(found["anyOf"])
            found["anyOf"] = [self._part(inner, f"{where}/anyOf/{place}") for place, inner in listed]
        return found

    def _properties(self, properties: Mapping[str, Any], where: str) -> dict[str, Any]:
        _refuse_marks(list(properties), f"{where}/properties")
        return {name: self._schema_at(inner, f"{where}/properties/{name}") for name, inner in properties.items()}

    def _renamed(self, reference: str, where: str) -> str:
        if self._target(reference) is None:
            to_do = "Write #/ and the keys that lead to a schema of this file."
            raise _refused(f"{where}/$ref", f"is {reference!r}, which leads to no schema of this file", to_do)
        name = self._names.setdefault(reference, f"referred-to-{len(self._names) + 1}")
        return f"#/$defs/{name}"

    def _target(self, reference: str) -> Any:
        """What a JSON Pointer (RFC 6901, as a fragment) leads to; None where that is nothing."""
        if reference != "#" and not reference.startswith("#/"):
            return None
        target: Any = self._schema
        for step in unquote(reference).split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, Mapping) and key in target:
                target = target[key]
            else:
                return None
        return target


def _pattern(pattern: str, where: str) -> str:
    try:
        return pattern_for_grammar(pattern)
    except ValueError as error:
        to_do = "Begin it with ^ and end it with $; write alternatives in brackets, as in ^(left|right)$."
        raise _refused(where, f"{pattern!r} holds what grammars have not: {error}", to_do) from None


def _refuse_marks(value: Any, where: str) -> None:
    """Raises ExportError for a text with a quotation mark, a backslash or a line break, which ends a grammar's text."""
    written = json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping | list):
        for inner in [*value, *(value.values() if isinstance(value, Mapping) else ())]:
            _refuse_marks(inner, where)
    elif isinstance(value, str) and written != f'"{value}"':
        to_do = "Leave quotation marks, backslashes and line breaks out of it."
        raise _refused(where, f"holds {written}, of which a wrong grammar would be made", to_do)


def _refused(where: str, what: str, to_do: str) -> ExportError:
    return ExportError(f"llama.cpp's converter makes no grammar of the JSON schema: {where} {what}. {to_do}")
