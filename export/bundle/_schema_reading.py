"""Which keywords of a JSON schema llama.cpp's converter reads, and what a grammar of it lets pass beside.

The converter passes over keywords that it does not know without a word, and takes the first of several ways that is
open: what its `visit` does (llama_cpp.llama_grammar) with what `_schema_preparing` gives it is told here.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

# Formats of text that the converter has rules for (llama_cpp.llama_grammar, STRING_FORMAT_RULES and uuid).
_FORMATS = re.compile(r"date|time|date-time|uuid[1-5]?")
# Keywords that are no rules, or hold what a $ref leads to.
WITHOUT_RULE = frozenset({"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated"})
DEFINITIONS = frozenset({"$defs", "definitions"})
# Under these the keys are names, and what they lead to is a schema.
_NAMED = ("properties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def not_enforced(schema: Any, where: str) -> Iterator[str]:
    """JSON Pointers of the keywords at and below `where` that the converter passes over, or keeps loosely."""
    if not isinstance(schema, Mapping):
        return
    read = read_of(schema)
    for keyword in schema:
        if keyword not in read | WITHOUT_RULE | DEFINITIONS or _is_looser(keyword, schema[keyword]):
            yield f"{where}/{keyword}"
    within = {keyword: schema[keyword] for keyword in schema if keyword in read | DEFINITIONS}
    for keyword in _NAMED:
        for name, inner in within.get(keyword, {}).items():
            yield from not_enforced(inner, f"{where}/{keyword}/{name}")
    listed = (*_LISTED, "items") if isinstance(within.get("items"), list) else _LISTED
    for keyword in listed:
        for place, inner in enumerate(within.get(keyword, ())):
            yield from not_enforced(inner, f"{where}/{keyword}/{place}")
    for keyword in _SINGLE:
        yield from not_enforced(within.get(keyword), f"{where}/{keyword}")
    parts = within.get("allOf", ())
    alone = len(parts) == 1 and not schema.keys() & {"properties", "required"}
    named = {name for part in (schema, *parts) if isinstance(part, Mapping) for name in part.get("properties", {})}
    for place, inner in enumerate(parts):
        yield from _not_enforced_part(inner, f"{where}/allOf/{place}", named, alone=alone)


def _is_looser(keyword: str, value: Any) -> bool:
    """Whether the grammar lets more pass than a keyword that the converter reads.

    One of several is any of them, and a day is any number up to 31.
    """
    return keyword == "oneOf" or (keyword == "format" and value in ("date", "date-time"))


def _not_enforced_part(part: Any, where: str, named: Set[str], *, alone: bool) -> Iterator[str]:
    """The same for a part of an allOf: by itself it is read as it stands; of several what objects may hold.

    `named` are the properties that any of the parts has, as far as they stand there.
    """
    if alone or not isinstance(part, Mapping):
        yield from not_enforced(part, where)
        return
    read = {"$ref", "allOf", "type", "properties", "additionalProperties"}
    if set(part.get("required", ())) <= named:
        read.add("required")
    for keyword in part:
        if keyword not in read | WITHOUT_RULE:
            yield f"{where}/{keyword}"
    for name, inner in part.get("properties", {}).items():
        yield from not_enforced(inner, f"{where}/properties/{name}")
    for place, inner in enumerate(part.get("allOf", ())):
        yield from _not_enforced_part(inner, f"{where}/allOf/{place}", named, alone=False)


def read_of(schema: Mapping[str, Any]) -> set[str]:
    """The keywords that the converter looks at: it takes the first of these ways that is open (its `visit`)."""
    for alone in ("$ref", "oneOf", "anyOf"):
        if alone in schema:
            return {alone}
    if "allOf" in schema:  # put together with what is beside it before the converter sees it
        return {"allOf", "type", "properties", "required"}
    kind = schema.get("type")
    for exact in ("const", "enum"):
        if exact in schema:
            return {"type", exact}
    if isinstance(kind, list):
        return {"type"}
    ways: dict[str, Callable[[Mapping[str, Any]], set[str]]] = {
        "object": _read_of_object,
        "array": _read_of_array,
        "string": _read_of_text,
    }
    tried = ways.values() if kind is None else [ways[kind]] if kind in ways else []
    return {"type", *next(filter(None, (way(schema) for way in tried)), set())}


def _read_of_object(schema: Mapping[str, Any]) -> set[str]:
    if "properties" in schema or schema.get("additionalProperties", True) not in (True, {}):
        return {"properties", "additionalProperties"} | _enforced_required(schema)
    return {"additionalProperties"} & schema.keys()


def _enforced_required(schema: Mapping[str, Any]) -> set[str]:
    """What is required holds only where the properties name it."""
    return {"required"} if set(schema.get("required", ())) <= schema.get("properties", {}).keys() else set()


def _read_of_array(schema: Mapping[str, Any]) -> set[str]:
    if isinstance(schema.get("items"), list):  # a tuple of its length, as drafts up to 2019-09 write it
        return {"items"}
    if schema.get("items", False) is not False:
        return {"items", "minItems", "maxItems"}
    return {"prefixItems"} & schema.keys()


def _read_of_text(schema: Mapping[str, Any]) -> set[str]:
    if "pattern" in schema:
        return {"pattern"}
    if _FORMATS.fullmatch(schema.get("format", "")):
        return {"format"}
    return {"minLength", "maxLength"} if schema.get("type") == "string" else set()
