"""What is counted while rows pass, on rows whose counts are known."""

import copy

import pytest

from export.chat import Conversation, Message, encode
from finetune.data.survey import Survey, histogram, script_of
from tests.export.chat_tokenizers import build_tokenizer


def conversation(*turns, system=None):
    spoken = [Message(role="assistant" if i % 2 else "user", content=turn) for i, turn in enumerate(turns)]
    opening = [] if system is None else [Message(role="system", content=system)]
    return Conversation(messages=(*opening, *spoken))


def surveyed(*conversations, turn_end=None):
    tokenizer = copy.deepcopy(build_tokenizer("plain"))
    survey = Survey(max_tokens=64)
    for number, item in enumerate(conversations, start=1):
        encoded = encode(tokenizer, item)
        survey.length(len(encoded.ids))
        if turn_end is not None:
            tokenizer.eos_token = turn_end
        survey.kept(item, encoded, f"rows, line {number}", tokenizer)
    return survey


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The light is on.", "Latin"),
        ("厨房的灯已经打开。", "Chinese"),
        ("打开 the kitchen 的 light 吧", "mixed"),
        ("Привет, мир", "other"),
        ("12:30, 40 %", "none"),
        ("", "none"),
        ("naïve café über", "Latin"),
        ("血压 130/85 mmHg，建议每天测量两次并记录下来", "Chinese"),
    ],
)
def test_the_script_is_that_of_most_letters(text, script):
    assert script_of(text) == script


def test_a_histogram_counts_from_each_edge_to_below_the_next():
    found = histogram([0, 1, 9, 10, 11, 99, 100, 5000], (1, 10, 100))
    assert found.counts == (3, 3, 2)
    assert sum(found.counts) == 8


def test_every_answer_that_ends_its_turn_is_counted():
    survey = surveyed(conversation("a", "b", "c", "d"), conversation("a", "b", system="s"))
    assert (survey.assistant_turns, survey.ended_turns) == (3, 3)
    broken = surveyed(conversation("a", "b", "c", "d"), turn_end="<|endoftext|>")
    assert (broken.assistant_turns, broken.ended_turns) == (2, 0)
    assert broken.examples["turn_end"] == ["rows, line 1"]


def test_bytes_and_tokens_are_those_of_what_is_said():
    tokenizer = build_tokenizer("plain")
    said = ["打开厨房的灯。", '{"task":"on"}', "现在客厅的灯也打开吧", "OK"]
    (count,) = surveyed(conversation(*said, system="Answer in JSON, whatever you are asked.")).scripts()
    assert (count.script, count.rows) == ("Chinese", 1)
    assert count.bytes == len("\n".join(said).encode())
    assert count.tokens == len(tokenizer("\n".join(said))["input_ids"])


@pytest.mark.parametrize(
    ("turns", "says_twice"),
    [
        (("Where is the dust bin?", "Below the lid.", "Where is the dust bin?", "Below the lid!"), True),
        (("Where is the dust bin?", "Where is the dust bin?"), True),
        (("thanks", "thanks", "thanks", "thanks"), False),
        (("Where is the dust bin?", "Below the lid.", "And the filter is where?", "Beside the bin."), False),
    ],
)
def test_what_is_said_twice_is_seen_where_it_is_long_enough(turns, says_twice):
    assert surveyed(conversation(*turns)).repeated_turn_rows == says_twice


def test_rows_beyond_each_usual_limit_are_counted():
    survey = Survey(max_tokens=100)
    for tokens in (10, 100, 101, 512, 513, 3000):
        survey.length(tokens)
    assert {limit.max_tokens: limit.rows for limit in survey.lengths()} == {100: 4, 512: 2, 1024: 1, 2048: 1}
    assert {limit.n for limit in survey.lengths()} == {6}


def test_personal_data_is_counted_by_kind_and_a_url_alone_names_nobody():
    survey = Survey(max_tokens=64)
    survey.personal(conversation("Mail jo@example.org or eve@example.org", "See https://example.org/help"), "line 1")
    survey.personal(conversation("See https://example.org/help", "Thanks"), "line 2")
    counts = {count.kind: (count.rows, count.findings) for count in survey.personal_counts()}
    assert counts == {"email": (1, 2), "url": (2, 2)}
    assert (survey.personal_rows, survey.looked_through) == (1, 2)


def test_a_turn_that_is_context_is_not_asked_for_its_end():
    tokenizer = build_tokenizer("thinking")
    thought = "<think>\nthe hall is near\n</think>\n\nI clean the hall."
    item = conversation("Hello", thought, "again", thought)
    survey = Survey(max_tokens=64)
    survey.kept(item, encode(tokenizer, item, thinking=True), "rows, line 1", tokenizer)
    assert (survey.assistant_turns, survey.ended_turns) == (1, 1)
