"""ChatML tasks with structured answers: JSON filled from a sentence, canonical names, clock times.

Every task draws its own field names, field order and layout, so that the model learns to write JSON and to follow a
list of fields, and no fixed schema. The sentences come from the ``domains`` of frames.yaml.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from finetune.starter.world import Domain, Language, Scene, World, chat, draw_clock, draw_language

OPENERS = {
    "en": ["", "", "", "Hello, ", "Well, ", "Um, ", "Please note: ", "Hey, ", "OK, ", "So, "],
    "zh": ["", "", "", "你好，", "嗯，", "那个，", "请注意，", "麻烦一下，", "好的，", "喂，"],
}
CLOSERS = {
    "en": [".", ".", "", ", please.", ", thanks.", " please", "!"],
    "zh": ["。", "。", "", "，谢谢。", "，好吗？", "吧", "！"],
}
GROUPS = ["details", "more", "extra", "info", "rest"]


@dataclass(frozen=True)
class Told:
    """A sentence and the values it mentions, by slot, in the order of the domain's field names."""

    sentence: str
    values: dict[str, str | int]
    optional: frozenset[str]


def compact(value: object) -> str:
    """JSON without spaces, with Chinese characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def tell(world: World, domain: Domain, rng: random.Random, language: Language) -> Told:
    """Draw a sentence of one domain with none, some or all of its optional tails."""
    scene, frame = Scene(world, rng), rng.choice(domain.frames)
    extras = rng.sample(domain.extras, rng.randint(0, len(domain.extras)))
    tails = [scene.substitute(extra.en if language == "en" else extra.zh, language) for extra in extras]
    comma = rng.choice([", ", " "]) if language == "en" else rng.choice(["，", ""])
    body = comma.join([scene.render(frame, language), *tails])
    opener = rng.choice(OPENERS[language])
    if opener and language == "en" and body.split()[0] in {"A", "The", "Send", "Please", "Turn", "Book", "Carry"}:
        body = body[0].lower() + body[1:]
    optional = frozenset(slot for extra in extras for slot in extra.slots())
    mentioned = frame.slots() | optional
    values = {slot: scene.fill(slot).value for slot in domain.names if slot in mentioned}
    return Told(opener + body + rng.choice(CLOSERS[language]), values, optional - frame.slots())


def named_fields(domain: Domain, told: Told, rng: random.Random) -> tuple[str, str]:
    """Ask for a drawn list of fields, in a drawn order; what the sentence does not say is null."""
    slots = list(told.values)
    absent = [slot for slot in domain.names if slot not in told.values]
    asked = rng.sample(slots, rng.randint(min(2, len(slots)), len(slots)))
    if absent and rng.random() < 0.25:
        asked.insert(rng.randrange(len(asked) + 1), rng.choice(absent))
    names = {slot: rng.choice(domain.names[slot]) for slot in asked}
    if len(set(names.values())) < len(names):
        names = {slot: domain.names[slot][0] for slot in asked}
    listing = ", ".join(names.values())
    system = rng.choice(
        [
            f"Answer with a JSON object. Fields: {listing}.",
            f"Fill these fields: {listing}.",
            f"Return one JSON object with {listing}.",
            f"把句子写成JSON，字段：{listing}。",
            f"只回答JSON：{listing}",
        ]
    )
    return system, compact({name: told.values.get(slot) for slot, name in names.items()})


def grouped_fields(domain: Domain, told: Told, rng: random.Random) -> tuple[str, str]:
    """The domain's usual field names, with the optional values in an inner object."""
    group = rng.choice(GROUPS)
    usual = {slot: names[0] for slot, names in domain.names.items()}
    answer: dict[str, object] = {usual[s]: v for s, v in told.values.items() if s not in told.optional}
    answer[group] = {usual[slot]: value for slot, value in told.values.items() if slot in told.optional}
    system = rng.choice(
        [
            f"Write the sentence as JSON; what is optional goes into {group}.",
            f"One JSON object, with {group} for the rest.",
            f"写成JSON，其余放进{group}。",
        ]
    )
    return system, compact(answer)


def usual_fields(domain: Domain, told: Told, rng: random.Random) -> tuple[str, str]:
    """The domain's usual field names in their usual order."""
    system = rng.choice(
        ["Answer with JSON.", "Turn the sentence into JSON.", "Reply with one JSON object.", "用JSON回答。"]
    )
    return system, compact({domain.names[slot][0]: value for slot, value in told.values.items()})


def extraction(world: World, rng: random.Random) -> str:
    """One or two sentences turned into JSON under the same instructions."""
    domain, layout = rng.choice(list(world.domains.values())), rng.choice([named_fields, grouped_fields, usual_fields])
    told = tell(world, domain, rng, draw_language(rng))
    system, answer = layout(domain, told, rng)
    return chat([("system", system), ("user", told.sentence), ("assistant", answer)])


def topic_filter(world: World, rng: random.Random) -> str:
    """JSON for sentences of one topic, and a fixed JSON error for everything else."""
    topic = rng.choice(list(world.domains))
    error = compact({"error": rng.choice(["wrong_topic", "not_understood", "other_topic", "unknown"])})
    turns = [("system", f"Only {topic}: answer with JSON. Anything else: {error}")]
    for _ in range(rng.randint(1, 2)):
        language = draw_language(rng)
        if rng.random() < 0.5:
            told = tell(world, world.domains[topic], rng, language)
            answer = usual_fields(world.domains[topic], told, rng)[1]
            turns += [("user", told.sentence), ("assistant", answer)]
        else:
            turns += [("user", off_topic(world, rng, topic, language)), ("assistant", error)]
    return chat(turns)


def off_topic(world: World, rng: random.Random, topic: str, language: Language) -> str:
    """A sentence that does not belong to ``topic``: of another domain, a statement, or something refused."""
    others = [domain for name, domain in world.domains.items() if name != topic]
    if rng.random() < 0.4:
        return tell(world, rng.choice(others), rng, language).sentence
    return Scene(world, rng).render(rng.choice(world.sentences[rng.choice(["statements", "refused"])]), language)


def standard_names(world: World, rng: random.Random) -> str:
    """Words in either language and their canonical English names."""
    system = rng.choice(["Give the standard name.", "Standard English names.", "给出标准名称。"])
    turns = [("system", system)]
    for _ in range(rng.randint(2, 5)):
        filling = Scene(world, rng).fill(rng.choice(list(world.lexicon)))
        turns += [("user", rng.choice([filling.en, filling.zh, filling.zh])), ("assistant", str(filling.value))]
    return chat(turns)


def clock_times(world: World, rng: random.Random) -> str:
    """Times of day as they are said, and as a clock shows them."""
    del world
    turns = [("system", rng.choice(["Write the time as HH:MM.", "把时间写成HH:MM。"]))]
    for _ in range(rng.randint(2, 5)):
        filling = draw_clock(rng)
        turns += [("user", rng.choice([filling.en, filling.zh])), ("assistant", str(filling.value))]
    return chat(turns)
