"""The grammar of a JSON schema: GBNF by llama.cpp's converter, so that a device and our checks read one source.

What the converter passes over is found by `_schema_reading`, and what it would make wrongly is written otherwise by
`_schema_preparing`. Whether answers keep a grammar is asked of llama.cpp itself
(`export.engines.llama_library.GrammarWalk`).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.bundle._schema_preparing import prepared
from export.bundle._schema_reading import not_enforced
from export.errors import ExportError
from export.frozen import Frozen

# The converter writes characters as JSON's escapes, those beyond 16 bits as two, which are none in a grammar.
_SURROGATES = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class Grammar(Frozen):
    """A grammar's text, and where the schema says what the grammar does not hold answers to (JSON Pointers)."""

    text: str
    not_enforced: tuple[str, ...]


def grammar_of(schema: Mapping[str, Any], key_order: Sequence[str]) -> Grammar:
    """The grammar of a schema. Keys of an object come in one order: as in `key_order`, else as in the schema.

    Raises ExportError for a schema that the converter refuses, with its reason, or would make a wrong grammar of.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        text = json_schema_to_gbnf(json.dumps(prepared(schema), ensure_ascii=False), prop_order=list(key_order))
    except (AssertionError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"llama.cpp's converter makes no grammar of the JSON schema: {error or type(error).__name__}. Write it "
            "with type, properties, required, enum, const, anyOf, items and $ref into $defs."
        ) from None
    text = _SURROGATES.sub(lambda found: json.loads(f'"{found[0]}"'), str(text))
    return Grammar(text=text + "\n", not_enforced=tuple(not_enforced(schema, "#")))


def key_order_of(answers: Sequence[Any]) -> tuple[str, ...]:
    """The keys of all objects within JSON values, in the order in which they are first seen."""
    return tuple(dict.fromkeys(key for answer in answers for key in _keys(answer)))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _keys(inner)
