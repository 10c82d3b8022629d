"""The small world that the starter model learns: its words, and scenes that fill sentence frames with them.

A frame is one sentence in both languages; a :class:`Scene` remembers what each slot was filled with, so that the
English side, the Chinese side and a JSON answer about the sentence always agree. Which documents are made from these
sentences is decided in ``corpus.py``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, Language] = ("en", "zh")
FOLDER = Path(__file__).parent
SLOT = re.compile(r"\{([a-z]+)(\d?)(?::([a-z]+))?\}")
ENGLISH_UNITS = tuple(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen""".split()  # noqa: SIM905 (a list of twenty quoted words is harder to read)
)
ENGLISH_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
CHINESE_DIGITS = "零一二三四五六七八九"


def chat(turns: list[tuple[str, str]]) -> str:
    """Write (role, content) turns as ChatML, exactly as the model folder's chat template does."""
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)


def draw_language(rng: random.Random) -> Language:
    """English or Chinese, evenly."""
    return rng.choice(LANGUAGES)


@dataclass(frozen=True)
class Entry:
    """One thing of the world: its canonical value and the ways of saying it in each language."""

    value: str
    english: tuple[str, ...]
    chinese: tuple[str, ...]
    plural: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Frame:
    """One sentence with slots, in both languages."""

    en: str
    zh: str

    def slots(self) -> set[str]:
        """Names of the slots of this sentence, digits included (``person2``)."""
        return {category + digit for category, digit, _ in SLOT.findall(self.en + self.zh)}


@dataclass(frozen=True)
class Filling:
    """What one slot of one scene was filled with; ``forms`` holds the extra forms such as the plural."""

    en: str
    zh: str
    value: str | int
    forms: dict[str, str]


@dataclass(frozen=True)
class Domain:
    """A topic of structured tasks: sentences, optional tails, and the field names each slot may get."""

    names: dict[str, list[str]]
    frames: list[Frame]
    extras: list[Frame]


@dataclass(frozen=True)
class World:
    """Everything read from the two YAML files."""

    lexicon: dict[str, list[Entry]]
    sentences: dict[str, list[Frame]]
    questions: list[tuple[Frame, Frame, Frame]]
    domains: dict[str, Domain]


def parse_entry(line: str) -> Entry:
    """Read ``English/synonym[, plural] = Chinese/synonym[, measure word]``."""
    english, chinese = (side.strip() for side in line.split(" = "))
    english, _, plural = english.partition(", ")
    chinese, _, unit = chinese.partition(", ")
    words = tuple(english.split("/"))
    named = words[0][0].isupper() or "{" in words[0]
    value = words[0] if named else words[0].replace(" ", "_")
    return Entry(value, words, tuple(chinese.split("/")), plural, unit)


def parse_frame(line: str) -> Frame:
    """Read ``English | Chinese``."""
    english, chinese = line.split(" | ")
    return Frame(english.strip(), chinese.strip())


def parse_domain(raw: dict[str, Any]) -> Domain:
    """Read one entry of the ``domains`` section of frames.yaml."""
    return Domain(raw["names"], [parse_frame(line) for line in raw["frames"]], [parse_frame(x) for x in raw["extras"]])


@cache
def load_world() -> World:
    """Read lexicon.yaml and frames.yaml, which lie next to this file."""
    import yaml

    lexicon = yaml.safe_load((FOLDER / "lexicon.yaml").read_text(encoding="utf-8"))
    frames = yaml.safe_load((FOLDER / "frames.yaml").read_text(encoding="utf-8"))
    plain = ("statements", "openings", "events", "endings", "refused", "refusals")
    triples = [[parse_frame(part) for part in line.split(" || ")] for line in frames["questions"]]
    return World(
        lexicon={category: [parse_entry(line) for line in lines] for category, lines in lexicon.items()},
        sentences={name: [parse_frame(line) for line in frames[name]] for name in plain},
        questions=[(told, asked, answered) for told, asked, answered in triples],
        domains={name: parse_domain(raw) for name, raw in frames["domains"].items()},
    )


def english_number(number: int) -> str:
    """Spell a number below 100: 42 -> forty-two."""
    if number < 20:
        return ENGLISH_UNITS[number]
    tens, units = divmod(number, 10)
    return ENGLISH_TENS[tens] + (f"-{ENGLISH_UNITS[units]}" if units else "")


def chinese_number(number: int) -> str:
    """Spell a number below 100: 42 -> 四十二."""
    tens, units = divmod(number, 10)
    head = "" if tens == 0 else "十" if tens == 1 else CHINESE_DIGITS[tens] + "十"
    return head + (CHINESE_DIGITS[units] if units or not tens else "")


def draw_number(rng: random.Random) -> Filling:
    """A count of two or more, in words or digits; before a measure word, two is 两 in Chinese."""
    number = rng.randint(2, 9) if rng.random() < 0.7 else rng.randint(10, 99)
    spelled = "两" if number == 2 else chinese_number(number)
    english = rng.choice([english_number(number), str(number)])
    return Filling(english, rng.choice([spelled, str(number)]), number, {})


def english_clock(rng: random.Random, hour: int, minute: int) -> str:
    """One English way to say a time of day; an hour without a part of the day is read as it stands."""
    spelled = english_number(hour % 12 or 12)
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    ways = [f"{hour:02d}:{minute:02d}", f"{hour}:{minute:02d}", f"{hour % 12 or 12}:{minute:02d} {part}"]
    if minute == 0:
        ways += [f"{spelled} {part}", f"{hour % 12 or 12} {'am' if hour < 12 else 'pm'}"]
        ways += [spelled, f"{spelled} o'clock"] if hour <= 12 else []
    elif minute == 30:
        ways += [f"half past {spelled} {part}"] + ([f"half past {spelled}"] if hour <= 12 else [])
    elif minute == 15:
        ways += [f"a quarter past {spelled} {part}"] + ([f"a quarter past {spelled}"] if hour <= 12 else [])
    return rng.choice(ways)


def chinese_clock(rng: random.Random, hour: int, minute: int) -> str:
    """One Chinese way to say a time of day, under the same reading as :func:`english_clock`."""
    part = "上午" if hour < 12 else "中午" if hour == 12 else "下午" if hour < 18 else "晚上"
    morning = rng.choice(["上午", "早上"]) if 5 <= hour < 12 else part
    short = "两" if hour % 12 == 2 else chinese_number(hour % 12 or 12)
    tail = {0: "", 30: "半", 15: "一刻"}.get(minute, chinese_number(minute) + "分")
    digits = f"{hour}点" + (f"{minute}分" if minute else "")
    ways = [f"{morning}{short}点{tail}", f"{hour:02d}:{minute:02d}", digits]
    return rng.choice(ways + ([f"{short}点{tail}"] if hour <= 12 else []))


def draw_clock(rng: random.Random) -> Filling:
    """A time of day between 5:00 and 22:55, canonically ``HH:MM``."""
    hour = rng.randint(5, 22)
    minute = rng.choice([0, 0, 0, 30, 30, 15, 5 * rng.randint(0, 11)])
    return Filling(english_clock(rng, hour, minute), chinese_clock(rng, hour, minute), f"{hour:02d}:{minute:02d}", {})


DRAWN_BY_CODE: dict[str, Callable[[random.Random], Filling]] = {"number": draw_number, "clock": draw_clock}


class Scene:
    """One draw of the world: the same slot means the same thing in every sentence rendered from a scene."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.fillings: dict[str, Filling] = {}

    def fill(self, category: str, digit: str = "") -> Filling:
        """The filling of one slot, drawn when the slot is met for the first time."""
        name = category + digit
        if name not in self.fillings:
            self.fillings[name] = self._draw(category)
        return self.fillings[name]

    def _draw(self, category: str) -> Filling:
        if category in DRAWN_BY_CODE:
            return DRAWN_BY_CODE[category](self.rng)
        taken = {filling.value for filling in self.fillings.values()}
        entry = self.rng.choice(self.world.lexicon[category])
        if entry.value in taken:  # one second chance keeps most scenes free of "Anna helps Anna"
            entry = self.rng.choice(self.world.lexicon[category])
        return self._fill_entry(entry)

    def _fill_entry(self, entry: Entry) -> Filling:
        inner = Scene(self.world, self.rng)  # "fix the {device}" has its own device, not the scene's
        english = inner.substitute(self.rng.choice(entry.english), "en")
        chinese = inner.substitute(self.rng.choice(entry.chinese), "zh")
        value = inner.substitute(entry.value, "en").replace(" ", "_") if "{" in entry.value else entry.value
        return Filling(english, chinese, value, {"many": entry.plural, "unit": entry.unit})

    def substitute(self, text: str, language: Language) -> str:
        """Put this scene's words into the slots of one side of a frame."""

        def word(match: re.Match[str]) -> str:
            filling = self.fill(match[1], match[2])
            if match[3]:
                return filling.forms[match[3]]
            return filling.en if language == "en" else filling.zh

        return SLOT.sub(word, text)

    def render(self, frame: Frame, language: Language) -> str:
        """One finished sentence; both languages of a frame rendered by one scene say the same."""
        text = self.substitute(frame.en if language == "en" else frame.zh, language)
        if language == "zh":
            return text
        text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
        return text[:1].upper() + text[1:]
