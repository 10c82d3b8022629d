"""Turns that a row holds as a list: in order, with what they must be said where they are not."""

from __future__ import annotations

from typing import Any

import pytest

from export.errors import DataError
from finetune.data.rendering import pick
from finetune.data.template import RowMapper
from tests.finetune.data.test_template import template, turns

PAIRS = {"field": "history"}
OBJECTS = {"field": "talk", "user": "input", "assistant": "output", "system": "system"}


def test_earlier_rounds_come_before_the_turns_and_may_be_missing() -> None:
    made = RowMapper(template(optional_fields={"history": "x"}, rounds_from=PAIRS, system="S"))
    last = {"question": "c", "answer": "d"}
    assert turns(made, last | {"history": [["a", "b"]]}) == [
        ("system", "S"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]
    for absent in ({}, {"history": None}, {"history": []}):
        assert turns(made, last | absent) == [("system", "S"), ("user", "c"), ("assistant", "d")]


def test_rounds_may_be_all_there_is_and_bring_a_system_message() -> None:
    made = RowMapper(template(fields={"talk": "x"}, turns=None, rounds_from=OBJECTS, system="Template's."))
    talk = [{"system": "Row's.", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]
    assert [content for _, content in turns(made, {"talk": talk})] == ["Row's.", "a", "b", "c", "d"]
    del talk[0]["system"]
    assert turns(made, {"talk": talk})[0] == ("system", "Template's.")


@pytest.mark.parametrize(
    ("talk", "expected"),
    [
        (None, r"row 7: the field 'talk' holds null; expected a list of rounds, each \{input, output\}\. Fill it in"),
        ([], "the field 'talk' holds a list"),
        ("hello", "the field 'talk' holds a text"),
        (
            [{"input": "a"}],
            r"row 7: round 1 of the field 'talk' holds an object.*expected an object with 'input' and 'o",
        ),
        ([["a", "b"]], r"round 1 of the field 'talk' holds a list.*expected an object"),
        (
            [{"input": "a", "output": None}],
            r"round 1 of the field 'talk' holds null; expected text\. Give it its words",
        ),
        ([{"input": ["a"], "output": "b"}], r"round 1 of the field 'talk' holds a list, \['a'\]; expected text"),
        (
            [{"input": "a", "output": "b"}, {"system": "x", "input": "a", "output": "b"}],
            "round 2.*in the first round only",
        ),
    ],
)
def test_rounds_that_are_none_say_what_was_found(talk: Any, expected: str) -> None:
    made = RowMapper(template(fields={"talk": "x"}, turns=None, rounds_from=OBJECTS))
    with pytest.raises(DataError, match=expected):
        turns(made, {"talk": talk})


@pytest.mark.parametrize("history", [[["a"]], [["a", "b", "c"]], [{"user": "a"}], ["ab"], "ab", {"a": "b"}])
def test_a_history_that_is_no_list_of_pairs_is_refused(history: Any) -> None:
    made = RowMapper(template(optional_fields={"history": "x"}, rounds_from=PAIRS))
    with pytest.raises(DataError, match=r"row 7: .*'history' holds .*expected a .*\[user, assistant\]"):
        turns(made, {"question": "a", "answer": "b", "history": history})


def test_messages_may_be_kept_in_two_fields() -> None:
    made = RowMapper(
        template(fields={"p": "x", "c": "y"}, turns=None, messages_from={"field": "c", "before": "p"}, system="S")
    )
    asked, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert turns(made, {"p": [asked], "c": [said]}) == [("system", "S"), ("user", "a"), ("assistant", "b")]
    with pytest.raises(DataError, match="the field 'p' holds a text"):
        turns(made, {"p": "a", "c": [said]})


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (
            "user",
            r"row 7: in the field 'm' the turns are user; expected .* The last answer is missing: add it, or remove",
        ),
        ("user assistant user", "The last answer is missing"),
        ("assistant user assistant", "the turns are assistant, user, assistant; expected .* Put the turns in order"),
        ("user user assistant", "join those that follow one another"),
        ("user system user assistant", "Put the turns in order"),
        ("system", "The last answer is missing"),
    ],
)
def test_turns_out_of_order_say_what_to_do(roles: str, expected: str) -> None:
    made = RowMapper(template(fields={"m": "x"}, turns=None, messages_from={"field": "m"}))
    with pytest.raises(DataError, match=expected):
        turns(made, {"m": [{"role": role, "content": "x"} for role in roles.split()]})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rounds_from": PAIRS}, r"rounds_from\.field 'history' must be one of fields or optional_fields"),
        ({"rounds_from": PAIRS, "turns": None, "optional_fields": {"history": "x"}}, r"must be one of fields \["),
        ({"rounds_from": {"field": "answer", "user": "input"}}, "give both user and assistant"),
        ({"rounds_from": {"field": "answer", "system": "s"}}, "system needs user and assistant"),
        ({"rounds_from": PAIRS, "messages_from": {"field": "answer"}, "turns": None}, "give either turns or"),
        ({"labels": ["a", "a"]}, "labels must be different texts; found 'a', 'a'"),
        ({"system": "{{ nobody }}"}, "system uses the field 'nobody'"),
        (
            {"turns": [{"role": r, "text": "x"} for r in ("user", "user", "assistant")]},
            "expected user and assistant by",
        ),
    ],
)
def test_a_new_form_that_cannot_work_is_refused_when_it_is_read(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        template(**changes)


def test_labels_are_kept() -> None:
    assert template(labels=["yes", "no"]).labels == ("yes", "no")


def test_a_system_message_may_be_made_of_the_rows_fields() -> None:
    made = RowMapper(template(optional_fields={"lang": "x"}, system="{% if lang %}Answer in {{ lang }}.{% endif %}\n"))
    fields = {"question": "a", "answer": "b"}
    assert turns(made, fields | {"lang": "Chinese"})[0] == ("system", "Answer in Chinese.")
    assert turns(made, fields)[0] == ("user", "a")


def test_pick_says_which_field_has_no_word() -> None:
    words = {1: "good", -1: "bad", -2: None}
    assert pick({"b": -1, "a": 1, "c": -2}, ["a", "b", "c"], words) == {"a": "good", "b": "bad"}
    with pytest.raises(ValueError, match="the field 'a' holds 3; expected one of 1, -1, -2"):
        pick({"a": 3}, ["a"], words)
    with pytest.raises(ValueError, match="the field 'd' is missing"):
        pick({"a": 1}, ["d"], words)


def test_a_label_may_stand_behind_a_thought() -> None:
    from types import SimpleNamespace

    from export.chat import Conversation, Message
    from finetune.data.preparation import _outside_labels

    answers = ["yes", "<think>\nno, wait\n</think>\n\nno", "<think>yes</think>perhaps", "<think>yes"]
    lines = [
        SimpleNamespace(
            conversation=Conversation(messages=(Message(role="assistant", content=answer),)), origin=f"line {number}"
        )
        for number, answer in enumerate(answers, start=1)
    ]
    intake = SimpleNamespace(lines=lambda: iter(lines))
    chosen = SimpleNamespace(template=template(labels=["yes", "no"]))
    assert _outside_labels(intake, chosen) == (2, ("line 3: 'perhaps'", "line 4: ''"))  # type: ignore[arg-type]
