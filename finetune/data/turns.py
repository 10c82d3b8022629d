"""Turns that a row already holds as a list: messages with a role each, or rounds of a question and an answer.

What becomes a message here is checked to be text; what is in the wrong order is refused with what was found.
"""

from typing import Any, NoReturn

from pydantic import Field, model_validator

from export.chat import Message, Role
from export.errors import DataError
from export.frozen import Frozen
from export.plugins import nearest
from finetune.data.sources import Row, kind_of


class MessagesFrom(Frozen):
    """Where a row that already holds a list of messages keeps them."""

    field: str = Field(description="The field that holds the list.")
    before: str | None = Field(default=None, description="A field with the messages that come before it, of like form.")
    role: str = Field(default="role", description="The key of each entry that says who speaks.")
    content: str = Field(default="content", description="The key of each entry that holds the words.")
    roles: dict[str, Role] = Field(
        default={"system": "system", "user": "user", "assistant": "assistant"},
        description="What each role is called in the rows, mapped to system, user or assistant.",
    )


class RoundsFrom(Frozen):
    """Where a row keeps rounds, each what the user said and what the assistant answered.

    A round is a pair, [user, assistant], or with `user` and `assistant` given an object with these keys.
    """

    field: str = Field(description="The field that holds the list of rounds; before turns it may be null or missing.")
    user: str | None = Field(default=None, description="The key of the user's words; null: rounds are pairs.")
    assistant: str | None = Field(default=None, description="The key of the assistant's words; null: rounds are pairs.")
    system: str | None = Field(
        default=None, description="The key of the system message, which the first round may have."
    )

    @model_validator(mode="after")
    def _pairs_or_objects(self) -> "RoundsFrom":
        if (self.user is None) != (self.assistant is None):
            raise ValueError("give both user and assistant, or neither where each round is a pair")
        if self.system is not None and self.user is None:
            raise ValueError("system needs user and assistant: a pair has no keys")
        return self


def message(role: Role, content: Any, row: Row, place: str) -> Message:
    """One turn. Raises DataError, naming `place`, where its content is no text or holds what is no character."""
    if type(content) is not str:
        raise DataError(
            f"{row.origin}: {place} holds {_shown(content)}; expected text. Give it its words, or remove the row."
        )
    return Message(role=role, content=whole(content, row, place))


def whole(text: str, row: Row, place: str) -> str:
    """The text. Raises DataError, naming `place`, where it holds what is no character and cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{row.origin}: {place} holds half a surrogate pair (such as \\ud83d alone), which is no character; "
            "expected text. Repair it, or remove the row."
        ) from None
    return text


def listed(source: MessagesFrom, row: Row) -> list[Message]:
    """The messages of a row's list, in order. Raises DataError where it is not one, or they are no conversation."""
    messages = [] if source.before is None else _entries(source, source.before, row)
    messages += _entries(source, source.field, row)
    _check_order(messages, source, row)
    return messages


def listed_prompt(source: MessagesFrom, row: Row) -> list[Message]:
    """The messages of a row's list up to the user's last; an answer behind it is left out, where there is one.

    Messages that come before may be all there is. Raises DataError as `listed` does.
    """
    messages = [] if source.before is None else _entries(source, source.before, row)
    if source.before is None or row.fields.get(source.field):
        messages += _entries(source, source.field, row)
    if messages[-1].role == "assistant":
        messages.pop()
    roles = [item.role for item in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise DataError(
            f"{row.origin}: in the field {source.before or source.field!r} the turns before the answer are "
            f"{', '.join(roles) or 'none'}; expected an optional system message, then user and assistant by turns, the "
            "user last. Put the turns in order, or remove the row."
        )
    return messages


def rounds(source: RoundsFrom, row: Row, *, needed: bool) -> list[Message]:
    """The turns of a row's rounds; a system message first where the rounds bring one.

    Raises DataError where a round is of another form, and when `needed` where there is none.
    """
    entries = row.fields.get(source.field)
    if not needed and entries in (None, [], ""):  # an empty cell of a table is text
        return []
    if not isinstance(entries, list) or not entries:
        form = "[user, assistant]" if source.user is None else f"{{{source.user}, {source.assistant}}}"
        raise DataError(
            f"{row.origin}: the field {source.field!r} holds {_shown(entries)}; expected a list of rounds, each "
            f"{form}. Fill it in, remove the row, or choose another template."
        )
    messages: list[Message] = []
    for number, entry in enumerate(entries, start=1):
        place = f"round {number} of the field {source.field!r}"
        asked, answered = _round(source, entry, row, place)
        if source.system is not None:
            messages += _system(entry.get(source.system), source.system, number, row, place)
        messages.append(message("user", asked, row, place))
        messages.append(message("assistant", answered, row, place))
    return messages


def rounds_prompt(source: RoundsFrom, row: Row) -> list[Message]:
    """The turns of a row's rounds up to the last question; the answer to it is left out, where there is one.

    Raises DataError as `rounds` does.
    """
    entries = row.fields.get(source.field)
    if isinstance(entries, list) and entries:
        asked = [*entries[:-1], _with_empty_answer(source, entries[-1])]
        row = row._replace(fields={**row.fields, source.field: asked})
    return rounds(source, row, needed=True)[:-1]


def _with_empty_answer(source: RoundsFrom, entry: Any) -> Any:
    """A round whose answer is not looked at; what is no round stays as it is, to be refused."""
    if source.assistant is not None:
        return {**entry, source.assistant: ""} if isinstance(entry, dict) else entry
    return [entry[0], ""] if isinstance(entry, list | tuple) and len(entry) in (1, 2) else entry


def _round(source: RoundsFrom, entry: Any, row: Row, place: str) -> tuple[Any, Any]:
    if source.user is None:
        if isinstance(entry, list | tuple) and len(entry) == 2:
            return entry[0], entry[1]
        expected = "a pair of texts, [user, assistant]"
    else:
        if isinstance(entry, dict) and source.user in entry and source.assistant in entry:
            return entry[source.user], entry[source.assistant]
        expected = f"an object with {source.user!r} and {source.assistant!r}"
    raise DataError(
        f"{row.origin}: {place} holds {_shown(entry)}; expected {expected}. Mend the row, or name the keys in the "
        "template's rounds_from."
    )


def _system(content: Any, key: str, number: int, row: Row, place: str) -> list[Message]:
    if content is None or content == "":
        return []
    if number > 1:
        raise DataError(
            f"{row.origin}: {place} has {_shown(content)} as {key!r}; expected a system message in the first round "
            "only. Move it there, or remove it."
        )
    return [message("system", content, row, f"{key!r} in {place}")]


def _entries(source: MessagesFrom, field: str, row: Row) -> list[Message]:
    entries = row.fields[field]
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f"{row.origin}: the field {field!r} holds {_shown(entries)}; expected a list of messages, each with "
            f"{source.role!r} and {source.content!r}. Fill it in, remove the row, or choose another template."
        )
    roles, role_key, content_key = source.roles, source.role, source.content
    messages = []
    for number, entry in enumerate(entries, start=1):
        try:
            role, content = roles[entry[role_key]], entry[content_key]
        except (KeyError, TypeError, IndexError):
            _refuse_entry(source, entry, row, f"message {number} of the field {field!r}")
        messages.append(message(role, content, row, f"message {number} of the field {field!r}"))
    return messages


def _refuse_entry(source: MessagesFrom, entry: Any, row: Row, place: str) -> NoReturn:
    absent = [key for key in (source.role, source.content) if not isinstance(entry, dict) or key not in entry]
    if absent:
        raise DataError(
            f"{row.origin}: {place} has no {absent[0]!r}; found {_shown(entry)}. Add it, or name the key in the "
            "template's messages_from."
        )
    name = entry[source.role]
    raise DataError(
        f"{row.origin}: {place} is of the unknown role {name!r:.60}. {nearest(str(name), tuple(source.roles))} Name "
        "other roles in the template's messages_from.roles, or remove the row."
    )


def _check_order(messages: list[Message], source: MessagesFrom, row: Row) -> None:
    """Refuses orders that a chat template would render to something no user could have written."""
    roles = [item.role for item in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        remedy = (
            "The last answer is missing: add it, or remove the row."
            if roles[-1] != "assistant"
            else "Put the turns in order, join those that follow one another from one speaker, or remove the row."
        )
        raise DataError(
            f"{row.origin}: in the field {source.field!r} the turns are {', '.join(roles)}; expected an optional "
            f"system message, then user and assistant by turns, the assistant last. {remedy}"
        )


def _shown(value: Any) -> str:
    return "null" if value is None else f"{kind_of(value)}, {value!r:.60}"
