"""What a row asks alone: the same words as before its answer, from rows that have no answer."""

from typing import Any

import pytest

from export.errors import DataError, RecipeError
from finetune.data.formats import detect_prompt
from finetune.data.sources import Row, read_rows
from finetune.data.template import RowMapper, find, load, question, shipped_names

# Worked out by hand from each template: the fields that its prompts are made of.
NEEDED = {
    "chat_messages": ("messages",),
    "cleaning_robot": ("command",),
    "conversation_rounds": ("conversation",),
    "counselling": ("questionTitle", "questionText"),
    "document_qa": ("context", "question", "language"),
    "instruction": ("instruction",),
    "preference": ("prompt",),
    "preference_messages": ("chosen",),
    "preference_turns": ("prompt",),
    "question_answer": ("question",),
    "review_aspects_zh": ("reviewbody",),
}


def asked(name: str, fields: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    messages = RowMapper(load(find(name)), **more).prompt(Row(fields, "rows.jsonl, line 7"))
    return [(message.role, message.content) for message in messages]


@pytest.mark.parametrize("name", shipped_names())
def test_every_sample_asks_what_it_asks_before_its_answer(name: str) -> None:
    path = find(name)
    mapper = RowMapper(load(path))
    for row in read_rows(path.with_name(f"{name}.sample.jsonl")):
        assert mapper.prompt(row) == mapper.conversation(row).prompt


@pytest.mark.parametrize("name", NEEDED)
def test_only_what_is_asked_is_needed(name: str) -> None:
    path = find(name)
    template = load(path)
    mapper = RowMapper(template)
    for row in read_rows(path.with_name(f"{name}.sample.jsonl")):
        kept = {key: row.fields[key] for key in row.fields if key in NEEDED[name] or key in template.optional_fields}
        assert mapper.prompt(Row(kept, row.origin)) == mapper.conversation(row).prompt
    for gone in NEEDED[name]:
        with pytest.raises(DataError, match=f"the field '{gone}' is missing"):
            mapper.prompt(Row({key: value for key, value in row.fields.items() if key != gone}, "x"))


def test_lists_of_turns_may_end_with_the_user() -> None:
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    for messages in ([user], [user, assistant]):
        assert asked("chat_messages", {"messages": messages}) == [("user", "a")]
    for last in ({"input": "c"}, {"input": "c", "output": None}, {"input": "c", "output": "d"}):
        rounds = [{"system": "S", "input": "a", "output": "b"}, last]
        expected = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")]
        assert asked("conversation_rounds", {"conversation": rounds}) == expected
    for chosen in ("", None, [assistant]):
        assert asked("preference_turns", {"prompt": [user], "chosen": chosen}) == [("user", "a")]
    history = {"instruction": "c", "history": [["a", "b"]]}
    assert asked("instruction", history) == [("user", "a"), ("assistant", "b"), ("user", "c")]


@pytest.mark.parametrize("roles", ["user user", "assistant", "system", "user assistant assistant"])
def test_turns_that_ask_nothing_are_refused(roles: str) -> None:
    messages = [{"role": role, "content": "x"} for role in roles.split()]
    with pytest.raises(DataError, match=r"line 7: in the field 'messages' the turns before the answer are .* the user"):
        asked("chat_messages", {"messages": messages})


def test_a_system_prompt_that_is_given_needs_no_field_of_the_templates() -> None:
    fields = {"context": "c", "question": "q"}
    assert asked("document_qa", fields, system_prompt="S") == [("system", "S"), ("user", "c\n\nq")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"question": "a"}, "question_answer"),
        ({"instruction": "a", "input": "b"}, "instruction"),
        ({"messages": [{"role": "user", "content": "a"}]}, "chat_messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
    ],
)
def test_a_form_is_told_without_answers(fields: dict[str, Any], expected: str) -> None:
    assert detect_prompt([Row(fields, "x")]).template == expected


def test_of_forms_that_ask_the_same_any_will_do() -> None:
    found = detect_prompt([Row({"prompt": "a"}, "x")]).template
    assert asked(found, {"prompt": "a"}) == [("user", "a")]


def test_a_form_that_is_none_points_to_prompt() -> None:
    with pytest.raises(
        DataError, match=r"are: review \(a text\)\. None of the known forms fits.*--prompt '\{review\}'"
    ):
        detect_prompt([Row({"review": "a"}, "x")])


def test_columns_that_ask() -> None:
    mapper = RowMapper(question("{title}: {the text} {{x}}", "--prompt"))
    (message,) = mapper.prompt(Row({"title": "a", "the text": 3}, "x"))
    assert message.content == "a: 3 {x}"
    with pytest.raises(RecipeError, match="--prompt: 'text' names no field"):
        question("text", "--prompt")
