"""A JSON schema as llama.cpp's converter makes a right grammar of it: of what it reads nothing else, and in its words.

It knows no schema that is true or empty, takes a property's rule for that of a definition of the same name, asks for
all properties that an allOf names, and makes wrong grammars of patterns, of optional keys beside further ones and of
quotation marks in texts. What can be said otherwise is; the rest is refused by its place.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from export.bundle._patterns import pattern_for_grammar
from export.bundle._schema_reading import DEFINITIONS, WITHOUT_RULE, read_of
from export.errors import ExportError

# What of several schemas for one object can be put together.
_OF_OBJECTS = frozenset({"type", "properties", "required"})
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
        schema, where = self._followed(self._schema, "#")
        found = self._schema_at(schema, where)
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
        if "allOf" in read_of(schema):
            return self._schema_at(*self._merged(schema, where))
        found = {keyword: schema[keyword] for keyword in schema if keyword in read_of(schema)}
        if "properties" in found and "required" in schema:  # those that are no properties are told
            found["required"] = [name for name in schema["required"] if name in found["properties"]]
        if "type" in found:
            found |= _values_of_type(found, found["type"], where)
            if isinstance(found["type"], list) and found.keys() & {"enum", "const"}:
                del found["type"]  # the converter would look no further
        if "$ref" in found:
            found["$ref"] = self._renamed(found["$ref"], where)
        if "pattern" in found:
            found["pattern"] = _pattern(found["pattern"], f"{where}/pattern")
        for value, place in (
            *([(found["const"], f"{where}/const")] if "const" in found else []),
            *((value, f"{where}/enum/{place}") for place, value in enumerate(found.get("enum", ()))),
        ):
            if isinstance(value, Mapping | list):
                to_do = "Write a schema of its items or properties: a grammar would ask for one way of spacing it."
                raise _refused(place, "is a list or an object", to_do)
            _refuse_marks(value, place)
        for keyword in ("anyOf", "oneOf", "prefixItems", "items"):
            if isinstance(found.get(keyword), list):
                listed = enumerate(found[keyword])
                found[keyword] = [self._schema_at(inner, f"{where}/{keyword}/{place}") for place, inner in listed]
        if "items" in found and not isinstance(found["items"], list):
            found["items"] = self._schema_at(found["items"], f"{where}/items")
        return self._of_object(found, where)

    def _of_object(self, found: dict[str, Any], where: str) -> dict[str, Any]:
        if "properties" in found:
            found["properties"] = self._properties(found["properties"], where)
        if not found.get("properties", True) and "additionalProperties" in found:
            del found["properties"]
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

    def _merged(self, schema: Mapping[str, Any], where: str) -> tuple[Any, str]:
        """One schema in place of an allOf, and where it stands: its only part, or all parts and what is beside it.

        Raises ExportError where that cannot be said in one, as of parts that are no objects.
        """
        beside = {keyword: schema[keyword] for keyword in schema if keyword in _OF_OBJECTS}
        places = [(part, f"{where}/allOf/{place}") for place, part in enumerate(schema["allOf"]) if part is not True]
        if len(places) == 1 and not beside.keys() - {"type"}:
            return self._only_part(*places[0], beside.get("type"))
        merged: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
        for part, place in [(beside, where), *(self._followed(*one) for one in places)]:
            if isinstance(part, Mapping) and "allOf" in part:
                part, place = self._merged(part, place)
            _put_together(merged, part, place)
        if not merged["properties"]:
            raise _refused(f"{where}/allOf", "names no properties", "Write its parts as one schema.")
        return merged, where

    def _only_part(self, part: Any, place: str, kind: Any) -> tuple[Any, str]:
        """The only part of an allOf, of the type that stands beside it."""
        if kind is None:
            return part, place
        part, place = self._followed(part, place)
        if not isinstance(part, Mapping):
            return part, place
        if choice := part.keys() & {"anyOf", "oneOf"}:
            to_do = f"Write the type {kind!r} into each of its ways."
            raise _refused(f"{place}/{min(choice)}", "is a choice beside a type", to_do)
        if part.keys() & {"enum", "const"}:
            return {**part, **_values_of_type(part, kind, place)}, place
        own = part.get("type")
        if own == kind or (own == "integer" and kind == "number") or (isinstance(kind, list) and own in kind):
            return part, place
        if own is not None:
            to_do = "Give one type."
            raise _refused(f"{place}/type", f"is {part['type']!r} beside {kind!r}", to_do)
        return {**part, "type": kind}, place

    def _followed(self, schema: Any, where: str) -> tuple[Any, str]:
        """What a $ref leads to in the end, and where that is; the schema itself where it is none."""
        seen: set[str] = set()
        while isinstance(schema, Mapping) and "$ref" in schema:
            reference = schema["$ref"]
            if reference in seen:
                raise _refused(f"{where}/$ref", f"is {reference!r}, which leads back to itself", "Give it a schema.")
            seen.add(reference)
            schema, where = self._required_target(reference, where), reference
        return schema, where

    def _properties(self, properties: Mapping[str, Any], where: str) -> dict[str, Any]:
        if "" in properties:
            raise _refused(f"{where}/properties", "has a key without a name", "Give it one.")
        _refuse_marks(list(properties), f"{where}/properties")
        return {name: self._schema_at(inner, f"{where}/properties/{name}") for name, inner in properties.items()}

    def _required_target(self, reference: str, where: str) -> Any:
        target = self._target(reference)
        if target is None:
            to_do = "Write #/ and the keys that lead to a schema of this file."
            raise _refused(f"{where}/$ref", f"is {reference!r}, which leads to no schema of this file", to_do)
        return target

    def _renamed(self, reference: str, where: str) -> str:
        self._required_target(reference, where)
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


def _values_of_type(schema: Mapping[str, Any], kind: str | Sequence[str], where: str) -> dict[str, Any]:
    """What of an enum or a const is of the type beside it, which the converter passes over.

    Raises ExportError where nothing is.
    """
    kinds = (kind,) if isinstance(kind, str) else kind
    enum = [value for value in schema.get("enum", ()) if any(_is_of(value, one) for one in kinds)]
    if "enum" in schema and not enum:
        raise _refused(f"{where}/enum", f"has no value of the type {kind!r}", "Leave out the type, or the values.")
    if "const" in schema and not any(_is_of(schema["const"], one) for one in kinds):
        raise _refused(f"{where}/const", f"is not of the type {kind!r}", "Leave out one of them.")
    return {"enum": enum} if enum else {}


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and (isinstance(value, int) or value.is_integer()))
    return kind == ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object")


def _pattern(pattern: str, where: str) -> str:
    try:
        return pattern_for_grammar(pattern)
    except ValueError as error:
        to_do = "Begin it with ^ and end it with $; write alternatives in brackets, as in ^(left|right)$."
        raise _refused(where, f"{pattern!r} holds what grammars have not: {error}", to_do) from None


def _put_together(merged: dict[str, Any], part: Any, place: str) -> None:
    """Adds what a part asks of an object's properties to `merged`; the rest of it is told (`_schema_reading`).

    Raises ExportError for what cannot be asked of one object.
    """
    if not isinstance(part, Mapping) or part.get("type", "object") != "object":
        raise _refused(place, "is a part of an allOf that is no object, as the others are", "Write one schema.")
    for choice in ("anyOf", "oneOf"):
        only_asks = all(isinstance(one, Mapping) and not one.keys() - {"required"} for one in part.get(choice, ()))
        if choice in part and not (only_asks and "/allOf/" in place):  # behind a reference nobody would tell of it
            to_do = "Write one schema, with the choice outermost."
            raise _refused(f"{place}/{choice}", "is a choice within an allOf", to_do)
    if part.get("additionalProperties", True) is not True:
        to_do = "Name all keys in one schema."
        raise _refused(f"{place}/additionalProperties", "closes a part of an allOf", to_do)
    for name, inner in part.get("properties", {}).items():
        if merged["properties"].setdefault(name, inner) != inner:
            raise _refused(f"{place}/properties/{name}", "stands in two parts of an allOf", "Name it in one of them.")
    merged["required"] += [name for name in part.get("required", ()) if name not in merged["required"]]


def _refuse_marks(value: Any, where: str) -> None:
    """Raises ExportError for a text with a quotation mark, a backslash or a line break, which ends a grammar's text."""
    if isinstance(value, list):
        for inner in value:
            _refuse_marks(inner, where)
        return
    written = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and written != f'"{value}"':
        to_do = "Leave quotation marks, backslashes and line breaks out of it."
        raise _refused(where, f"holds {written}, of which a wrong grammar would be made", to_do)


def _refused(where: str, what: str, to_do: str) -> ExportError:
    return ExportError(f"llama.cpp's converter makes no grammar of the JSON schema: {where} {what}. {to_do}")
