"""Reads YAML the way a careful reader would: a key written twice is an error, and 2e-4 is a number.

What the content means is decided by the schema that takes it (`finetune.recipe`, `finetune.template`).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from export.errors import RecipeError

# YAML 1.1, which PyYAML implements, wants a dot and a sign in an exponent; this is the YAML 1.2 core schema's form.
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the two mends; its own class, so that no other user of PyYAML is changed."""


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    first_lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        line = key_node.start_mark.line + 1
        if key in first_lines:
            raise RecipeError(f"the key {key!r} stands twice, in lines {first_lines[key]} and {line}. Remove one.")
        first_lines[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, origin: str) -> Any:
    """The value that `text` holds. Raises RecipeError, naming `origin` and the line, when it is not sound YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{origin}{where}: this is not YAML: {getattr(error, 'problem', error)}.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises RecipeError when the file is missing or holds anything else."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no file {path}.") from None
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise RecipeError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise RecipeError(f"{path} holds a {type(value).__name__}; expected keys and values, such as 'name: my_robot'.")
    return {str(key): item for key, item in value.items()}
