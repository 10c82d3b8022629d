"""Whether a JSON value keeps a JSON schema: reads the schema, and refuses what is none. Nothing is fetched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.errors import RecipeError


def schema_validator(schema: str | dict[str, Any], where: str) -> Callable[[Any], bool]:
    """Whether values keep a schema, of the draft that it names or else of 2020-12; a text is the path of its file.

    Raises RecipeError, naming `where` it was given, when it is no schema. A `$ref` that leads nowhere, or out of the
    schema, is an error: nothing is fetched.
    """
    from jsonschema import Draft202012Validator, SchemaError, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    content = _read_schema(Path(schema).expanduser(), where) if isinstance(schema, str) else schema
    kind = validators.validator_for(content, default=Draft202012Validator)
    try:
        kind.check_schema(content)
    except SchemaError as error:
        raise RecipeError(f"{where} is no JSON schema: {error.message} (at {error.json_path}).") from None
    _require_references(content, where)
    validator = kind(content, registry=Registry())

    def keeps(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except Unresolvable as error:  # what is referred to in other ways than $ref, or by what nothing is told of
            raise _leads_nowhere(where, error.ref) from None

    return keeps


def _require_references(content: Any, where: str) -> None:
    """Raises RecipeError for a `$ref` that leads nowhere, wherever in the schema it stands."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    whole: Resource[Any] = Resource.from_contents(content, default_specification=DRAFT202012)
    pending = [(whole, Registry().resolver_with_root(whole))]
    while pending:
        part, resolver = pending.pop()
        reference = part.contents.get("$ref") if isinstance(part.contents, dict) else None
        if isinstance(reference, str):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise _leads_nowhere(where, reference) from None
        pending.extend((inner, resolver.in_subresource(inner)) for inner in part.subresources())


def _leads_nowhere(where: str, reference: str) -> RecipeError:
    return RecipeError(f"{where} refers to {reference!r}, which is not in it. Put it under $defs.")


def _read_schema(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: {path} cannot be read as JSON: {error}.") from None
