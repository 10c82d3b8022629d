"""Expands a command grammar (YAML) into training rows: a spoken command, and the JSON action it stands for.

A grammar says how people phrase things and what each phrasing means; ``data_templates/`` holds one, with comments.
Rows are drawn from a seed, without duplicates, and every row names its *combination*: rows that mean the same action
share it in all languages, so a split by combination keeps whole actions out of training. Splitting, prompts and
scoring are left to others; so is every word of every domain.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, JsonValue

from export.errors import DataError
from finetune.data.grammar._words import LANGUAGES, Language, Phrases, Scalar, Strict, canonical, texts_in

Place = Literal["before", "after"]
RESERVED_SLOTS = frozenset({"before", "after", "options"})
SLOT = re.compile(r"\{(\w+)\}")


class SlotValue(Phrases):
    """One value of a slot as the action writes it, and its phrases; phrases may hold other slots."""

    value: Scalar


class Places(Strict):
    """Where an option may be said, per language."""

    en: tuple[Place, ...] = ("after",)
    zh: tuple[Place, ...] = ("after",)


class Slot(Strict):
    """A gap in sentences; ``position`` matters only for slots that are used as options."""

    values: tuple[SlotValue, ...] = Field(min_length=1)
    position: Places = Places()


class Joiner(Strict):
    """What stands between a sentence and the options said before and after it."""

    before: str
    after: str


class Joiners(Strict):
    """The joiner of each language."""

    en: Joiner
    zh: Joiner


class Intent(Strict):
    """One kind of command: its sentences, the action they mean and the options it may carry."""

    name: str
    share: float = Field(gt=0)
    action: dict[str, JsonValue]
    only: dict[str, tuple[Scalar, ...]] = Field(default={})
    options: tuple[str, ...] = ()
    sentences: Phrases


class Family(Phrases):
    """Sentences of one topic that the grammar's commands do not cover."""

    name: str


class OutOfScope(Strict):
    """The families of out-of-scope sentences and the one action that answers them all."""

    share: float = Field(gt=0)
    action: dict[str, JsonValue]
    families: tuple[Family, ...] = Field(min_length=1)


class Grammar(Strict):
    """A whole grammar file."""

    name: str
    description: str
    system_prompt: str
    joiners: Joiners
    openers: Phrases
    closers: Phrases
    slots: dict[str, Slot]
    options_chance: tuple[float, ...] = Field(min_length=1)
    intents: tuple[Intent, ...] = Field(min_length=1)
    out_of_scope: OutOfScope


@dataclass
class Draw:
    """One row in the making: the language, and the slot values drawn so far."""

    grammar: Grammar
    rng: random.Random
    language: Language
    only: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    values: dict[str, SlotValue] = field(default_factory=dict)

    def value_of(self, slot: str) -> SlotValue:
        """The slot's value in this row, drawn when first asked for."""
        if slot not in self.values:
            allowed = self.only.get(slot)
            choices = [value for value in self.grammar.slots[slot].values if allowed is None or value.value in allowed]
            self.values[slot] = self.rng.choice(choices)
        return self.values[slot]

    def say(self, text: str) -> str:
        """Fill the slots of a text, and those of the phrases they are filled with."""

        def phrase(match: re.Match[str]) -> str:
            return self.say(self.rng.choice(self.value_of(match[1]).of(self.language)))

        return SLOT.sub(phrase, text)


def slots_in(node: JsonValue) -> Iterator[str]:
    """Every slot named anywhere in a text, list or object."""
    return (slot for text in texts_in(node) for slot in SLOT.findall(text))


def used_slots(grammar: Grammar) -> Iterator[tuple[str, str]]:
    """Pairs of (where it is used, slot) for every use of a slot."""
    for name, slot in grammar.slots.items():
        for value in slot.values:
            yield from ((f"slot '{name}', value '{value.value}'", used) for used in slots_in([*value.en, *value.zh]))
    for intent in grammar.intents:
        texts: JsonValue = [*intent.sentences.en, *intent.sentences.zh, intent.action]
        for used in [*slots_in(texts), *intent.options, *intent.only]:
            yield f"intent '{intent.name}'", used
    for family in grammar.out_of_scope.families:
        yield from ((f"out-of-scope family '{family.name}'", used) for used in slots_in([*family.en, *family.zh]))


def check_slots(grammar: Grammar, source: str) -> None:
    """Raise a DataError that names the first use of a slot which the grammar does not define."""
    for where, slot in used_slots(grammar):
        if slot not in grammar.slots and slot not in RESERVED_SLOTS:
            known = ", ".join(sorted(grammar.slots))
            raise DataError(f"{source}: {where} uses the slot '{slot}', which is not defined. Defined: {known}")


def check_restrictions(grammar: Grammar, source: str) -> None:
    """Raise a DataError if an intent's ``only`` leaves a slot without values."""
    for intent in grammar.intents:
        for slot, allowed in intent.only.items():
            unknown = set(allowed) - {value.value for value in grammar.slots[slot].values}
            if unknown or not allowed:
                raise DataError(f"{source}: intent '{intent.name}' allows unknown values of '{slot}': {unknown}")


def check(grammar: Grammar, source: str) -> None:
    """Raise a DataError where the grammar in `source` names what it does not define."""
    check_slots(grammar, source)
    check_restrictions(grammar, source)


def draw_options(draw: Draw, intent: Intent) -> list[str]:
    """Choose which of the intent's options this row carries, in a random order of speaking."""
    chances = draw.grammar.options_chance[: len(intent.options) + 1]
    count = draw.rng.choices(range(len(chances)), chances)[0]
    return draw.rng.sample(intent.options, count)


def say_options(draw: Draw, options: list[str]) -> dict[Place, str]:
    """The spoken options for each place of a sentence, joined in the language's way."""
    joiners = draw.grammar.joiners
    joiner = joiners.en if draw.language == "en" else joiners.zh
    spoken: dict[Place, str] = {"before": "", "after": ""}
    for option in options:
        position = draw.grammar.slots[option].position
        place = draw.rng.choice(position.en if draw.language == "en" else position.zh)
        phrase = draw.say("{" + option + "}")
        spoken[place] += phrase + joiner.before if place == "before" else joiner.after + phrase
    return spoken


def place_options(sentence: str, spoken: dict[Place, str]) -> str | None:
    """Put the spoken options into a sentence, or None if it has no room for one of them."""
    places: tuple[Place, Place] = ("before", "after")
    for place in places:
        marker = "{" + place + "}"
        if spoken[place] and marker not in sentence:
            return None
        sentence = sentence.replace(marker, spoken[place])
    return sentence


def fill_action(node: JsonValue, draw: Draw, options: dict[str, JsonValue]) -> JsonValue:
    """Replace every ``"{slot}"`` of an action by its value, and ``"{options}"`` by the options object."""
    if isinstance(node, dict):
        return {key: fill_action(value, draw, options) for key, value in node.items()}
    if isinstance(node, list):
        return [fill_action(item, draw, options) for item in node]
    if node == "{options}":
        return options
    match = SLOT.fullmatch(node) if isinstance(node, str) else None
    return draw.value_of(match[1]).value if match else node


def wrap(draw: Draw, sentence: str) -> str:
    """Add an opener and a closer, such as "please" and "thanks"."""
    openers, closers = (part.of(draw.language) for part in (draw.grammar.openers, draw.grammar.closers))
    return draw.rng.choice(openers) + sentence + draw.rng.choice(closers)


def make_row(draw: Draw, command: str, action: str, combination: str) -> dict[str, str]:
    """The four columns of a row."""
    return {"command": wrap(draw, command), "language": draw.language, "action": action, "combination": combination}


def draw_command(grammar: Grammar, rng: random.Random) -> dict[str, str]:
    """One row of a command that is in scope."""
    intent = rng.choices(grammar.intents, [intent.share for intent in grammar.intents])[0]
    draw = Draw(grammar, rng, rng.choice(LANGUAGES), intent.only)
    options = draw_options(draw, intent)
    spoken = say_options(draw, options)
    fitting = [placed for text in intent.sentences.of(draw.language) if (placed := place_options(text, spoken))]
    if not fitting:
        raise DataError(f"grammar {grammar.name}: intent '{intent.name}' has no sentence with room for {options}")
    command = draw.say(rng.choice(fitting))
    chosen: dict[str, JsonValue] = {name: draw.value_of(name).value for name in intent.options if name in options}
    action = canonical(fill_action(intent.action, draw, chosen))
    return make_row(draw, command, action, combination_of(intent, chosen, action, command))


def combination_of(intent: Intent, chosen: Mapping[str, JsonValue], action: str, command: str) -> str:
    """The group of a row: its action, where two slots or more are combined in it.

    An action of a single slot combines nothing: held back as a whole, it would ask for something that training never
    mentioned. Its rows are grouped by their words instead, so that the held-out part asks in words never heard.
    """
    filled = len({*SLOT.findall(json.dumps(intent.action))} - {"options"}) + len(chosen)
    return action if filled >= 2 else f"{action} {command}"


def draw_out_of_scope(grammar: Grammar, rng: random.Random) -> dict[str, str]:
    """One row of a request that must be refused; its combination is its family."""
    draw = Draw(grammar, rng, rng.choice(LANGUAGES))
    family = rng.choice(grammar.out_of_scope.families)
    command = draw.say(rng.choice(family.of(draw.language)))
    return make_row(draw, command, canonical(grammar.out_of_scope.action), f"out_of_scope/{family.name}")


def draw_row(grammar: Grammar, rng: random.Random) -> dict[str, str]:
    """One row, in scope or not, by the shares of the grammar."""
    share_in_scope = sum(intent.share for intent in grammar.intents)
    in_scope = rng.random() * (share_in_scope + grammar.out_of_scope.share) < share_in_scope
    return draw_command(grammar, rng) if in_scope else draw_out_of_scope(grammar, rng)
