"""Draws rows of a row grammar: the kind, the language, and a value and words for every slot that is needed."""

import random
from dataclasses import dataclass, field

from pydantic import JsonValue

from export.errors import DataError
from finetune.data.grammar._arithmetic import evaluate
from finetune.data.grammar._row_checks import drawn_from
from finetune.data.grammar._row_grammar import LANGUAGE, SLOT, VALUE, WORDS, Kind, RowGrammar, Value, is_choice, plain
from finetune.data.grammar._words import Language, Phrases, Scalar, canonical

GROUP = "group"


def draw_row(grammar: RowGrammar, rng: random.Random) -> dict[str, JsonValue]:
    """One row: the fields of its kind, and `group`, which rows of equal meaning share in both languages.

    Raises DataError where a slot has no value left, or a computed one none that is listed.
    """
    kind = rng.choices(grammar.rows, [kind.share for kind in grammar.rows])[0]
    row = _Row(grammar, kind, rng, rng.choice(kind.languages))
    fields = {row.say(name): row.filled(node) for name, node in kind.fields.items()}
    return fields | {GROUP: canonical(fields) if kind.group is None else row.meaning(kind.group)}


@dataclass
class _Row:
    """One row in the making: its language, and the values and words drawn so far."""

    grammar: RowGrammar
    kind: Kind
    rng: random.Random
    language: Language
    values: dict[str, Value] = field(default_factory=dict)
    words: dict[tuple[str, str], Scalar] = field(default_factory=dict)

    def filled(self, node: JsonValue) -> JsonValue:
        """A node with its slots filled."""
        if is_choice(node):
            assert isinstance(node, dict)
            texts = node[self.language]
            return self.say(str(self.rng.choice(texts) if isinstance(texts, list) else texts))
        if isinstance(node, dict):
            return {self.say(key): self.filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [self.filled(item) for item in node]
        if isinstance(node, str):
            whole = SLOT.fullmatch(node)
            return self.part(whole[1], whole[2]) if whole and whole[2] else self.say(node)
        return node

    def say(self, text: str) -> str:
        """A text with its slots filled by their words, and the slots of those by theirs."""
        return SLOT.sub(lambda match: str(self.part(match[1], match[2] or WORDS)), text)

    def meaning(self, text: str) -> str:
        """A text with its slots filled by their values, which no language changes."""
        return SLOT.sub(lambda match: str(self.part(match[1], match[2] or VALUE)), text)

    def part(self, slot: str, name: str) -> Scalar:
        """What a slot stands for in this row: its words, or its value, or what belongs to it. Drawn once."""
        if slot == LANGUAGE:
            return self.language
        if (slot, name) not in self.words:
            found = self.value_of(slot).part(name)
            if isinstance(found, Phrases):
                found = self.say(self.rng.choice(found.of(self.language)))
            self.words[slot, name] = found
        return self.words[slot, name]

    def value_of(self, name: str) -> Value:
        """The slot's value in this row, drawn or computed when first asked for."""
        if name not in self.values:
            computed = self.grammar.slots[name].compute
            self.values[name] = self._drawn(name) if computed is None else self._computed(name, computed)
        return self.values[name]

    def _drawn(self, name: str) -> Value:
        slot, allowed = self.grammar.slots[name], self.kind.only.get(name)
        base, part = slot.another, slot.differs_in or VALUE
        if base is not None:
            self.value_of(base)
        relatives = [other for other in self.values if base and base in (other, self.grammar.slots[other].another)]
        taken = {self.values[other].part(part) for other in relatives}
        choices = [
            value
            for value in drawn_from(self.grammar, name)
            if (allowed is None or value.value in allowed) and not (taken and value.part(part) in taken)
        ]
        if not choices:
            raise DataError(
                f"grammar {self.grammar.name}, rows '{self.kind.name}': no value is left for the slot '{name}', which "
                f"must differ from {', '.join(relatives)}. Give '{base}' more values, or restrict them less (only)."
            )
        return self.rng.choice(choices)

    def _computed(self, name: str, expression: str) -> Value:
        try:
            result = evaluate(expression, lambda used: self.value_of(used).value)
        except ValueError as error:
            raise DataError(f"grammar {self.grammar.name}, slot '{name}': {error}.") from None
        listed = self.grammar.slots[name].values
        if not listed:
            return plain(result)
        found = next((value for value in listed if value.value == result), None)
        if found is None:
            known = ", ".join(str(value.value) for value in listed)
            raise DataError(
                f"grammar {self.grammar.name}, slot '{name}': computed {result!r}; expected one of {known}."
            )
        return found
