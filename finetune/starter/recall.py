"""Documents that can only be continued by looking back: copies, repetitions, and pairs to look up.

A small model learns late, if at all, to fetch a word from the text before it, and every task that reads a value out of
a sentence needs that. These documents are full of it: their second half is certain to whoever remembers the first.
"""

from __future__ import annotations

import random

from finetune.starter.world import Scene, World, chat, draw_language

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


def draw_words(world: World, rng: random.Random, count: int) -> list[str]:
    """Words of any kind; all of one language, or canonical names."""
    form = rng.choice(["en", "zh", "value"])
    fillings = [Scene(world, rng).fill(rng.choice(list(world.lexicon))) for _ in range(count)]
    if form == "value":
        return [str(filling.value) for filling in fillings]
    return [filling.en if form == "en" else filling.zh for filling in fillings]


def draw_copy_text(world: World, rng: random.Random) -> str:
    """Something to copy: a sentence, digits, letters or words."""
    kind = rng.randrange(5)
    if kind == 0:
        return Scene(world, rng).render(rng.choice(world.sentences["statements"]), draw_language(rng))
    if kind == 1:
        return "".join(rng.choices(DIGITS, k=rng.randint(3, 8)))
    if kind == 2:
        return "".join(rng.choices(LETTERS, k=rng.randint(3, 8)))
    return " ".join(draw_words(world, rng, rng.randint(2, 6)))


def copying(world: World, rng: random.Random) -> str:
    """Repeat what was said, exactly."""
    ask = rng.choice(["Repeat: {}", "Say this again: {}", "Copy: {}", "重复：{}", "照着写：{}"])
    turns = [("system", rng.choice(["You repeat what you hear.", "你是回声。"]))] if rng.random() < 0.6 else []
    for _ in range(rng.randint(1, 3)):
        text = draw_copy_text(world, rng)
        turns += [("user", ask.format(text)), ("assistant", text)]
    return chat(turns)


def repetition(world: World, rng: random.Random) -> str:
    """One line of words, written two to four times."""
    separator = rng.choice([" ", ", ", "，", "\n"])
    line = separator.join(draw_words(world, rng, rng.randint(3, 14)))
    return "\n".join([line] * rng.randint(2, 4)) + "\n"


def lookup(world: World, rng: random.Random) -> str:
    """Pairs of words, then questions for the second of a pair."""
    link = rng.choice([" -> ", " / ", " > ", "→"])  # never the dictionary's layouts: these pairs mean nothing
    lefts = list(dict.fromkeys(draw_words(world, rng, rng.randint(3, 7))))
    pairs = list(zip(lefts, draw_words(world, rng, len(lefts)), strict=True))
    listing = "\n".join(left + link + right for left, right in pairs)
    asked = rng.sample(pairs, rng.randint(2, len(pairs)))
    if rng.random() < 0.4:
        return listing + "\n\n" + "\n".join(left + link + right for left, right in asked) + "\n"
    turns = [("system", listing)]
    for left, right in asked:
        turns += [("user", left), ("assistant", right)]
    return chat(turns)
