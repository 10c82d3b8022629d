"""Structured answers, whose fields are counted by hand."""

import json

import pytest

from export.checks._json_answer import leaves, read, same
from export.checks.fields import Fields
from export.errors import RecipeError
from tests.export.observing import numbers, scores

MOP = '{"task":"mop","area":"hall","slots":{"passes":2}}'
REFUSE = '{"task":"refuse","reason":"out_of_scope"}'


@pytest.mark.parametrize(
    ("answer", "is_json", "has_value"),
    [
        ('{"a": 1}', True, True),
        (" [1, 2]\n", True, True),
        ("3", True, True),
        ('```json\n{"a": 1}\n```', False, True),  # plain to a person; a machine stops at the fence
        ('```json {"a": 1}```', False, True),
        ('```{"a": 1}```', False, True),
        ('```\n{"a": 1}```', False, True),
        ('Here it is:\n```json\n{"a": 1}\n```', False, False),
        ('{"a": 1, "a": 1}', False, False),
        ('{"a": {"b": 1, "b": 2}}', False, False),
        ('{"a": NaN}', False, False),
        ("Infinity", False, False),
        ('{"a": 1', False, False),  # cut off
        ('{"a": 1}{"a": 1}', False, False),
        ('{"a": 1}<|im_end|>', False, False),
        ("{'a': 1}", False, False),
        ("", False, False),
        ("[" * 100_000, False, False),
        ("[" * 500 + "]" * 500, False, False),
        ("9" * 5000, False, False),
        ('{"厨房": "\\u53a8\\u623f"}', True, True),
    ],
)
def test_what_is_json(answer, is_json, has_value):
    found = read(answer)
    assert (found.is_json, found.has_value) == (is_json, has_value)


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ('{"a":1,"b":2}', '{"b":2,"a":1}', True),
        ('{"a":1}', '{"a":1.0}', True),
        ('{"a":100}', '{"a":1e2}', True),
        ('{"a":0}', '{"a":-0.0}', True),
        ('{"a":0.1}', '{"a":0.1000000000000000055511151231257827}', False),
        ('{"a":1}', '{"a":true}', False),
        ('{"a":0}', '{"a":false}', False),
        ('{"a":"1"}', '{"a":1}', False),
        ('{"a":null}', "{}", False),
        ("{}", "[]", False),
        ('{"a":{}}', '{"a":null}', False),
        ('"厨房"', '"\\u53a8\\u623f"', True),
        ("[1,2]", "[2,1]", False),
        ("100000000000000000000000000000001", "100000000000000000000000000000002", False),
    ],
)
def test_values_are_equal_whatever_the_order_of_keys(first, second, equal):
    values = read(first).value, read(second).value
    assert same(*values, "ordered") is equal
    assert (leaves(values[0], "ordered") == leaves(values[1], "ordered")) is equal


def test_lists_may_be_without_order():
    one, other = read('[{"a":1,"b":2},{"a":3,"b":4}]').value, read('[{"b":4,"a":3},{"b":2,"a":1}]').value
    mixed = read('[{"a":1,"b":4},{"a":3,"b":2}]').value
    assert same(one, other, "unordered")
    assert not same(one, other, "ordered")
    assert not same(one, mixed, "unordered")  # the same leaves, put together otherwise
    assert leaves(one, "unordered") == leaves(mixed, "unordered")
    assert leaves([1, 1, 2], "unordered") != leaves([1, 2, 2], "unordered")


def test_slots_are_counted_leaf_by_leaf():
    # gold has 3 leaves. Right twice and once wrong; all right and one more; no JSON at all
    answers = [
        '{"slots":{"passes":3},"area":"hall","task":"mop"}',
        '{"task":"mop","area":"hall","slots":{"passes":2},"mode":"quiet"}',
        "I mop.",
    ]
    found = numbers(Fields(), [MOP] * 3, answers)
    assert scores(found["fields_match"]) == [0, 0, 0]
    assert scores(found["fields_row_f1"]) == pytest.approx([4 / 6, 6 / 7, 0])
    assert found["slot_precision"].value == pytest.approx(5 / 7)
    assert found["slot_recall"].value == pytest.approx(5 / 9)
    assert found["slot_f1"].value == pytest.approx(2 * 5 / (7 + 9))
    precision, recall = (found[f"slot_{name}"].value for name in ("precision", "recall"))
    assert found["slot_f1"].value == pytest.approx(2 * precision * recall / (precision + recall))
    assert [found[f"slot_{name}"].n for name in ("precision", "recall", "f1")] == [7, 9, 16]
    assert {m.check for m in found.values() if m.judged} == {"fields_match", "fields_row_f1", "fields_json"}


def test_a_fence_costs_the_form_and_not_the_score():
    found = numbers(Fields(), [MOP] * 2, [f"```json\n{MOP}\n```", MOP])
    assert scores(found["fields_match"]) == [1, 1]
    assert scores(found["fields_json"]) == [0, 1]


def test_rows_whose_reference_is_no_json_are_left_out_and_counted():
    found = numbers(Fields(), [MOP, "hello"], [MOP, "hello"])
    assert found["fields_match"].n == 1
    assert found["fields_match"].note.startswith("1 rows whose reference is not JSON are left out")
    assert numbers(Fields(), ["hello"], ["hello"])["fields_match"].n == 0


def test_out_of_scope_rows_are_refused_and_others_are_not():
    check = Fields(refusal={"task": "refuse"})
    references = [REFUSE, REFUSE, REFUSE, MOP, MOP]
    answers = ['{"task":"refuse","reason":"busy"}', MOP, "no", REFUSE, "no"]
    found = numbers(check, references, answers)
    assert scores(found["refusal"]) == [1, 0, 0]
    assert scores(found["in_scope_answered"]) == [0, 1]
    assert (found["refusal"].judged, found["in_scope_answered"].judged) == (True, False)
    assert "refusal" not in numbers(Fields(), references, answers)


SCHEMA = {
    "type": "object",
    "properties": {"task": {"enum": ["mop", "refuse"]}, "n": {"type": "integer", "multipleOf": 0.5}},
    "required": ["task"],
}


def test_a_schema_is_kept_or_not(tmp_path):
    answers = [
        '{"task":"mop","n":1.0}',
        '{"task":"fly"}',
        "[]",
        '```json\n{"task":"mop"}\n```',
        '{"n":1}',
        '{"task":"mop","n":1.5}',
    ]
    inline = numbers(Fields(json_schema=SCHEMA), [MOP] * 6, answers)["fields_schema"]
    assert scores(inline) == [1, 0, 0, 1, 0, 0]
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    assert numbers(Fields(json_schema=str(path)), [MOP] * 6, answers)["fields_schema"].sample == inline.sample
    assert "fields_schema" not in numbers(Fields(), [MOP], [MOP])


def test_an_older_draft_is_read_as_what_it_says_it_is():
    older = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 5, "exclusiveMaximum": True}
    assert scores(numbers(Fields(json_schema=older), ["1"] * 2, ["5", "4"])["fields_schema"]) == [0, 1]


def test_schemas_that_cannot_be_used_are_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "half.json").write_text("{", encoding="utf-8")
    for schema, says in (
        ({"type": "text"}, "is no JSON schema"),
        (str(tmp_path / "none.json"), "cannot be read"),
        (str(tmp_path / "half.json"), "cannot be read"),
    ):
        with pytest.raises(RecipeError, match=says):
            Fields(json_schema=schema).options(())


@pytest.mark.filterwarnings("ignore")  # the library warns where it fetches, and an error would hide that it does
def test_a_schema_fetches_nothing(monkeypatch):
    fetched = []
    monkeypatch.setattr("urllib.request.urlopen", lambda request, *_, **__: fetched.append(request))
    elsewhere = Fields(json_schema={"$ref": "http://example.invalid/schema.json"})
    with pytest.raises(RecipeError, match=r"not in it\. Put it under \$defs"):
        numbers(elsewhere, [MOP], [MOP])
    assert fetched == []
    within = Fields(json_schema={"$ref": "#/$defs/x", "$defs": {"x": {"type": "object"}}})
    assert scores(numbers(within, [MOP], [MOP])["fields_schema"]) == [1]
