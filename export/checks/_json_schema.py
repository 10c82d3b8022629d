"""Whether a JSON value keeps a JSON schema: reads the schema, and refuses what is none. Nothing is fetched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.errors import RecipeError


def schema_validator(schema: str | dict[str, Any], where: str) -> Callable[[Any], bool]:
    """Whether values keep a schema, of the draft that it names or else of 2020-12; a text is the path of its file.

    Raises RecipeError, naming `where` it was given, when it is no schema. A `$ref` that leads out of the schema is an
    error: nothing is fetched.
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
    validator = kind(content, registry=Registry())

    def keeps(value: Any) -> bool:
        try:
            return validator.is_valid(value)
        except Unresolvable as error:
            raise RecipeError(f"{where} refers to {error.ref!r}, which is not in it. Put it under $defs.") from None

    return keeps


def _read_schema(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: {path} cannot be read as JSON: {error}.") from None
