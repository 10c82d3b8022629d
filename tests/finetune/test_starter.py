"""The quickstart measures something that the starter model has not read: its held-out rows against all of its text.

The default tier draws the first documents of every training step again: four fifths of the text. The slow tier takes
all of it, packed as pretraining does, and shows by the hash in training.json that these are the very tokens the
shipped weights were made from.
"""

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

import pytest

from export.chat_tokenizer import load_tokenizer
from finetune import data, recipe
from finetune.data.grammar import load_grammar
from finetune.shipped import folder
from finetune.starter.corpus import documents
from finetune.starter.packing import first_documents, training_windows
from finetune.starter.pretrain import DEFAULT_OUT, HELD_OUT_DOCUMENTS

TRAINING = json.loads((DEFAULT_OUT / "training.json").read_text(encoding="utf-8"))
SEED, STEPS = TRAINING["settings"]["seed"], TRAINING["steps"]
DOCUMENTS_A_STEP = 34  # what the shortest step took; the longest took 51, and all together 102,834 (81 %)
TOKENS = re.compile(r"[一-鿿]|[^\W一-鿿]+")
BETWEEN_MESSAGES = re.compile(r"<\|im_start\|>\w+\n|<\|\w+\|>|\n")
LONG = {"en": 8, "zh": 12}  # words, and Chinese characters


class Text(NamedTuple):
    """The different lines and messages of the training text, as they stand and as words with a space on either side."""

    lines: frozenset[str]
    words: frozenset[str]


class HeldOut(NamedTuple):
    """A row: its command as it is and as words, those without what the grammar says before and after, its answer."""

    command: str
    words: str
    bare: str
    answer: str
    language: str


def _words(text: str) -> str:
    """Words, numbers and single Chinese characters in lower case, without punctuation, each between two spaces."""
    return f" {' '.join(TOKENS.findall(unicodedata.normalize('NFKC', text).casefold()))} "


def _drawn() -> Iterator[str]:
    for step in range(STEPS):
        yield from itertools.islice(documents(f"{SEED}:{step}"), DOCUMENTS_A_STEP)


def _trained_on() -> Iterator[str]:
    """What every window of the training holds, in words; fails where they are not the windows of the shipped model."""
    import numpy

    tokenizer = load_tokenizer(DEFAULT_OUT)
    skipped = set(first_documents(f"{SEED}:held-out", HELD_OUT_DOCUMENTS))
    digest = ""
    for step in range(STEPS):
        windows = training_windows(tokenizer, SEED, step, TRAINING["settings"]["batch_windows"], skipped)
        as_bytes = numpy.array(windows, dtype=numpy.int64).tobytes()
        digest = hashlib.sha256(digest.encode() + as_bytes).hexdigest()
        yield from tokenizer.batch_decode(windows)
    assert digest == TRAINING["corpus_sha256"], "the generator no longer makes the text that the shipped model read"


def _read(texts: Iterable[str]) -> Text:
    lines = frozenset(line for text in texts for line in BETWEEN_MESSAGES.split(text) if line)
    return Text(lines, frozenset(map(_words, lines)))


@pytest.fixture(scope="module", params=[_drawn, pytest.param(_trained_on, marks=pytest.mark.slow)])
def text(request) -> Text:
    return _read(request.param())


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> list[HeldOut]:
    """The rows that the quickstart measures on, made as its data stage makes them."""
    settings = recipe.load(folder("recipes") / "quickstart.yaml")
    assert settings.model.name == "starter"
    splits = data.prepare(
        settings.data,
        load_tokenizer(DEFAULT_OUT),
        name=settings.name,
        seed=settings.seed,
        thinking=settings.model.thinking,
        offline=True,
        out=tmp_path_factory.mktemp("data"),
        say=print,
    )
    asked = [[m.content for m in row.messages if m.role != "system"] for row in splits.conversations("held_out")]
    return [
        HeldOut(command, _words(command), _words(_without_courtesies(command)), answer, _language(command))
        for command, answer in asked
    ]


def _language(text: str) -> str:
    return "zh" if re.search("[一-鿿]", text) else "en"


def _without_courtesies(command: str) -> str:
    """A command without what the grammar puts before and after it, such as "um," and "please"."""
    openers, closers = _courtesies()
    opener = next(opener for opener in openers if command.startswith(opener))
    closer = next(closer for closer in closers if command.endswith(closer))
    return command.removeprefix(opener).removesuffix(closer)


@cache
def _courtesies() -> tuple[list[str], list[str]]:
    """The grammar's openers and closers, the longest first; the empty one is among them."""
    grammar = load_grammar(folder("data_templates") / "cleaning_robot.grammar.yaml")
    openers, closers = ({*part.en, *part.zh} for part in (grammar.openers, grammar.closers))
    return sorted(openers, key=len, reverse=True), sorted(closers, key=len, reverse=True)


def _grams(words: str, length: int) -> Iterator[str]:
    tokens = words.split()
    return (" ".join(tokens[start : start + length]) for start in range(len(tokens) - length + 1))


def test_no_answer_of_a_held_out_row_was_read_in_pretraining(text, held_out):
    objects = {"".join(line.split()).casefold() for line in text.lines if "{" in line}
    assert len(objects) > 10_000, "the text does hold JSON"
    in_a_row = "\n".join(objects)
    answers = {"".join(row.answer.split()).casefold() for row in held_out}
    assert len(answers) > 200
    assert not {answer for answer in answers if answer in in_a_row}
    # nor any other answer of this task: they all begin with this key
    assert all(answer.startswith('{"task":') for answer in answers)
    assert '"task"' not in in_a_row


def test_what_was_read_of_the_held_out_commands_are_plain_short_phrases(text, held_out):
    in_a_row = "\n".join(text.words)
    bare = [row for row in held_out if row.bare in in_a_row]
    whole = [row for row in bare if row.words in in_a_row]
    # 5 and 24 of 750: "mop the kitchen", "停止", "water the flowers"; the two worlds share such words
    assert len(whole) <= len(held_out) / 100, whole
    assert len(bare) <= len(held_out) / 20, bare
    for row in bare:
        assert len(json.loads(row.answer).get("options", {})) <= 1, row  # "rinse the yard once"
        assert len(row.bare.split()) <= 6, row


def test_no_long_run_of_words_of_a_held_out_command_was_read(text, held_out):
    for language, length in LONG.items():
        asked = {gram for row in held_out if row.language == language for gram in _grams(row.words, length)}
        read = {gram for line in text.words for gram in _grams(line, length) if gram in asked}
        assert len(asked) > 500
        # one of 1,080 in English, a time of day ("at half past nine in the evening please"); none in Chinese
        assert len(read) <= len(asked) / 500, (language, read)
