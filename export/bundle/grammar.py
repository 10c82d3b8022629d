"""The grammar of a JSON schema: GBNF by llama.cpp's converter, so that a device and our checks read one source.

The converter passes over keywords that it does not know without a word: which, is found here and told. Whether answers
keep a grammar is asked of llama.cpp itself (`export.engines.llama_library.GrammarWalk`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from export.errors import ExportError
from export.frozen import Frozen

# Formats of text that the converter has rules for (llama_cpp.llama_grammar, STRING_FORMAT_RULES and uuid).
_FORMATS = re.compile(r"date|time|date-time|uuid[1-5]?")
# Classes and borders that the converter passes on, and an alternative outside of brackets, which splits the whole rule.
_NOT_IN_A_GRAMMAR = re.compile(r"\\[dDwWsSbB]|^\^(?:[^()\[\]|\\]|\\.|\[[^\]]*\]|\([^()]*\))*\|")
# What lets a quotation mark pass, so that the text may end early.
_LETS_QUOTES_PASS = re.compile(r"\[\^(?![^\]]*\")|(?<!\\)\.")
# Keywords that are no rules, or hold what a $ref leads to.
_WITHOUT_RULE = frozenset({"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated"})
_DEFINITIONS = frozenset({"$defs", "definitions"})
# Under these the keys are names, and what they lead to is a schema.
_NAMED = ("properties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


class Grammar(Frozen):
    """A grammar's text, and where the schema says what the grammar does not hold answers to (JSON Pointers)."""

    text: str
    not_enforced: tuple[str, ...]


def grammar_of(schema: Mapping[str, Any], key_order: Sequence[str]) -> Grammar:
    """The grammar of a schema. Keys of an object come in one order: as in `key_order`, else as in the schema.

    Raises ExportError for a schema that the converter refuses, with its reason, or would make a wrong grammar of.
    """
    not_enforced = tuple(_not_enforced(schema, "#"))
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        text = json_schema_to_gbnf(json.dumps(schema, ensure_ascii=False), prop_order=list(key_order))
    except (AssertionError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"llama.cpp's converter makes no grammar of the JSON schema: {error or type(error).__name__}. Write it "
            "with type, properties, required, enum, const, anyOf, items and $ref into $defs."
        ) from None
    return Grammar(text=str(text) + "\n", not_enforced=not_enforced)


def key_order_of(answers: Sequence[Any]) -> tuple[str, ...]:
    """The keys of all objects within JSON values, in the order in which they are first seen."""
    return tuple(dict.fromkeys(key for answer in answers for key in _keys(answer)))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def _not_enforced(schema: Any, where: str) -> Iterator[str]:
    """JSON Pointers of the keywords at and below `where` that the converter passes over, or holds answers to loosely.

    Raises ExportError for a pattern that it reads and cannot be a grammar's.
    """
    if not isinstance(schema, Mapping):
        return
    read = _read_of(schema)
    if "pattern" in read:
        _refuse_what_a_grammar_has_not(schema["pattern"], f"{where}/pattern")
    for keyword in schema:
        if keyword not in read | _WITHOUT_RULE | _DEFINITIONS or _is_looser(keyword, schema[keyword]):
            yield f"{where}/{keyword}"
    within = {keyword: schema[keyword] for keyword in schema if keyword in read | _DEFINITIONS}
    for keyword in _NAMED:
        for name, inner in within.get(keyword, {}).items():
            yield from _not_enforced(inner, f"{where}/{keyword}/{name}")
    for keyword in _LISTED:
        for place, inner in enumerate(within.get(keyword, ())):
            yield from _not_enforced(inner, f"{where}/{keyword}/{place}")
    for keyword in _SINGLE:
        yield from _not_enforced(within.get(keyword), f"{where}/{keyword}")
    for place, inner in enumerate(within.get("allOf", ())):
        yield from _not_enforced_part(inner, f"{where}/allOf/{place}")


def _is_looser(keyword: str, value: Any) -> bool:
    """Whether the grammar lets more pass than a keyword that the converter reads: one of several is any of them."""
    return keyword == "oneOf" or (keyword == "pattern" and _LETS_QUOTES_PASS.search(value) is not None)


def _refuse_what_a_grammar_has_not(pattern: Any, where: str) -> None:
    """Raises ExportError for a pattern of which the converter copies something into a grammar that is none there."""
    if found := _NOT_IN_A_GRAMMAR.search(pattern):
        raise ExportError(
            f"the JSON schema's {where} {pattern!r} holds {found[0]!r}, which grammars have not. Write [0-9] for \\d, "
            "[a-zA-Z0-9_] for \\w, [ ] for \\s, and alternatives in brackets: ^(left|right)$."
        )


def _not_enforced_part(part: Mapping[str, Any], where: str) -> Iterator[str]:
    """The same for a part of an allOf: of it, or of what it refers to, nothing is read but the properties."""
    if "anyOf" in part:
        for place, inner in enumerate(part["anyOf"]):
            yield from _not_enforced_part(inner, f"{where}/anyOf/{place}")
        return
    for keyword in part:
        if keyword not in {"$ref", "type", "properties"} | _enforced_required(part) | _WITHOUT_RULE:
            yield f"{where}/{keyword}"
    for name, inner in part.get("properties", {}).items():
        yield from _not_enforced(inner, f"{where}/properties/{name}")


def _read_of(schema: Mapping[str, Any]) -> set[str]:
    """The keywords that the converter looks at: it takes the first of these ways that is open (its `visit`)."""
    for alone in ("$ref", "oneOf", "anyOf"):
        if alone in schema:
            return {alone}
    kind = schema.get("type")
    if isinstance(kind, list):
        return {"type"}
    for exact in ("const", "enum"):
        if exact in schema:
            return {"type", exact}
    ways: dict[str, Callable[[Mapping[str, Any]], set[str]]] = {
        "object": _read_of_object,
        "array": _read_of_array,
        "string": _read_of_text,
    }
    tried = ways.values() if kind is None else [ways[kind]] if kind in ways else []
    return {"type", *next(filter(None, (way(schema) for way in tried)), set())}


def _read_of_object(schema: Mapping[str, Any]) -> set[str]:
    if "properties" in schema or schema.get("additionalProperties", True) is not True:
        return {"properties", "additionalProperties"} | _enforced_required(schema)
    return {"allOf", "additionalProperties"} if "allOf" in schema else {"additionalProperties"} & schema.keys()


def _enforced_required(schema: Mapping[str, Any]) -> set[str]:
    """What is required holds only where the properties name it."""
    return {"required"} if set(schema.get("required", ())) <= schema.get("properties", {}).keys() else set()


def _read_of_array(schema: Mapping[str, Any]) -> set[str]:
    if "items" in schema:
        return {"items", "minItems", "maxItems"}
    return {"prefixItems"} & schema.keys()


def _read_of_text(schema: Mapping[str, Any]) -> set[str]:
    if "pattern" in schema:
        return {"pattern"}
    if _FORMATS.fullmatch(schema.get("format", "")):
        return {"format"}
    return {"minLength", "maxLength"} if schema.get("type") == "string" else set()
