"""Plain columns of a recipe: what is said is to the letter what was written, and a slip is told with its remedy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import DataError, RecipeError
from finetune.data.template import RowMapper, columns
from tests.finetune.data.test_template import turns


def test_columns_put_texts_and_fields_together() -> None:
    made = RowMapper(columns("{Die Frage}\n{a.b} {{%}} {{{x}}}\n", "{answer}", 'Say "{x}" {{{{ 1 }}}}'))
    fields = {"Die Frage": "wo?", "a.b": "da", "x": 5, "answer": "hier"}
    assert turns(made, fields) == [
        ("system", 'Say "5" {{ 1 }}'),
        ("user", "wo?\nda {%} {5}\n"),
        ("assistant", "hier"),
    ]
    with pytest.raises(DataError, match="row 7: turn 2 cannot be made: the field 'answer' is null"):
        turns(made, fields | {"answer": None})
    with pytest.raises(DataError, match=r"the field 'a\.b' is missing"):
        turns(made, {"Die Frage": "x", "x": 1, "answer": "y"})


@settings(max_examples=200, deadline=None)
@given(words=st.text(st.characters(exclude_categories=["Cs"])), value=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_words_of_columns_are_said_to_the_letter(words: str, value: str) -> None:
    made = columns(words.replace("{", "{{").replace("}", "}}") + "{q}", "{a}")
    assert turns(RowMapper(made), {"q": value, "a": "b"})[0] == ("user", words + value)


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("{question", "{answer}", r"data\.template\.prompt: '\{question' cannot be read: .*Write fields as \{field\}"),
        ("question}", "{answer}", r"data\.template\.prompt: .* cannot be read: Single '}'"),
        ("{question}", "{}", r"data\.template\.answer: \{\} is not the name of a field alone"),
        ("{question:>10}", "{answer}", r"\{question:>10\} is not the name of a field alone"),
        ("{question!r}", "{answer}", r"\{question!r\} is not the name"),
        ("{{ question }}", "{answer}", r"names no field.*Found Jinja's braces: write \{question\}"),
        ("{question}", "yes", r"data\.template\.answer: 'yes' names no field, so that every row would say the same"),
    ],
)
def test_columns_that_cannot_be_read_say_how_they_are_written(prompt: str, answer: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        columns(prompt, answer)
