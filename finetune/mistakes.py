"""What a schema has against a user's YAML, in words: for recipes and data templates alike.

pydantic says where a mistake is and of what kind; the words, the nearest valid name and what counts as one mistake are
ours.
"""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from export.plugins import nearest

# Where pydantic speaks of Python's types.
_EXPECTED = {
    "model_type": "expected keys and values",
    "model_attributes_type": "expected keys and values",
    "dict_type": "expected keys and values",
    "tuple_type": "expected a list",
    "string_type": "expected text",
}


def mistakes(schema: type[BaseModel], error: ValidationError) -> list[str]:
    """Each mistake as a line; what every branch of a union has against one value is one mistake."""
    lines: dict[tuple[int | str, ...], str] = {}
    for detail in error.errors(include_url=False):
        lines.setdefault(_walk(schema, detail["loc"]).written, explain(schema, detail))
    return list(lines.values())


def explain(schema: type[BaseModel], detail: ErrorDetails) -> str:
    """One mistake as a line: where it is, what was found, what was expected."""
    place = _walk(schema, detail["loc"])
    where = ".".join(str(part) for part in place.written)
    if detail["type"] == "extra_forbidden":
        known = tuple(_keys_at(schema, detail["loc"][:-1]))
        return f"{where}: there is no such key. {nearest(str(detail['loc'][-1]), known)}"
    if detail["type"] == "union_tag_invalid":  # a key names one of several steps, and there is none of that name
        key, tag = detail["ctx"]["discriminator"].strip("'"), str(detail["ctx"]["tag"])
        known = tuple(_steps(place.annotation, key))
        return f"{where}.{key}: there is no {key} called {tag!r}. {nearest(tag, known)}"
    if detail["type"] == "missing":
        return f"{where}: this key is needed and missing."
    if detail["type"] == "value_error":  # a validator of ours: it names what it found, which is often one key of many
        message = detail["msg"].removeprefix("Value error, ").removesuffix(".")
        return f"{where}: {message}." if where else f"{message}."
    if place.inside_branch > 1:  # an item of the value, which is not what the place holds
        return f"{where}: expected {_described(place.annotation)}."
    message = _EXPECTED.get(detail["type"]) or detail["msg"]
    if place.inside_branch:
        message = f"expected {_described(place.annotation)}"
    found = repr(detail["input"])
    shown = found if len(found) <= 60 else found[:57] + "..."
    # YAML takes yes, no, on and off without quotes for truth values
    quote = ". Quote it, as in 'yes'" if detail["type"] == "string_type" and isinstance(detail["input"], bool) else ""
    return f"{where}: {message[0].lower()}{message[1:]}; found {shown}{quote}."


def takes_text(schema: type[BaseModel], keys: Sequence[str]) -> bool:
    """Whether the setting at a dotted key's parts may be a text of any kind; not where there is no such key."""
    place = _walk(schema, tuple(keys))
    kinds = get_args(place.annotation) if get_origin(place.annotation) in (Union, UnionType) else (place.annotation,)
    return not place.inside_branch and str in kinds


class _Place(NamedTuple):
    """The keys that a user wrote, what the last of them may hold, and how many parts lie inside a branch of that."""

    written: tuple[int | str, ...]
    annotation: Any
    inside_branch: int


def _walk(schema: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    """An error's place without what pydantic puts into it: the branches of a union, and the names of steps."""
    current: type[BaseModel] | None = schema
    annotation: Any = None
    steps: dict[str, type[BaseModel]] = {}
    written: list[int | str] = []
    for depth, part in enumerate(location):
        if str(part) in steps:  # one of several steps, by the name that the section itself holds
            current = annotation = steps[str(part)]
            steps = {}
            continue
        if _is_union(annotation):
            return _Place(tuple(written), annotation, len(location) - depth)
        field = None if current is None else current.model_fields.get(str(part))
        annotation = None if field is None else field.annotation
        current = None if field is None else settings_class_in(annotation)
        steps = {} if field is None else steps_of(field)
        written.append(part)
    return _Place(tuple(written), annotation, 0)


def steps_of(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The settings classes of a section that holds one of several, by the names that tell them apart; else none."""
    key = field.discriminator
    return _steps(field.annotation, key) if isinstance(key, str) else {}


def _steps(annotation: Any, key: str) -> dict[str, type[BaseModel]]:
    return {step.model_fields[key].default: step for step in get_args(annotation)}


def _is_union(annotation: Any) -> bool:
    """Whether pydantic names a branch in an error's place: not where the only other choice is null."""
    if get_origin(annotation) not in (Union, UnionType):
        return False
    return len([branch for branch in get_args(annotation) if branch is not type(None)]) > 1


def _described(annotation: Any) -> str:
    """A type in words: "'all-linear' or a list of names"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(repr(value) for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_described(branch) for branch in inner)
    if origin in (tuple, list):
        return "a list of " + {str: "names", int: "numbers", float: "numbers"}.get(inner[0], _described(inner[0]))
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return words.get(annotation, "keys and values")


def settings_class_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class in an annotation such as `Gguf | None`; None when there is none in it."""
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _keys_at(schema: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys that are valid at a place."""
    current = schema
    steps: dict[str, type[BaseModel]] = {}
    for part in (part for part in location if isinstance(part, str)):
        field = current.model_fields.get(part)
        inner = steps.get(part) or (None if field is None else settings_class_in(field.annotation))
        if inner is None:
            return []
        steps = {} if field is None else steps_of(field)
        current = inner
    return list(current.model_fields)
