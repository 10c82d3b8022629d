"""Data templates: how a row's fields become a conversation.

A data template is a YAML file that says which fields a row must have and what each turn of the conversation is made
of. Reading rows is `finetune.data.sources`, splitting and counting them `finetune.data`; how a conversation becomes
text is the base model's own chat template (`export.chat`).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Self

import jinja2
from pydantic import Field, ValidationError, model_validator

from export.artifacts import sha256_of_file
from export.chat import Conversation, Message, Role
from export.errors import RecipeError
from export.frozen import Frozen
from export.plugins import nearest
from finetune import shipped
from finetune.data import turns
from finetune.data.rendering import WHOLE_ROW, Text, is_jinja, missing, names_in, printing
from finetune.data.rendering import collect as collect
from finetune.data.rendering import compact_json as compact_json
from finetune.data.sources import Row
from finetune.data.turns import MessagesFrom, RoundsFrom
from finetune.mistakes import mistakes
from finetune.yaml_text import read_yaml


class Turn(Frozen):
    """One turn, written as Jinja over the row's fields; a single line break at the very end is dropped."""

    role: Literal["user", "assistant"] = Field(description="Who speaks.")
    text: str = Field(description="Jinja over the row's fields; `row['Any Name']` reaches fields with odd names.")


class DataTemplate(Frozen):
    """The content of a data template file."""

    description: str = Field(description="What rows it is for.")
    licence: str = Field(description="The licence of the template and its sample rows.")
    fields: dict[str, str] = Field(min_length=1, description="The fields every row must have, and what each holds.")
    optional_fields: dict[str, str] = Field(default={}, description="Fields a row may lack; none then, in Jinja.")
    system: str | None = Field(
        default=None,
        description="The system message, as Jinja, for rows that bring none of their own; none where it is empty.",
    )
    turns: tuple[Turn, ...] = Field(default=(), description="User and assistant by turns; the last is the assistant's.")
    rounds_from: RoundsFrom | None = Field(default=None, description="Earlier turns, from a field; may stand alone.")
    messages_from: MessagesFrom | None = Field(default=None, description="Instead of turns: a field with messages.")
    labels: tuple[str, ...] = Field(default=(), description="Where every answer is one of a few: these.")
    group: str | None = Field(
        default=None,
        description="A field, or Jinja: rows of equal value never stand in two splits. Default: the prompt's text.",
    )
    category: str | None = Field(
        default=None,
        description="A field, or Jinja: what a row is about, such as an exam's subject. Scores are told for each.",
    )
    detect: bool = Field(default=False, description="Whether a recipe's `template: auto` may choose it.")
    sample: str | None = Field(default=None, description="A JSONL file of sample rows beside the template.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (bool(self.turns) or self.rounds_from is not None) == (self.messages_from is not None):
            raise ValueError("give either turns or messages_from, or rounds_from, alone or before turns")
        if self.turns and self.turns[-1].role != "assistant":
            raise ValueError("the last turn must be the assistant's: it is what the model learns to say")
        for place, field, optional in self._lists():
            if field not in self.fields and not (optional and field in self.optional_fields):
                raise ValueError(f"{place} {field!r} must be one of fields{' or optional_fields' if optional else ''}")
        if len(set(self.labels)) < len(self.labels) or "" in self.labels:
            raise ValueError(f"labels must be different texts; found {', '.join(map(repr, self.labels))}")
        return self

    def _lists(self) -> Iterable[tuple[str, str, bool]]:
        """Each field that holds a list of turns, where the template names it, and whether a row may lack it."""
        if self.rounds_from is not None:
            yield "rounds_from.field", self.rounds_from.field, bool(self.turns)
        if self.messages_from is not None:
            yield "messages_from.field", self.messages_from.field, False
            if self.messages_from.before is not None:
                yield "messages_from.before", self.messages_from.before, False

    @model_validator(mode="after")
    def _only_known_fields(self) -> Self:
        known = {*self.fields, *self.optional_fields}
        for place, text in self._texts():
            try:
                used = names_in(text)
            except jinja2.TemplateSyntaxError as error:
                raise ValueError(f"{place} is not sound Jinja: {error.message} (line {error.lineno})") from None
            for name in sorted(used - known - {WHOLE_ROW}):
                raise ValueError(f"{place} uses the field {name!r}. {nearest(name, tuple(known))}")
        return self

    @model_validator(mode="after")
    def _by_turns(self) -> Self:
        roles = [turn.role for turn in self.turns]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError(f"the turns are {', '.join(roles)}; expected user and assistant by turns")
        return self

    def _texts(self) -> Iterable[tuple[str, str]]:
        yield from ((f"turn {number}", turn.text) for number, turn in enumerate(self.turns, start=1))
        if self.system is not None:
            yield "system", self.system
        for place, text in (("group", self.group), ("category", self.category)):
            if text is not None:
                yield place, _as_jinja(text)


class RowMapper:
    """A data template made ready to map rows: to whole conversations, or to what is asked alone.

    `system_prompt` replaces every system message, the rows' own too; an empty one removes them. `group_by` replaces
    the template's group and may name a field that the template does not use.
    """

    def __init__(self, template: DataTemplate, *, system_prompt: str | None = None, group_by: str | None = None):
        self.template = template
        self._system_prompt = None if system_prompt is None else _system_messages(system_prompt)
        self._turns = [(turn.role, Text(turn.text, f"turn {n}")) for n, turn in enumerate(template.turns, start=1)]
        self._system = _system_text(template)
        place, group = ("group", template.group) if group_by is None else ("data.group_by", group_by)
        self._why = {group: f", which {place} names,"} if group is not None and not is_jinja(group) else {}
        self._needed = frozenset({*template.fields, *self._why})
        try:
            self._group = Text(_as_jinja(group), place) if group is not None else None
        except jinja2.TemplateSyntaxError as error:
            raise RecipeError(f"data.group_by is not sound Jinja: {error.message}. Give a field's name.") from None
        self._category = None if template.category is None else Text(_as_jinja(template.category), "category")
        texts = [*(text for _, text in self._turns), self._group, self._category, self._system]
        self._needs_jinja = any(isinstance(text, Text) and text.needs_jinja for text in texts)
        self._absent = dict.fromkeys(template.optional_fields)
        self._needed_to_ask = _needed_to_ask(template, with_system=system_prompt is None)

    def conversation(self, row: Row) -> Conversation:
        """The row as a conversation. Raises DataError, naming the row, when it is broken or the template unfit."""
        fields = row.whole().fields
        if not self._needed <= fields.keys():
            name = next(name for name in (*self.template.fields, *self._why) if name not in fields)
            raise missing(name, row, self._why.get(name, ""))
        values = self._values(fields)
        messages = self._with_system(self._messages(row, values), row, values)
        group, category = (
            turns.whole(text.render(row, values), row, text.place) if text else ""
            for text in (self._group, self._category)
        )
        return Conversation(messages=tuple(messages), group=group, category=category.strip())

    def prompt(self, row: Row) -> tuple[Message, ...]:
        """What the row asks: its conversation without the last answer, ending with the user's turn.

        The row needs no more fields than this is made of: an answer may be there or not, and is not looked at. Raises
        DataError, naming the row, when it is broken or the template does not fit it.
        """
        fields = row.whole().fields
        for name in self._needed_to_ask:
            if name not in fields:
                raise missing(name, row)
        values = self._values(fields)
        return tuple(self._with_system(self._asked(row, values), row, values))

    def _values(self, fields: dict[str, Any]) -> dict[str, Any]:
        """All names that the texts may use for a row's fields."""
        return self._absent | fields | {WHOLE_ROW: fields} if self._needs_jinja else fields

    def _asked(self, row: Row, values: Mapping[str, Any]) -> list[Message]:
        template = self.template
        if template.messages_from is not None:
            return turns.listed_prompt(template.messages_from, row)
        if template.rounds_from is not None and not self._turns:
            return turns.rounds_prompt(template.rounds_from, row)
        return self._spoken(self._turns[:-1], row, values)

    def _messages(self, row: Row, values: Mapping[str, Any]) -> list[Message]:
        template = self.template
        if template.messages_from is not None:
            return turns.listed(template.messages_from, row)
        return self._spoken(self._turns, row, values)

    def _spoken(self, texts: Sequence[tuple[Role, Text]], row: Row, values: Mapping[str, Any]) -> list[Message]:
        """Earlier rounds, where the template has them, and then the texts."""
        earlier = []
        if self.template.rounds_from is not None:
            earlier = turns.rounds(self.template.rounds_from, row, needed=not self._turns)
        return earlier + [turns.message(role, text.render(row, values), row, text.place) for role, text in texts]

    def _with_system(self, messages: list[Message], row: Row, values: Mapping[str, Any]) -> list[Message]:
        own = messages[0].role == "system"
        if self._system_prompt is not None:
            return self._system_prompt + (messages[1:] if own else messages)
        if own or self._system is None:
            return messages
        if isinstance(self._system, Text):
            text = turns.whole(self._system.render(row, values).strip(), row, "the system message")
            return _system_messages(text) + messages
        return self._system + messages


def _needed_to_ask(template: DataTemplate, *, with_system: bool) -> tuple[str, ...]:
    """Those of a template's fields that its prompts are made of, in its order.

    Of messages that another field continues, the field with the answer is not one of them.
    """
    texts = [turn.text for turn in template.turns[:-1]]
    if template.system is not None and with_system:
        texts.append(template.system)
    named = {name for text in texts for name in names_in(text)}
    if template.rounds_from is not None:
        named.add(template.rounds_from.field)
    if template.messages_from is not None:
        named.add(template.messages_from.before or template.messages_from.field)
    return tuple(field for field in template.fields if field in named)


def _system_text(template: DataTemplate) -> list[Message] | Text | None:
    """The template's system message: ready-made where it is the same for all rows."""
    if template.system is None or is_jinja(template.system):
        return None if template.system is None else Text(template.system, "system")
    return _system_messages(template.system.strip())


def _system_messages(text: str) -> list[Message]:
    return [Message(role="system", content=text)] if text else []


def _as_jinja(group: str) -> str:
    """A group's Jinja: as it stands, or printing the field that it names."""
    return group if is_jinja(group) else printing(group)


def find(name_or_path: str) -> Path:
    """The file of a data template: a shipped one by its name, or any by its path.

    Raises RecipeError when there is none.
    """
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise RecipeError(f"there is no data template {path.absolute()}. {nearest(path.stem, shipped_names())}")
        return path
    if name_or_path not in shipped_names():
        known = nearest(name_or_path, shipped_names())
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


def shipped_names() -> tuple[str, ...]:
    """The names of the templates that ship with fieldtune."""
    return tuple(sorted(path.stem for path in shipped.folder("data_templates").glob("*.yaml") if "." not in path.stem))


def columns(prompt: str, answer: str, system: str | None = None) -> DataTemplate:
    """A template of plain columns: texts in which `{field}` stands for a field, and `{{` and `}}` for braces.

    Raises RecipeError for a text that cannot be read so, and for a prompt or an answer that names no field.
    """
    texts = {"prompt": prompt, "answer": answer} | ({} if system is None else {"system": system})
    parts = {key: _column_parts(f"data.template.{key}", text, fixed=key == "system") for key, text in texts.items()}
    fields = [field for pieces in parts.values() for _, field in pieces if field is not None]
    made = {key: "".join(map(_jinja_of, pieces)) for key, pieces in parts.items()}
    return DataTemplate(
        description="The columns that the recipe names.",
        licence="none: it is part of a recipe",
        fields=dict.fromkeys(fields, "A column that the recipe names."),
        system=made.get("system"),
        turns=(Turn(role="user", text=made["prompt"]), Turn(role="assistant", text=made["answer"])),
    )


def question(prompt: str, place: str) -> DataTemplate:
    """A template that asks and has no answer: a text as `columns` takes it. Raises RecipeError, naming `place`."""
    pieces = _column_parts(place, prompt, fixed=False)
    return DataTemplate(
        description=f"The columns that {place} names.",
        licence="none: it is no file",
        fields={field: f"A column that {place} names." for _, field in pieces if field is not None},
        turns=(Turn(role="user", text="".join(map(_jinja_of, pieces))), Turn(role="assistant", text="")),
    )


_COLUMN_FORM = "Write fields as {field}, and a brace that is text twice: {{ or }}."


def _column_parts(place: str, text: str, *, fixed: bool) -> list[tuple[str, str | None]]:
    """Words and the field behind them, by turns; the field is None behind the last. `fixed`: it may name no field."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise RecipeError(f"{place}: {text!r} cannot be read: {error}. {_COLUMN_FORM}") from None
    for _, field, form, conversion in parsed:
        if field is not None and (not field.strip() or form or conversion):
            inside = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise RecipeError(f"{place}: {{{inside}}} is not the name of a field alone. {_COLUMN_FORM}")
    if not fixed and all(field is None for _, field, _, _ in parsed):
        jinja = re.search(r"\{\{\s*([^{}]+?)\s*\}\}", text)
        hint = f" Found Jinja's braces: write {{{jinja[1]}}}." if jinja else ""
        raise RecipeError(
            f"{place}: {text!r} names no field, so that every row would say the same.{hint} {_COLUMN_FORM}"
        )
    return [(words, field) for words, field, _, _ in parsed]


def _jinja_of(piece: tuple[str, str | None]) -> str:
    words, field = piece
    quoted = "{{ " + json.dumps(words, ensure_ascii=False) + " }}" if words else ""
    return quoted + ("" if field is None else printing(field))
