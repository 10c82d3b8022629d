"""Every shipped template renders its own sample; a row or a template that is wrong is told so by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import DataError, RecipeError
from finetune import shipped
from finetune.data.rendering import Text, environment
from finetune.data.sources import Row, read_rows
from finetune.data.template import DataTemplate, RowMapper, collect, compact_json, find, load

SHIPPED = sorted(path for path in shipped.folder("data_templates").glob("*.yaml") if "." not in path.stem)
SHARED_ROBOT_DATA = Path(__file__).parents[4] / "shared" / "data" / "robot"


def template(**changes: Any) -> DataTemplate:
    content: dict[str, Any] = {
        "description": "a test's",
        "licence": "Apache-2.0",
        "fields": {"question": "asked", "answer": "said"},
        "turns": [{"role": "user", "text": "{{ question }}"}, {"role": "assistant", "text": "{{ answer }}"}],
    }
    content |= changes
    return DataTemplate.model_validate({key: value for key, value in content.items() if value is not None})


def turns(mapper: RowMapper, fields: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in mapper.conversation(Row(fields, "row 7")).messages]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_template_says_what_it_is_for_and_renders_its_sample(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    known = load(path)
    assert known.sample == f"{path.stem}.sample.jsonl"
    rows = list(read_rows(path.parent / known.sample))
    assert 5 <= len(rows) <= 40
    mapper = RowMapper(known)
    for row in rows:
        conversation = mapper.conversation(row)
        assert conversation.messages[-1].role == "assistant"
        assert all(message.content.strip() == message.content != "" for message in conversation.messages)


def test_every_shipped_sample_belongs_to_a_template() -> None:
    samples = {path.name for path in shipped.folder("data_templates").glob("*.sample.jsonl")}
    assert samples == {load(path).sample for path in SHIPPED}


def rendered(name: str) -> list[str]:
    path = find(name)
    mapper = RowMapper(load(path))
    return [mapper.conversation(row).answer for row in read_rows(path.with_name(f"{name}.sample.jsonl"))]


def test_the_home_commands_answers_are_compact_json_with_slots_in_order() -> None:
    assert rendered("nlu_home_commands")[:4] == [
        '{"task":"alarm_set","slots":{"time":"six","date":"weekdays"}}',
        '{"task":"iot_cleaning","slots":{"house_place":"hallway"}}',
        '{"task":"iot_hue_lightchange","slots":{"color_type":["green","pink"]}}',
        '{"task":"audio_volume_mute","slots":{}}',
    ]
    assert rendered("nlu_home_commands")[-2:] == ['{"task":"refuse","reason":"out_of_scope"}'] * 2


def test_the_structured_answers_of_the_samples() -> None:
    assert rendered("exam_choice_zh")[2:4] == ["C", "AC"]
    assert rendered("document_qa")[:2] == ["three hours", "三个小时"]
    assert rendered("review_aspects_zh")[2] == (
        '{"location_traffic":"正面","price_level":"中性","environment_cleaness":"正面"}'
    )
    assert rendered("product_features")[2:] == ['{"handle":["+","-"],"lid":"-"}', "{}", '{"sound":"+"}']
    assert rendered("home_assistant")[0] == '{"intent":"HassLightSet","slots":{"name":"Desk lamp","brightness":20}}'


def test_the_system_message_is_in_the_rows_language() -> None:
    for name in ("document_qa", "home_assistant"):
        mapper = RowMapper(load(find(name)))
        for row in read_rows(find(name).with_name(f"{name}.sample.jsonl")):
            system = mapper.conversation(row).messages[0]
            assert system.role == "system"
            assert system.content.isascii() == (row.fields["language"] == "en")


def test_the_instruction_template_leaves_an_empty_input_out() -> None:
    mapper = RowMapper(load(find("instruction")))
    asked = [
        turns(mapper, {"instruction": "do", "output": "done"} | more)[0][1]
        for more in ({}, {"input": None}, {"input": ""}, {"input": "it"})
    ]
    assert asked == ["do", "do", "do", "do\n\nit"]


def test_real_home_commands() -> None:
    path = SHARED_ROBOT_DATA / "nlu_home_commands.jsonl"
    if not path.is_file():
        pytest.skip("the real rows lie in ../shared, which this checkout does not have")
    mapper = RowMapper(load(find("nlu_home_commands")))
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = [json.loads(mapper.conversation(row).answer) for row in read_rows(path)]
    assert len(answers) == len(raw)
    out_of_scope = {"weather_query", "qa_factoid", "datetime_query", "play_music", "general_quirky"}
    for answer, row in zip(answers, raw, strict=True):
        if row["intent"] in out_of_scope:
            assert answer == {"task": "refuse", "reason": "out_of_scope"}
            continue
        assert answer["task"] == row["intent"]
        said = [value for slot in answer["slots"].values() for value in (slot if isinstance(slot, list) else [slot])]
        assert sorted(said) == sorted(entity["value"] for entity in row["entities"])
        assert list(answer["slots"]) == list(dict.fromkeys(entity["entity"] for entity in row["entities"]))


def test_text_is_kept_as_it_is() -> None:
    fields = {"question": '  <b>&amp; "x" {{ 7 }} {% if %}\n', "answer": "\n你好 🙂\n\n"}
    assert turns(RowMapper(template()), fields) == [("user", fields["question"]), ("assistant", fields["answer"])]


def test_a_missing_field_names_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"row 7: the field 'question' is missing\. Did you mean 'questions'\? Known: answer, questions"
    ):
        turns(RowMapper(template()), {"questions": "a", "answer": "b"})
    with pytest.raises(DataError, match="It has none"):
        turns(RowMapper(template()), {})


def test_a_null_is_never_the_word_none() -> None:
    with pytest.raises(DataError, match="row 7: turn 2 cannot be made: the field 'answer' is null; expected text"):
        turns(RowMapper(template()), {"question": "a", "answer": None})


def test_a_field_named_like_a_method_is_reached_with_brackets() -> None:
    made = template(
        fields={"entry": "x", "answer": "y"},
        turns=[{"role": "user", "text": "{{ entry.items }}"}, {"role": "assistant", "text": "{{ entry['items'] }}"}],
    )
    with pytest.raises(DataError, match="turn 1 cannot be made: a method is printed"):
        turns(RowMapper(made), {"entry": {"items": "5"}, "answer": "b"})


def test_fields_of_any_name_are_reached_through_row() -> None:
    made = template(
        fields={"Die Frage": "x", "row": "y"},
        turns=[{"role": "user", "text": "{{ row['Die Frage'] }}"}, {"role": "assistant", "text": "{{ row.row }}"}],
        group="Die Frage",
    )
    mapper = RowMapper(made)
    conversation = mapper.conversation(Row({"Die Frage": "wo?", "row": "da"}, "row 1"))
    assert (conversation.messages[0].content, conversation.answer, conversation.group) == ("wo?", "da", "wo?")


def test_the_sandbox_holds() -> None:
    for attack in (
        "{{ question.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ answer.append(1) }}",
    ):
        made = template(turns=[{"role": "user", "text": attack}, {"role": "assistant", "text": "{{ answer }}"}])
        with pytest.raises(DataError, match="turn 1 cannot be made"):
            turns(RowMapper(made), {"question": "a", "answer": ["b"]})


def test_jinjas_own_globals_do_not_answer_for_a_field() -> None:
    with pytest.raises(ValueError, match="turn 1 uses the field 'range'"):
        template(turns=[{"role": "user", "text": "{{ range(3) }}"}, {"role": "assistant", "text": "{{ answer }}"}])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"turns": None}, "give either turns or messages_from"),
        ({"messages_from": {"field": "question"}}, "give either turns or messages_from"),
        ({"turns": [{"role": "user", "text": "x"}]}, "the last turn must be the assistant's"),
        ({"turns": [{"role": "assistant", "text": "{{ answr }}"}]}, "uses the field 'answr'. Did you mean 'answer'"),
        ({"turns": [{"role": "assistant", "text": "{{ answer"}]}, "turn 1 is not sound Jinja"),
        ({"group": "{{ nothing }}"}, "group uses the field 'nothing'"),
        ({"turns": None, "messages_from": {"field": "m"}}, "must be one of fields"),
    ],
)
def test_a_template_that_cannot_work_is_refused_when_it_is_read(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        template(**changes)


def test_every_mistake_in_a_file_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("description: x\nfield: {a: b}\nturns: [{role: robot, text: x, txt: y}]\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    message = str(caught.value)
    assert "field: there is no such key. Did you mean 'fields'?" in message
    assert "licence: this key is needed and missing." in message
    assert "turns.0.role: input should be 'user' or 'assistant'; found 'robot'." in message
    assert "turns.0.txt: there is no such key. Did you mean 'text'? Known: role, text." in message


def test_a_mistake_of_the_whole_file_has_no_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("description: x\nlicence: y\nfields: {a: b}\n")
    with pytest.raises(
        RecipeError,
        match=r"not a data template:\n  give either turns or messages_from, or rounds_from, alone or before turns\.$",
    ):
        load(path)


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("description: x\ndescription: y\n")
    with pytest.raises(RecipeError, match="stands twice"):
        load(path)


def test_a_template_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert find("question_answer").name == "question_answer.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text("x: y")
    assert find(str(mine)) == mine
    with pytest.raises(RecipeError, match=r"unknown data template 'question_anser'. Did you mean 'question_answer'?"):
        find("question_anser")
    with pytest.raises(RecipeError, match=r"there is no data template .*other\.yaml"):
        find(str(tmp_path / "other.yaml"))


def test_shipped_things_in_an_installed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "finetune"
    (package / "shipped" / "data_templates").mkdir(parents=True)
    (package.parent / "data_templates").mkdir()
    monkeypatch.setattr(shipped, "__file__", str(package / "shipped.py"))
    assert shipped.folder("data_templates") == package / "shipped" / "data_templates"
    with pytest.raises(RecipeError, match="has no recipes"):
        shipped.folder("recipes")


def test_the_system_message() -> None:
    fields = {"question": "a", "answer": "b"}
    made = template(system="Be brief.\n")
    assert turns(RowMapper(made), fields)[0] == ("system", "Be brief.")
    assert turns(RowMapper(made, system_prompt="Be long."), fields)[0] == ("system", "Be long.")
    assert turns(RowMapper(made, system_prompt=""), fields)[0] == ("user", "a")


def test_a_rows_own_system_message_goes_before_the_templates_and_behind_the_recipes() -> None:
    made = template(fields={"m": "x"}, turns=None, messages_from={"field": "m"}, system="Template's.")
    own = {
        "m": [
            {"role": "system", "content": "Row's."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
    }
    assert turns(RowMapper(made), own)[0] == ("system", "Row's.")
    assert turns(RowMapper(made, system_prompt="Recipe's."), own)[:2] == [("system", "Recipe's."), ("user", "a")]
    assert turns(RowMapper(made, system_prompt=""), own)[0] == ("user", "a")
    assert turns(RowMapper(made), {"m": own["m"][1:]})[0] == ("system", "Template's.")


def test_other_names_for_messages_and_roles() -> None:
    roles = {"human": "user", "gpt": "assistant"}
    made = template(
        fields={"conversations": "x"},
        turns=None,
        messages_from={"field": "conversations", "role": "from", "content": "value", "roles": roles},
    )
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert turns(RowMapper(made), row) == [("user", "a"), ("assistant", "b")]
    row["conversations"][1]["from"] = "gpt4"
    with pytest.raises(
        DataError,
        match=r"row 7: message 2 of the field 'conversations' is of the unknown role 'gpt4'. Did you mean 'gpt'?",
    ):
        turns(RowMapper(made), row)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "expected a list of messages"),
        ("hello", "expected a list of messages"),
        ([{"role": "user"}], "message 1 of the field 'm' has no 'content'"),
        (["hello"], "message 1 of the field 'm' has no 'role'"),
        ([{"role": "user", "content": ["x"]}], "expected text"),
        ([{"role": "user", "content": None}], "expected text"),
        ([{"role": "user", "content": "\ud800"}], "half a surrogate pair"),
        ([{"role": "user", "content": "a"}], "the turns are user; expected"),
        ([{"role": "assistant", "content": "a"}], "the turns are assistant; expected"),
        ([{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "a"}], "user, user, assistant"),
        ([{"role": "system", "content": "a"}], "the turns are system; expected"),
    ],
)
def test_messages_that_are_no_conversation(messages: Any, expected: str) -> None:
    made = template(fields={"m": "x"}, turns=None, messages_from={"field": "m"})
    with pytest.raises(DataError, match=expected):
        turns(RowMapper(made), {"m": messages})


def test_group_by_of_the_recipe_replaces_the_templates_and_may_name_any_field() -> None:
    row = Row({"question": "a", "answer": "b", "document": 12}, "row 7")
    assert RowMapper(template(group="question")).conversation(row).group == "a"
    assert RowMapper(template(group="question"), group_by="document").conversation(row).group == "12"
    assert RowMapper(template()).conversation(row).group == ""
    missing = (
        r"row 7: the field 'documents', which data\.group_by names, is missing\. Did you mean 'document'\? Known: a"
    )
    with pytest.raises(DataError, match=missing):
        RowMapper(template(), group_by="documents").conversation(row)
    with pytest.raises(DataError, match=r"the field 'documents', which data\.group_by names, is missing"):
        RowMapper(template(), group_by="{{ documents }}").conversation(row)
    with pytest.raises(RecipeError, match="not sound Jinja"):
        RowMapper(template(), group_by="{{ a")


def test_filters() -> None:
    assert compact_json({"b": "é你", "a": [1, None, True]}) == '{"b":"é你","a":[1,null,true]}'
    entries = [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "x", "v": 3}]
    assert collect(entries, "k", "v") == {"x": [1, 3], "y": 2}
    with pytest.raises(ValueError, match="a set has no JSON form"):
        compact_json({1})


def test_json_of_a_missing_value_names_it() -> None:
    made = template(
        turns=[
            {"role": "user", "text": "{{ question }}"},
            {"role": "assistant", "text": "{{ {'a': answer.b} | compact_json }}"},
        ]
    )
    with pytest.raises(DataError, match=r"turn 2 cannot be made: .*'b'"):
        turns(RowMapper(made), {"question": "a", "answer": {"c": 1}})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            None,
            r"row 7: turn 2 cannot be made: the field 'answer' is null; expected text\. Fill it in or remove the row",
        ),
        (["b"], r"row 7: turn 2 cannot be made: the field 'answer' holds a list, \['b'\]; expected text.*answer\[0\]"),
        ({"x": 1}, r"the field 'answer' holds an object, .*expected text.*answer | compact_json"),
        (True, r"the field 'answer' holds true; expected text.*'yes' if answer else 'no'"),
    ],
)
@pytest.mark.parametrize(
    "text", ["{{ answer }}", "So: {{ answer }}", "{{ row['answer'] }}", "{% if 1 %}{{ answer }}{% endif %}"]
)
def test_what_is_no_text_names_the_field_however_the_template_prints_it(text: str, value: Any, expected: str) -> None:
    made = template(turns=[{"role": "user", "text": "{{ question }}"}, {"role": "assistant", "text": text}])
    with pytest.raises(DataError, match=expected if "row" not in text else "'answer'"):
        turns(RowMapper(made), {"question": "a", "answer": value})


def test_what_is_no_text_deep_in_a_row_is_named_by_its_path() -> None:
    made = template(
        turns=[{"role": "user", "text": "{{ question }}"}, {"role": "assistant", "text": "{{ answer[1].text }}"}]
    )
    with pytest.raises(DataError, match=r"turn 2 cannot be made: answer\[1\]\.text of this row is null"):
        turns(RowMapper(made), {"question": "a", "answer": [{}, {"text": None}]})


@pytest.mark.parametrize("text", ["{{ answer }}", "{% if 1 %}{{ answer }}{% endif %}"])
@pytest.mark.parametrize(("value", "said"), [(12, "12"), (0.5, "0.5"), (-3, "-3"), (10**20, str(10**20))])
def test_a_number_is_said_as_it_is_written(text: str, value: Any, said: str) -> None:
    made = template(turns=[{"role": "user", "text": "{{ question }}"}, {"role": "assistant", "text": text}])
    assert turns(RowMapper(made), {"question": "a", "answer": value})[-1] == ("assistant", said)


plain_texts = st.lists(
    st.sampled_from(
        ["{{ question }}", "{{ answer }}", "{{ row['question'] }}", " ", "a{b}", "\n", "{{ 'x' }}", "#", "%}"]
    ),
    min_size=1,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=plain_texts, question=st.text(), answer=st.integers())
def test_what_is_put_together_by_hand_is_what_jinja_renders(text: str, question: str, answer: int) -> None:
    fields = {"question": question, "answer": answer}
    made = Text(text, "turn 1")
    assert not made.needs_jinja
    assert made.render(Row(fields, "row 1"), fields) == environment().from_string(text).render(fields | {"row": fields})
