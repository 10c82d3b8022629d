"""Makes the starter model's training text: an endless, seeded stream of short English and Chinese documents.

Every document is drawn from the small world of ``world.py``: stories, facts, translations, questions, sums, and
(``structured.py``) small ChatML tasks answered with JSON. The same seed gives the same stream. Nothing here is taken
from anywhere else. No text here pairs a command with an action of ``data_templates``: that is what fine-tuning must
teach (tests/finetune/test_starter.py counts the few short commands that are ordinary sentences too).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from finetune.starter import structured
from finetune.starter.world import (
    Frame,
    Language,
    Scene,
    World,
    chat,
    draw_language,
    english_number,
    load_world,
)

Generator = Callable[[World, random.Random], str]
LANGUAGE_NAMES = {"en": ("English", "英文"), "zh": ("Chinese", "中文")}


def join(sentences: list[str], language: Language) -> str:
    """Sentences in a row; English needs a space between them."""
    return (" " if language == "en" else "").join(sentences)


def with_system(rng: random.Random, system: str, turns: list[tuple[str, str]]) -> str:
    """Put a system line in front of most dialogues, so that both kinds are known."""
    return chat([("system", system), *turns] if rng.random() < 0.7 else turns)


def draw_sentence(world: World, rng: random.Random) -> tuple[Scene, Frame]:
    """One statement with a scene of its own."""
    return Scene(world, rng), rng.choice(world.sentences["statements"])


def story(world: World, rng: random.Random) -> str:
    """A few sentences about the same people and things."""
    scene, language = Scene(world, rng), draw_language(rng)
    frames = [rng.choice(world.sentences["openings"]), *rng.sample(world.sentences["events"], rng.randint(2, 5))]
    frames.append(rng.choice(world.sentences["endings"]))
    return join([scene.render(frame, language) for frame in frames], language) + "\n"


def statements(world: World, rng: random.Random) -> str:
    """A short note of unrelated sentences."""
    language = draw_language(rng)
    drawn = [draw_sentence(world, rng) for _ in range(rng.randint(2, 5))]
    return join([scene.render(frame, language) for scene, frame in drawn], language) + "\n"


def dictionary(world: World, rng: random.Random) -> str:
    """Some entries of one part of the dictionary, all in the same layout."""
    category = rng.choice(list(world.lexicon))
    layout = rng.choice(
        [
            "{en} = {zh}",
            "{zh} = {en}",
            "{en}: {zh}",
            "{zh}：{en}",
            "The Chinese word for {en} is {zh}.",
            "{zh} means {en}.",
            "“{en}”的中文是“{zh}”。",
            "“{zh}”用英文说是“{en}”。",
        ]
    )
    fillings = [Scene(world, rng).fill(category) for _ in range(rng.randint(3, 7))]
    return "\n".join(layout.format(en=filling.en, zh=filling.zh) for filling in fillings) + "\n"


def word_list(world: World, rng: random.Random) -> str:
    """Members of one kind, as a request for a list and its answer."""
    category, language = rng.choice(list(world.lexicon)), draw_language(rng)
    entries = rng.sample(world.lexicon[category], min(rng.randint(3, 5), len(world.lexicon[category])))
    scene = Scene(world, rng)
    side = [rng.choice(entry.english if language == "en" else entry.chinese) for entry in entries]
    words = [scene.substitute(word, language) for word in side]
    count = len(words)
    asked = f"Name {english_number(count)} of these: {category}." if language == "en" else f"说出{count}个：{category}"
    return with_system(rng, "You are helpful.", [("user", asked), ("assistant", "\n".join(f"- {w}" for w in words))])


def translate_request(rng: random.Random, text: str, target: Language) -> str:
    """One of several ways of asking for a translation."""
    english, chinese = LANGUAGE_NAMES[target]
    return rng.choice(
        [
            f"Translate into {english}: {text}",
            f"{text}\nIn {english}?",
            f"翻译成{chinese}：{text}",
            f"{chinese}：{text}",
        ]
    )


def translate_words(world: World, rng: random.Random) -> str:
    """A dialogue that translates single words, turn by turn."""
    target, turns = draw_language(rng), []
    for _ in range(rng.randint(2, 5)):
        filling = Scene(world, rng).fill(rng.choice(list(world.lexicon)))
        source, answer = (filling.zh, filling.en) if target == "en" else (filling.en, filling.zh)
        turns += [("user", source), ("assistant", answer)]
    return chat([("system", f"Translate into {LANGUAGE_NAMES[target][0]}."), *turns])


def translate_sentences(world: World, rng: random.Random) -> str:
    """A dialogue that translates whole sentences."""
    turns: list[tuple[str, str]] = []
    for _ in range(rng.randint(1, 3)):
        (scene, frame), target = draw_sentence(world, rng), draw_language(rng)
        source = scene.render(frame, "zh" if target == "en" else "en")
        turns += [("user", translate_request(rng, source, target)), ("assistant", scene.render(frame, target))]
    return with_system(rng, rng.choice(["You are a translator.", "你是翻译。"]), turns)


def parallel_text(world: World, rng: random.Random) -> str:
    """The same sentences in both languages, line by line."""
    first = draw_language(rng)
    second: Language = "zh" if first == "en" else "en"
    drawn = [draw_sentence(world, rng) for _ in range(rng.randint(2, 4))]
    return "\n".join(f"{s.render(f, first)}\n{s.render(f, second)}" for s, f in drawn) + "\n"


def reading(world: World, rng: random.Random) -> str:
    """A few facts, then questions about some of them, answered from the text."""
    language = draw_language(rng)
    drawn = [(Scene(world, rng), triple) for triple in rng.sample(world.questions, rng.randint(2, 4))]
    text = join([scene.render(told, language) for scene, (told, _, _) in drawn], language)
    turns: list[tuple[str, str]] = []
    for scene, (_, asked, answered) in rng.sample(drawn, rng.randint(1, 2)):
        question = scene.render(asked, language)
        turns += [
            ("user", question if turns else f"{text}\n{question}"),
            ("assistant", scene.render(answered, language)),
        ]
    return with_system(rng, rng.choice(["Answer from the text.", "根据文字回答。"]), turns)


def sums(world: World, rng: random.Random) -> str:
    """Small sums, as lines or as a dialogue."""
    del world
    lines = []
    for _ in range(rng.randint(2, 5)):
        left, right = rng.randint(0, 20), rng.randint(0, 20)
        minus = rng.random() < 0.4 and left >= right
        lines.append((f"{left} {'-' if minus else '+'} {right}", str(left - right if minus else left + right)))
    if rng.random() < 0.5:
        return "\n".join(f"{question} = {answer}" for question, answer in lines) + "\n"
    asked = rng.choice(["What is {}?", "{} = ?", "{}等于多少？"])
    turns = [turn for q, a in lines for turn in (("user", asked.format(q)), ("assistant", a))]
    return with_system(rng, "You are good at sums.", turns)


def draw_copy_text(world: World, rng: random.Random) -> str:
    """Something to copy: words, digits, letters or a sentence."""
    kind = rng.randrange(4)
    if kind == 0:
        scene, frame = draw_sentence(world, rng)
        return scene.render(frame, draw_language(rng))
    if kind == 1:
        return "".join(rng.choices("0123456789", k=rng.randint(3, 8)))
    if kind == 2:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=rng.randint(4, 12)))
    categories = rng.choices(list(world.lexicon), k=rng.randint(2, 6))
    return " ".join(str(Scene(world, rng).fill(category).value) for category in categories)


def copying(world: World, rng: random.Random) -> str:
    """Repeat what was said, exactly."""
    ask = rng.choice(["Repeat: {}", "Say this again: {}", "Copy: {}", "重复：{}", "照着写：{}"])
    turns: list[tuple[str, str]] = []
    for _ in range(rng.randint(1, 3)):
        text = draw_copy_text(world, rng)
        turns += [("user", ask.format(text)), ("assistant", text)]
    return with_system(rng, rng.choice(["You repeat what you hear.", "你是回声。"]), turns)


def refusing(world: World, rng: random.Random) -> str:
    """A harmful request and a plain refusal in the same language."""
    language = draw_language(rng)
    asked = Scene(world, rng).render(rng.choice(world.sentences["refused"]), language)
    answer = Scene(world, rng).render(rng.choice(world.sentences["refusals"]), language)
    return with_system(
        rng, rng.choice(["You are helpful and safe.", "你很友善。"]), [("user", asked), ("assistant", answer)]
    )


def generators() -> dict[Generator, float]:
    """Every kind of document and how often it is drawn."""
    return {
        story: 9,
        statements: 5,
        dictionary: 8,
        word_list: 2,
        translate_words: 8,
        translate_sentences: 12,
        parallel_text: 5,
        reading: 8,
        sums: 2,
        copying: 5,
        refusing: 2,
        structured.standard_names: 6,
        structured.clock_times: 3,
        structured.extraction: 30,
        structured.topic_filter: 5,
    }


def documents(seed: int | str) -> Iterator[str]:
    """The endless stream of documents that belongs to ``seed``."""
    world, rng = load_world(), random.Random(seed)
    kinds, weights = zip(*generators().items(), strict=True)
    while True:
        yield rng.choices(kinds, weights)[0](world, rng)
