"""What a row grammar must be beyond its schema: every name it uses is defined, and every slot can be filled.

Found before a row is drawn, so that a mistake in a rare kind of rows does not wait for that kind.
"""

from collections.abc import Iterator

from pydantic import JsonValue

from export.errors import DataError
from finetune.data.grammar._arithmetic import names_in
from finetune.data.grammar._row_grammar import (
    LANGUAGE,
    SLOT,
    VALUE,
    WORDS,
    Kind,
    RowGrammar,
    Slot,
    Value,
    is_choice,
    plain,
)
from finetune.data.grammar._words import Phrases, texts_in


def check(grammar: RowGrammar, source: str) -> None:
    """Raise a DataError, naming `source`, the place and the fault, for the first mistake that is found."""
    try:
        _check_names(grammar)
        for name, slot in grammar.slots.items():
            _check_slot(grammar, name, slot)
        for kind in grammar.rows:
            _check_kind(grammar, kind)
        _check_circles(grammar)
    except ValueError as error:
        raise DataError(f"{source}: {error}.") from None


def drawn_from(grammar: RowGrammar, name: str) -> tuple[Value, ...]:
    """The values that a slot is drawn from; none for a computed number."""
    slot = grammar.slots[name]
    if slot.another is not None:
        return drawn_from(grammar, slot.another)
    if slot.range is not None:
        return tuple(plain(number) for number in range(slot.range[0], slot.range[1] + 1))
    return slot.values


def _check_names(grammar: RowGrammar) -> None:
    if LANGUAGE in grammar.slots:
        raise ValueError(f"a slot is named {LANGUAGE!r}, which always stands for the row's language. Rename it")
    names = [kind.name for kind in grammar.rows]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two kinds of rows are named {repeated[0]!r}; expected a name for each")


def _check_slot(grammar: RowGrammar, name: str, slot: Slot) -> None:
    place = f"slot '{name}'"
    if slot.another is not None:
        _defined(grammar, slot.another, place)
        if grammar.slots[slot.another].another or grammar.slots[slot.another].compute:
            raise ValueError(f"{place} is another '{slot.another}', which is not drawn itself. Name the slot behind it")
        if slot.differs_in is not None:
            _has_part(grammar, slot.another, slot.differs_in, place)
    if slot.compute is not None:
        for used in names_in(slot.compute):
            _defined(grammar, used, f"{place}, compute")
    values = [value.value for value in slot.values]
    if repeated := next((value for value in values if values.count(value) > 1), None):
        raise ValueError(f"{place} has the value {repeated!r} twice; expected different values")
    for value in slot.values:
        _check_texts(grammar, _texts_of(value), f"{place}, value '{value.value}'")


def _check_kind(grammar: RowGrammar, kind: Kind) -> None:
    place = f"rows '{kind.name}'"
    _check_choices(list(kind.fields.values()), place)
    _check_texts(grammar, [*texts_in(kind.fields), *([kind.group] if kind.group is not None else [])], place)
    for name, allowed in kind.only.items():
        _defined(grammar, name, f"{place}, only")
        known = {value.value for value in drawn_from(grammar, name)}
        if grammar.slots[name].compute is not None:
            raise ValueError(f"{place} allows only some values of '{name}', which is computed. Restrict what it is of")
        if unknown := set(allowed) - known or not allowed:
            raise ValueError(f"{place} allows unknown values of '{name}': {unknown if allowed else 'none at all'}")


def _check_choices(nodes: list[JsonValue], place: str) -> None:
    """Of `{en, zh}` both must hold a text or a list of texts."""
    for node in nodes:
        if is_choice(node):
            assert isinstance(node, dict)
            for language, texts in node.items():
                if not isinstance(texts, str) and not (
                    isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
                ):
                    raise ValueError(f"{place}: found {texts!r} under {language!r}; expected a text or a list of texts")
        elif isinstance(node, dict | list):
            _check_choices(list(node.values()) if isinstance(node, dict) else node, place)


def _check_texts(grammar: RowGrammar, texts: list[str], place: str) -> None:
    for text in texts:
        for name, part in SLOT.findall(text):
            if name == LANGUAGE and not part:
                continue
            _defined(grammar, name, place)
            if part:
                _has_part(grammar, name, part, place)


def _defined(grammar: RowGrammar, name: str, place: str) -> None:
    if name not in grammar.slots:
        known = ", ".join(sorted(grammar.slots)) or "none"
        raise ValueError(f"{place} uses the slot '{name}', which is not defined. Defined: {known}")


def _has_part(grammar: RowGrammar, name: str, part: str, place: str) -> None:
    if part in (VALUE, WORDS):
        return
    values = drawn_from(grammar, name)
    lacking = next((value for value in values if part not in value.also), None)
    if lacking is not None or not values:
        which = f"its value '{lacking.value}' has" if lacking is not None else "numbers have"
        raise ValueError(f"{place} uses '{part}' of the slot '{name}', but {which} no such entry under 'also'")


def _check_circles(grammar: RowGrammar) -> None:
    """Raise ValueError where a slot needs itself, directly or through others."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise ValueError(f"the slot '{name}' needs itself: {circle}")
        if name not in done:
            for needed in _needed_by(grammar.slots[name]):
                visit(needed, (*path, name))
            done.add(name)

    for name in grammar.slots:
        visit(name, ())


def _needed_by(slot: Slot) -> Iterator[str]:
    if slot.another is not None:
        yield slot.another
    if slot.compute is not None:
        yield from names_in(slot.compute)
    for value in slot.values:
        for text in _texts_of(value):
            yield from (name for name, _ in SLOT.findall(text) if name != LANGUAGE)


def _texts_of(value: Value) -> list[str]:
    """All words of a value, those under `also` included."""
    more = [text for part in value.also.values() if isinstance(part, Phrases) for text in (*part.en, *part.zh)]
    return [*value.en, *value.zh, *more]
