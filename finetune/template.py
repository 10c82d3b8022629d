"""Data templates: how a row's fields become a conversation.

A data template is a YAML file that says which fields a row must have and what each turn of the conversation is made
of. Reading rows is `finetune.sources`, splitting and counting them `finetune.data`; how a conversation becomes text
is the base model's own chat template (`export.chat`).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError, model_validator

from export.artifacts import sha256_of_file
from export.chat import Conversation, Message, Role
from export.errors import DataError, RecipeError
from export.frozen import Frozen
from export.plugins import nearest
from finetune import shipped
from finetune.mistakes import mistakes
from finetune.sources import Row
from finetune.yaml_text import read_yaml

WHOLE_ROW = "row"


class Turn(Frozen):
    """One turn, written as Jinja over the row's fields; a single line break at the very end is dropped."""

    role: Literal["user", "assistant"] = Field(description="Who speaks.")
    text: str = Field(description="Jinja over the row's fields; `row['Any Name']` reaches fields with odd names.")


class MessagesFrom(Frozen):
    """Where a row that already holds a list of messages keeps them."""

    field: str = Field(description="The field that holds the list.")
    role: str = Field(default="role", description="The key of each entry that says who speaks.")
    content: str = Field(default="content", description="The key of each entry that holds the words.")
    roles: dict[str, Role] = Field(
        default={"system": "system", "user": "user", "assistant": "assistant"},
        description="What each role is called in the rows, mapped to system, user or assistant.",
    )


class DataTemplate(Frozen):
    """The content of a data template file."""

    description: str = Field(description="What rows it is for.")
    licence: str = Field(description="The licence of the template and its sample rows.")
    fields: dict[str, str] = Field(min_length=1, description="The fields every row must have, and what each holds.")
    optional_fields: dict[str, str] = Field(default={}, description="Fields a row may lack; none then, in Jinja.")
    system: str | None = Field(default=None, description="The system message, for rows that bring none of their own.")
    turns: tuple[Turn, ...] = Field(default=(), description="The turns; the last one is the assistant's.")
    messages_from: MessagesFrom | None = Field(default=None, description="Instead of turns: a field with messages.")
    group: str | None = Field(
        default=None,
        description="A field, or Jinja: rows of equal value never stand in two splits. Default: the prompt's text.",
    )
    sample: str | None = Field(default=None, description="A JSONL file of sample rows beside the template.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.turns) == (self.messages_from is not None):
            raise ValueError("give either turns or messages_from")
        if self.turns and self.turns[-1].role != "assistant":
            raise ValueError("the last turn must be the assistant's: it is what the model learns to say")
        if self.messages_from and self.messages_from.field not in self.fields:
            raise ValueError(f"messages_from.field {self.messages_from.field!r} must be one of fields")
        return self

    @model_validator(mode="after")
    def _only_known_fields(self) -> Self:
        known = {*self.fields, *self.optional_fields}
        for place, text in self._texts():
            try:
                used = jinja2.meta.find_undeclared_variables(_environment().parse(text))
            except jinja2.TemplateSyntaxError as error:
                raise ValueError(f"{place} is not sound Jinja: {error.message} (line {error.lineno})") from None
            for name in sorted(used - known - {WHOLE_ROW}):
                raise ValueError(f"{place} uses the field {name!r}. {nearest(name, tuple(known))}")
        return self

    def _texts(self) -> Iterable[tuple[str, str]]:
        yield from ((f"turn {number}", turn.text) for number, turn in enumerate(self.turns, start=1))
        if self.group is not None:
            yield "group", _as_jinja(self.group)


class RowMapper:
    """A data template made ready to map rows.

    `system_prompt` replaces every system message, the rows' own too; an empty one removes them. `group_by` replaces
    the template's group and may name a field that the template does not use.
    """

    def __init__(self, template: DataTemplate, *, system_prompt: str | None = None, group_by: str | None = None):
        self.template = template
        self._system_prompt = system_prompt
        environment = _environment()
        self._turns = [(turn.role, environment.from_string(turn.text)) for turn in template.turns]
        self._group_place, group = ("group", template.group) if group_by is None else ("data.group_by", group_by)
        self._needed = dict.fromkeys(template.fields, "")
        if group is not None and not _is_jinja(group):
            self._needed[group] = f", which {self._group_place} names,"
        try:
            self._group = environment.from_string(_as_jinja(group)) if group is not None else None
        except jinja2.TemplateSyntaxError as error:
            raise RecipeError(f"data.group_by is not sound Jinja: {error.message}. Give a field's name.") from None

    def conversation(self, row: Row) -> Conversation:
        """The row as a conversation. Raises DataError, naming the row, when the template does not fit it."""
        self._check_fields(row)
        values = dict.fromkeys(self.template.optional_fields) | row.fields | {WHOLE_ROW: row.fields}
        messages = self._with_system(list(self._messages(row, values)))
        _check_order(messages, row)
        group = _rendered(self._group, values, row, self._group_place) if self._group else ""
        return Conversation(messages=tuple(messages), group=group)

    def _check_fields(self, row: Row) -> None:
        for name, why in self._needed.items():
            if name not in row.fields:
                here = tuple(row.fields)
                hint = nearest(name, here) if here else "It has none."
                raise DataError(f"{row.origin}: the field {name!r}{why} is missing. {hint}")

    def _messages(self, row: Row, values: Mapping[str, Any]) -> Iterable[Message]:
        if self.template.messages_from is None:
            for number, (role, text) in enumerate(self._turns, start=1):
                yield _message(role, _rendered(text, values, row, f"turn {number}"), row)
        else:
            yield from _listed(self.template.messages_from, row)

    def _with_system(self, messages: list[Message]) -> list[Message]:
        own = [message for message in messages if message.role == "system"]
        if self._system_prompt is not None:
            rest = messages[1:] if own and messages[0].role == "system" else messages
            return [Message(role="system", content=self._system_prompt), *rest] if self._system_prompt else rest
        if own or self.template.system is None:
            return messages
        return [Message(role="system", content=self.template.system.strip()), *messages]


def find(name_or_path: str) -> Path:
    """The file of a data template: a shipped one by its name, or any by its path.

    Raises RecipeError when there is none.
    """
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise RecipeError(f"there is no data template {path.absolute()}. {nearest(path.stem, _shipped_names())}")
        return path
    if name_or_path not in _shipped_names():
        known = nearest(name_or_path, _shipped_names())
        raise RecipeError(f"unknown data template {name_or_path!r}. {known} A file of your own: give its path.")
    return shipped.folder("data_templates") / f"{name_or_path}.yaml"


def load(path: Path) -> DataTemplate:
    """The template in a file. Raises RecipeError with every mistake in it."""
    try:
        return DataTemplate.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = [f"  {line}" for line in mistakes(DataTemplate, error)]
        raise RecipeError(f"{path} is not a data template:\n" + "\n".join(lines)) from None


def sha256(path: Path) -> str:
    """SHA-256 of a template's file."""
    return sha256_of_file(path)


def compact_json(value: Any) -> str:
    """JSON without spaces, in the order given, with letters of every script as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_no_json)


def collect(entries: Iterable[Mapping[str, Any]], key: str, value: str) -> dict[str, Any]:
    """A mapping from each entry's `key` to its `value`, in order of appearance; a repeated key's values as a list."""
    collected: dict[str, list[Any]] = {}
    for entry in entries:
        collected.setdefault(entry[key], []).append(entry[value])
    return {name: values[0] if len(values) == 1 else values for name, values in collected.items()}


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, finalize=_finalize)
    # Jinja's own globals would answer for a field of the same name that a row lacks
    environment.globals.clear()
    environment.filters["compact_json"] = compact_json
    environment.filters["collect"] = collect
    return environment


def _finalize(value: Any) -> Any:
    """Refuses what Jinja would print as Python: None, and a mapping's method found in place of its key."""
    if value is None:
        raise ValueError("a field that is null is printed; test it first: {% if field %}")
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise ValueError("a method is printed; reach a key of that name with brackets: row['items']")
    return value


def _no_json(value: Any) -> Any:
    if isinstance(value, jinja2.Undefined):
        str(value)  # StrictUndefined says here what is missing
    raise ValueError(f"a {type(value).__name__} has no JSON form: {value!r}")


def _is_jinja(group: str) -> bool:
    """Whether a group is Jinja, and not the name of a field."""
    return "{{" in group or "{%" in group


def _as_jinja(group: str) -> str:
    """A group's Jinja: as it stands, or printing the field that it names."""
    if _is_jinja(group):
        return group
    return "{{ " + f"{WHOLE_ROW}[{json.dumps(group, ensure_ascii=False)}]" + " }}"


def _rendered(text: jinja2.Template, values: Mapping[str, Any], row: Row, place: str) -> str:
    try:
        return text.render(values)
    # what a template does to a row can fail in any way Python can; each is the row's or the template's fault
    except Exception as error:
        fields = ", ".join(row.fields)
        raise DataError(f"{row.origin}: {place} cannot be made: {error}. Fields of this row: {fields}.") from error


def _message(role: Role, content: Any, row: Row) -> Message:
    if not isinstance(content, str):
        raise DataError(f"{row.origin}: a turn holds {content!r:.60}; expected text.")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{row.origin}: a turn holds half a surrogate pair, which is no character: repair it."
        ) from None
    return Message(role=role, content=content)


def _listed(source: MessagesFrom, row: Row) -> Iterable[Message]:
    entries = row.fields[source.field]
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{row.origin}: the field {source.field!r} holds {entries!r:.60}; expected a list of messages.")
    for number, entry in enumerate(entries, start=1):
        missing = [key for key in (source.role, source.content) if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise DataError(f"{row.origin}: message {number} has no {missing[0]!r}; found {entry!r:.80}.")
        name = entry[source.role]
        if not isinstance(name, str) or name not in source.roles:
            hint = nearest(str(name), tuple(source.roles))
            raise DataError(f"{row.origin}: message {number} is of the unknown role {name!r}. {hint}")
        yield _message(source.roles[name], entry[source.content], row)


def _check_order(messages: list[Message], row: Row) -> None:
    """Refuses orders that a chat template would render to something no user could have written."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = [get_args(Role)[1 + index % 2] for index in range(len(turns))]
    if not turns or turns != expected or turns[-1] != "assistant":
        raise DataError(
            f"{row.origin}: the turns are {', '.join(roles)}; expected an optional system message, then user and "
            "assistant by turns, the assistant last."
        )


def _shipped_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in shipped.folder("data_templates").glob("*.yaml") if "." not in path.stem))
