"""The grammar of a JSON schema: GBNF by llama.cpp's converter, so that a device and our checks read one source.

The converter passes over keywords that it does not know without a word: which, is found here and told. Whether answers
keep a grammar is asked of llama.cpp itself (`export.engines.llama_library.GrammarWalk`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.errors import ExportError
from export.frozen import Frozen

# What the converter looks at, by its source (llama_cpp.llama_grammar.SchemaConverter); titles and such are no rules.
_ENFORCED = frozenset(
    {
        *("$ref", "$defs", "definitions", "type", "properties", "required", "additionalProperties"),
        *("anyOf", "oneOf", "allOf", "const", "enum", "items", "prefixItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern"),
    }
)
_WITHOUT_RULE = frozenset({"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated"})
# Under these the keys are names, and what they lead to is a schema.
_NAMED = ("properties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


class Grammar(Frozen):
    """A grammar's text, and where the schema says what the grammar does not hold answers to (JSON Pointers)."""

    text: str
    not_enforced: tuple[str, ...]


def grammar_of(schema: Mapping[str, Any], key_order: Sequence[str]) -> Grammar:
    """The grammar of a schema. Keys of an object come in one order: as in `key_order`, else as in the schema.

    Raises ExportError for a schema that the converter refuses, with its reason.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        text = json_schema_to_gbnf(json.dumps(schema, ensure_ascii=False), prop_order=list(key_order))
    except (AssertionError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"llama.cpp's converter makes no grammar of the JSON schema: {error or type(error).__name__}. Write it "
            "with type, properties, required, enum, const, anyOf, items and $ref into $defs."
        ) from None
    return Grammar(text=str(text) + "\n", not_enforced=tuple(_not_enforced(schema, "#")))


def key_order_of(answers: Sequence[Any]) -> tuple[str, ...]:
    """The keys of all objects within JSON values, in the order in which they are first seen."""
    return tuple(dict.fromkeys(key for answer in answers for key in _keys(answer)))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def _not_enforced(schema: Any, where: str) -> Iterator[str]:
    """JSON Pointers of the keywords below `where` that the converter passes over."""
    if not isinstance(schema, Mapping):
        return
    # beside one of these the converter looks at nothing else
    alone = next((keyword for keyword in ("$ref", "oneOf", "anyOf") if keyword in schema), None)
    read = _ENFORCED if alone is None else {alone, "$defs", "definitions"}
    for keyword in schema:
        if keyword not in read | _WITHOUT_RULE:
            yield f"{where}/{keyword}"
    for keyword in _NAMED:
        for name, inner in schema.get(keyword, {}).items():
            yield from _not_enforced(inner, f"{where}/{keyword}/{name}")
    for keyword in _LISTED:
        for place, inner in enumerate(schema.get(keyword, ())):
            yield from _not_enforced(inner, f"{where}/{keyword}/{place}")
    for keyword in _SINGLE:
        yield from _not_enforced(schema.get(keyword), f"{where}/{keyword}")
