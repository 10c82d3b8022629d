"""Reads YAML the way a careful reader would: a key written twice is an error, and 2e-4 is a number.

What the content means is decided by the schema that takes it (`finetune.recipe`, `finetune.data.template`).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from export.errors import RecipeError

# YAML 1.1, which PyYAML implements, wants a dot and a sign in an exponent; this is the YAML 1.2 core schema's form.
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


# What a template writes without quotes: YAML reads its first brace as the begin of a mapping.
_UNQUOTED_JINJA = re.compile(r"(^|[:\-\[,?=])\s*\{[{%]", re.MULTILINE)
_QUOTE_IT = "Quote text that begins with '{{' or '{%', such as text: \"{{ question }}\""
_KINDS = {list: "a list", str: "a text", bool: "a truth value"}
_TIMESTAMP, _MERGE = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with our mends; its own class, so that no other user of PyYAML is changed."""

    # a date stays the text that it is: nothing in a recipe or a template is a date
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """The mapping, merge keys (<<) included: its own keys come before those that are merged in."""
    first_lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"line {line}: a key is a {key_node.id}; expected a name. {_QUOTE_IT}.")
        key = key_node.value if key_node.tag == _MERGE else loader.construct_object(key_node)
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
        raise RecipeError(_not_yaml(text, origin, error)) from None
    except RecursionError:
        raise RecipeError(f"{origin}: the YAML is nested too deeply to be read.") from None
    # PyYAML converts values unchecked: a tag such as !!bool over other text, a number of thousands of digits
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(f"{origin}: a value is not of the type that it is written as: {error}.") from None


def _not_yaml(text: str, origin: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = f"this is not YAML: {getattr(error, 'problem', None) or error}."
    if mark is None:
        return f"{origin}: {problem}"
    lines = text.splitlines()
    # unquoted Jinja may be noticed only at the begin of the line below it
    near = "\n".join(lines[max(0, mark.line - 1) : mark.line + 1])
    hint = f" {_QUOTE_IT}." if _UNQUOTED_JINJA.search(near) else ""
    return f"{origin}, line {mark.line + 1}, column {mark.column + 1}: {problem}{hint}"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises RecipeError when the file is missing or holds anything else."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} cannot be read as UTF-8 text: {error}.") from None
    except IsADirectoryError:
        inside = path / "recipe.yaml"
        to_do = f"Name {inside}." if inside.is_file() else "Name a file in it."
        raise RecipeError(f"{path.absolute()} is a folder; expected a file. {to_do}") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    value = parse_yaml(text, str(path))
    if value is None:
        raise RecipeError(f"{path} is empty; expected keys and values, such as 'name: my_robot'.")
    if not isinstance(value, dict):
        raise RecipeError(
            f"{path} holds {_KINDS.get(type(value), 'a number')}; expected keys and values, such as 'name: my_robot'."
        )
    return {str(key): item for key, item in value.items()}
