"""Questions and answers are found in tables of other people's headings, or nothing is guessed."""

import pytest

from export.errors import DataError
from finetune.data import template
from finetune.data.guessed_columns import guess_columns
from finetune.data.sources import Row
from finetune.data.template import RowMapper


def rows(*each):
    return [Row(fields, f"table.csv, line {line}") for line, fields in enumerate(each, start=2)]


@pytest.mark.parametrize(
    ("fields", "prompt", "answer"),
    [
        ({"question": "Why?", "answer": "Because."}, "question", "answer"),
        ({"id": "7", "Response": "Because.", "source": "a book", "Prompt": "Why?"}, "Prompt", "Response"),
        ({" 问题 ": "几点?", "答案": "三点。"}, " 问题 ", "答案"),
        ({"instruction": "Add.", "output": "4", "input_file": "a"}, "instruction", "output"),
    ],
)
def test_by_their_names(fields, prompt, answer):
    guess = guess_columns(rows(fields))
    assert (guess.prompt, guess.answer, guess.because) == (prompt, answer, "by their names")


def test_by_their_order_where_only_two_hold_words():
    guess = guess_columns(
        rows({"nr": "1", "frage": "", "antwort": "Ja."}, {"nr": "2.5", "frage": "Wann?", "antwort": ""})
    )
    assert (guess.prompt, guess.answer) == ("frage", "antwort")
    assert "order" in guess.because


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "a", "question": "b", "body": "c"},
        {"one": "a", "two": "b", "three": "c"},
        {"question": "a", "prompt": "b", "answer": "c"},
        {"answer": "a", "remark": "b"},
        {"text": "a"},
        {"one": "1", "two": "2"},
        {"one": None, "two": "words"},
    ],
)
def test_nothing_is_guessed_where_it_cannot_be_told(fields):
    with pytest.raises(DataError, match=r"table\.csv, line 2: .*data\.template") as error:
        guess_columns(rows(fields))
    assert all(name in str(error.value) for name in fields)


def test_no_rows():
    with pytest.raises(DataError, match="no rows"):
        guess_columns([])


@pytest.mark.parametrize("heading", ["frage", "your question", "a.b[0]", "名字"])
def test_the_template_reads_the_column_it_names(heading):
    table = rows({heading: "Why?", "text": "Because."})
    guess = guess_columns(table)
    messages = RowMapper(template.columns(**guess.template())).conversation(table[0]).messages
    assert [message.content for message in messages] == ["Why?", "Because."]


@pytest.mark.parametrize("heading", ["frage:", "your {question}", "a } b", "really!", "{{x}}", "a:b"])
def test_a_heading_that_no_template_can_name_is_to_be_renamed(heading):
    with pytest.raises(DataError, match="Rename the columns"):
        guess_columns(rows({heading: "Why?", "text": "Because."}))
