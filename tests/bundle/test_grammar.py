"""The grammar of a bundle, as llama.cpp itself walks it: every right answer passes, planted wrong ones do not."""

import json
import re

import jsonschema
import numpy as np
import pytest

from export.bundle.grammar import grammar_of, key_order_of
from export.bundle.grammar_check import require_accepted
from export.bundle.rejected import rejected_mass
from export.checks import Items
from export.engines import llama_cpp
from export.engines.llama_library import GrammarWalk
from export.errors import EngineError, ExportError
from tests.bundle.making import read


@pytest.fixture(scope="module")
def accepts(bundle, vocabulary):
    """Whether llama.cpp lets the model write a text, and stop behind it."""
    walk = GrammarWalk(vocabulary, (bundle / "grammar.gbnf").read_text(encoding="utf-8"))
    end = vocabulary.tokenize("<|im_end|>")

    def asked(text):
        return walk.first_rejected([*vocabulary.tokenize(text, parse_special=False), *end]) is None

    yield asked
    walk.close()


def _answers(run, *splits):
    lines = [line for split in splits for line in (run / f"data/{split}.jsonl").read_text("utf-8").splitlines()]
    return [json.loads(line)["messages"][-1]["content"] for line in lines]


def test_every_right_answer_passes_llama_cpps_own_grammar(run, accepts):
    answers = _answers(run, "train", "valid", "held_out")
    assert len(answers) > 150
    assert [answer for answer in answers if not accepts(answer)] == []


@pytest.mark.parametrize(
    "plant",
    [
        lambda text: text[:-1] + ',"extra":1}',
        lambda text: text.replace('"task":"', '"task":"x', 1),
        lambda text: text.replace('"say":', '"words":', 1),
        lambda text: f"```json\n{text}\n```",
        lambda text: f"{text} Done!",
        lambda text: f"Here it is: {text}",
        lambda text: text[:-1],
        lambda text: json.dumps({"actions": json.loads(text)["actions"]}, separators=(",", ":")),
        lambda text: json.dumps({**json.loads(text), "actions": []}, separators=(",", ":")),
    ],
    ids=[
        "extra key",
        "no such task",
        "no such key",
        "markdown",
        "a word after",
        "a word before",
        "cut",
        "a key left out",
        "a list for an object",
    ],
)
def test_a_planted_wrong_answer_is_rejected(run, accepts, plant):
    for answer in _answers(run, "held_out")[:5]:
        assert accepts(answer)
        assert not accepts(plant(answer))


def test_chinese_values_of_an_enum_pass_as_they_are_written(vocabulary):
    # the converter writes them as escapes, which GBNF reads as the characters
    grammar = grammar_of({"type": "object", "additionalProperties": {"enum": ["正面", "负面"]}}, ())
    walk = GrammarWalk(vocabulary, grammar.text)
    end = vocabulary.tokenize("<|im_end|>")
    assert walk.first_rejected([*vocabulary.tokenize('{"service":"正面"}'), *end]) is None
    assert walk.first_rejected([*vocabulary.tokenize('{"service":"中性"}'), *end]) is not None
    walk.close()


def test_what_the_converter_passes_over_is_told():
    schema = {
        "type": "object",
        "if": {"properties": {"a": {"const": 1}}},
        "properties": {
            "a": {"type": "integer", "minimum": 3},
            "not": {"type": "array", "items": {"type": "integer", "not": {}}},
        },
        "title": "told by nobody",
    }
    assert set(grammar_of(schema, ()).not_enforced) == {
        "#/if",
        "#/properties/a/minimum",
        "#/properties/not/items/not",
    }
    either = {"type": "object", "anyOf": [{"type": "string", "not": {"const": "a"}}, {"type": "integer"}]}
    assert grammar_of(either, ()).not_enforced == ("#/type", "#/anyOf/0/not")


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
SCHEMAS = [
    {"type": "string", "pattern": "^[ab]+$", "maxLength": 3},
    {"type": "string", "minLength": 1, "maxLength": 3},
    {"minLength": 1, "type": ["string", "null"]},
    {"type": "string", "format": "time", "maxLength": 10},
    {"type": "string", "format": "email"},
    {"type": ["object", "null"], "properties": {"a": WHOLE}, "required": ["a"]},
    {"type": "object", "required": ["a"]},
    {"type": "object", "properties": {"a": WHOLE}, "required": ["a"], "minProperties": 1},
    {"type": "object", "properties": {"a": WHOLE}, "allOf": [{"properties": {"b": WHOLE}}]},
    {"type": "object", "allOf": [{"properties": {"b": WHOLE}}], "required": ["b"]},
    {"type": "object", "additionalProperties": WHOLE, "propertyNames": {"maxLength": 2}},
    {"type": "array", "items": WHOLE, "minItems": 1, "maxItems": 3, "uniqueItems": True},
    {"type": "array", "items": WHOLE, "prefixItems": [TEXT]},
    {"type": "array", "prefixItems": [TEXT, WHOLE], "minItems": 2},
    {"type": "array", "minItems": 2},
    {"type": "integer", "minimum": 3},
    {"type": "string", "enum": ["a", "b"], "maxLength": 1},
    {"type": "integer", "const": 3, "minimum": 1},
    {"type": "object", "anyOf": [WHOLE, TEXT], "properties": {"a": TEXT}},
    {"$ref": "#/$defs/a", "maxLength": 3, "$defs": {"a": TEXT}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: " ".join(schema))
def test_a_keyword_is_told_where_the_grammar_is_the_same_without_it(schema):
    """Asked of llama.cpp's converter itself; a type beside what implies it is no rule of its own."""
    found = grammar_of(schema, ())
    for keyword in schema.keys() - {"type", "$defs", "$ref"}:
        without = grammar_of({key: value for key, value in schema.items() if key != keyword}, ()).text
        assert (f"#/{keyword}" in found.not_enforced) == (without == found.text), keyword


@pytest.fixture(scope="module")
def passes(vocabulary):
    """Whether llama.cpp lets the model write a value, as JSON without white space, and stop behind it."""
    end = vocabulary.tokenize("<|im_end|>")

    def asked(grammar, value):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        walk = GrammarWalk(vocabulary, grammar.text)
        try:
            return walk.first_rejected([*vocabulary.tokenize(text, parse_special=False), *end]) is None
        finally:
            walk.close()

    return asked


PATTERNS = [
    *(
        r"^[0-9]+\.[0-9]+$",
        r"^a\.b$",
        r"^a\/b$",
        r"^\d{2}:\d{2}$",
        "^room [a-z0-9]+$",
        "^(x(a|b))$",
        "^(?:left|right)?$",
    ),
    *('^[^"0-9]+$', '^["a]+$', '^a"b$', "^.+$", "^[ -~]*$", r"^[^\n]*$", r"^\\$", "^[一-龥]{1,3}$", r"^\u4e00.*$"),
    *(r"^[a-z.-]+@[a-z-]+\.com$", "^a+?b$", r"^[\]\[]$", r"^[^\]]$", r"^\$\{x\}$", r"^a\tb$", "^[^ ]+$", "^a{2,} ?b*$"),
    *(r"^\w+$", r"^[\w-]+$", r"^\S+$", r"^a\sb$", r"^room \w+$"),
    *(r"^-?[0-9]{1,3}(,[0-9]{3})*$", "^[a|b]$", r"^[\t ]$", r"^(a|)b$", r"^[\d-]+$"),
]
TEXTS = [
    *("1.5", "1x5", "a.b", "axb", "a/b", 'a"b', '"', "a", "12:30", "room 5", "room ", "xa", "xab", "left", "", "a\nb"),
    *(
        "\\",
        "一二三",
        "一二三四",
        "]",
        "[",
        "${x}",
        "1,000",
        "-12",
        "a\tb",
        "\t",
        " ",
        "é",
        "aab",
        "b",
        "a b",
        "aa bb",
        "|",
    ),
    *("ab-c.d@e.com", '"a"', "no 5", "_a", "1-2", "a_b"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_lets_the_texts_pass_that_pythons_does(passes, pattern):
    grammar = grammar_of({"type": "string", "pattern": pattern}, ())
    found = [text for text in TEXTS if passes(grammar, text)]
    assert found == [text for text in TEXTS if re.fullmatch(pattern[1:-1], text, re.ASCII)]
    assert grammar.not_enforced == ()


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        *(("^left|right$", "'|right', outside"), ("^(x(a|b))|c$", "'|c', outside"), ("left$", "no ^ at its beginning")),
        *((r"^\W+$", "read in two ways"), (r"^\D$", "write out which characters"), (r"^[^\w]+$", "read in two ways")),
        *(
            (r"^\bleft$", r"\\b"),
            (r"^(a)\1$", r"\\1"),
            ("^(?=a)a$", "(?=a"),
            ("^a^b$", "'^' within"),
            ("^+$", "nothing to"),
        ),
        *(
            ("^[a$", "without its ']'"),
            ("^(a$", "without its ')'"),
            ("^[z-a]$", "no such ends"),
            (r"^\x01$", "no JSON text"),
            (r"^[^]]+$", "read in two ways"),
            (r"^[]a]$", "read in two ways"),
        ),
    ],
)
def test_a_pattern_that_grammars_do_not_have_is_refused_by_its_place(pattern, named):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    with pytest.raises(ExportError, match=r"#/properties/a/pattern .* holds what grammars have not") as refused:
        grammar_of(schema, ())
    assert named in str(refused.value)


DAY = {"type": "string", "enum": ["mon", "tue"]}
VALUES = [
    *(
        {},
        {"a": 1},
        {"a": "x"},
        {"a": [1]},
        {"b": 1},
        {"a": 1, "b": 2},
        {"a": 1, "b": "mon"},
        {"a": {"b": 1}},
        {"a": None},
    ),
    *(
        [],
        [1],
        [1, "x"],
        ["x", 1],
        ["x"],
        [1, 2, 3, 4],
        [[1]],
        1,
        "x",
        "mon",
        None,
        True,
        1.5,
        "😀",
        {"day": "mon", "next": "x"},
    ),
    *({"day": "mon"}, {"day": "x"}, {"day": {}}),
    *({"day": "mon", "next": "tue"}, {"a": "2021-02-30"}, {"a": 5, "c": 1}, {"a": 1, "then": {"a": 2}}, {"then": {}}),
]


OBJECT = {"type": "object"}


@pytest.mark.parametrize(
    ("schema", "keys"),
    [
        (True, None),
        ({}, None),
        ({"description": "anything"}, None),
        ({**OBJECT, "properties": {"a": True, "b": {}}}, ("a", "b")),
        ({"type": "array", "items": True}, None),
        ({"anyOf": [WHOLE, True]}, None),
        ({**OBJECT, "properties": {"a": WHOLE}, "required": ["a"], "additionalProperties": {}}, None),
        ({**OBJECT, "properties": {"a": WHOLE}, "required": ["a"], "additionalProperties": DAY}, None),
        ({**OBJECT, "additionalProperties": True}, None),
        ({**OBJECT, "additionalProperties": {}}, None),
        ({**OBJECT, "properties": {}, "additionalProperties": True}, None),
        ({"type": "array", "items": [TEXT, WHOLE], "minItems": 2}, None),
        ({"type": "array", "items": [TEXT, {"type": "integer", "minimum": 3}]}, None),
        ({**OBJECT, "properties": {"a": {"type": "string", "format": "date"}}}, ("a",)),
        ({**OBJECT, "allOf": [{"properties": {"a": WHOLE, "b": WHOLE}, "required": ["a"]}]}, ("a", "b")),
        (
            {
                **OBJECT,
                "allOf": [{"properties": {"a": WHOLE}, "required": ["a"]}, {"$ref": "#/$defs/b"}],
                "$defs": {"b": {"properties": {"b": WHOLE}}},
            },
            ("a", "b"),
        ),
        ({"allOf": [{"$ref": "#/$defs/day"}], "$defs": {"day": DAY}}, None),
        ({"type": "integer", "allOf": [{"minimum": 1}]}, None),
        ({"type": ["string", "null"], "allOf": [{"enum": ["mon", None]}]}, None),
        ({"type": "number", "allOf": [{"type": "integer"}]}, None),
        ({"type": "string", "allOf": [{"minLength": 1}]}, None),
        ({"type": "string", "allOf": [{"$ref": "#/$defs/day"}], "$defs": {"day": DAY}}, None),
        ({"type": "integer", "allOf": [{"description": "a number"}]}, None),
        ({**OBJECT, "allOf": [{"properties": {"a": WHOLE}, "required": ["a"]}, {"required": ["a", "zz"]}]}, ("a",)),
        (
            {
                **OBJECT,
                "properties": {"a": WHOLE, "b": WHOLE},
                "allOf": [{"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}],
            },
            ("a", "b"),
        ),
        (
            {
                **OBJECT,
                "properties": {"day": {"title": "Day", "allOf": [{"$ref": "#/definitions/day"}]}},
                "definitions": {"day": DAY},
            },
            ("day",),
        ),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {**OBJECT, "properties": {"a": WHOLE, "then": {"$ref": "#/$defs/a"}}}},
            },
            ("a", "then"),
        ),
        ({"enum": ["😀", "x"]}, None),
        # values of another type than the one beside them
        ({"type": "string", "enum": ["mon", 1, None, True]}, None),
        ({"type": "integer", "enum": ["mon", 1, 2.0, 2.5, True]}, None),
        ({"type": "string", "allOf": [{"enum": ["mon", 1]}]}, None),
        ({"type": ["string", "null"], "allOf": [{"enum": ["mon", None, 1]}]}, None),
        ({"type": ["string", "null"], "enum": ["mon", None, 1]}, None),
        ({"type": ["string", "integer"], "const": "mon"}, None),
        # a property's rule is not that of a definition of its name
        (
            {
                **OBJECT,
                "properties": {"day": DAY, "next": {"$ref": "#/$defs/day"}},
                "required": ["day", "next"],
                "$defs": {"day": {"enum": ["x"]}},
            },
            ("day", "next"),
        ),
        ({**OBJECT, "properties": {"a": WHOLE, "then": {"$ref": "#"}}, "additionalProperties": False}, None),
        (
            {**OBJECT, "properties": {"a": WHOLE, "then": {"$ref": "#/properties/a"}}, "required": ["a"]},
            ("a", "then"),
        ),
    ],
    ids=str,
)
def test_a_grammar_lets_pass_what_the_schema_does_or_tells_where_it_does_not(passes, schema, keys):
    """Against jsonschema. A grammar closes an object whose `keys` are named, unless the schema asks for others."""
    grammar = grammar_of(schema, ())
    is_tuple = isinstance(schema, dict) and isinstance(schema.get("items"), list)
    kind = jsonschema.Draft7Validator if is_tuple else jsonschema.Draft202012Validator
    checker = kind(schema, format_checker=jsonschema.FormatChecker())
    for value in VALUES:
        strange = keys is not None and isinstance(value, dict) and not _keys_within(value) <= set(keys)
        if passes(grammar, value):
            assert checker.is_valid(value) or grammar.not_enforced, value
        else:
            assert strange or not checker.is_valid(value) or (is_tuple and len(value) != len(schema["items"])), value


def _keys_within(value):
    return set(value) | {key for inner in value.values() if isinstance(inner, dict) for key in inner}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": False}}, "#/properties/a is false"),
        ({"properties": {"a": 5}}, "#/properties/a is 5"),
        ({"properties": {"a": WHOLE}, "additionalProperties": TEXT}, "#/additionalProperties stands beside keys"),
        ({"properties": {"a": {"enum": ["x", 'a "b"']}}}, "#/properties/a/enum/1 holds"),
        ({"const": "a\nb"}, "#/const holds"),
        ({"const": {"a": 1}}, "#/const is a list or an object"),
        ({"properties": {"": TEXT}}, "#/properties has a key without a name"),
        ({"$ref": "#"}, "#/$ref is '#', which leads back to itself"),
        ({"allOf": [{"properties": {"a": WHOLE}}, WHOLE]}, "#/allOf/1 is a part of an allOf"),
        ({"allOf": [{"minProperties": 1}, {"maxProperties": 2}]}, "#/allOf names no properties"),
        (
            {
                "properties": {"a": TEXT},
                "allOf": [{"oneOf": [{"properties": {"b": WHOLE}}, {"properties": {"c": TEXT}}]}],
            },
            "#/allOf/0/oneOf is a choice within an allOf",
        ),
        (
            {
                "properties": {"a": TEXT},
                "allOf": [{"$ref": "#/$defs/body"}],
                "$defs": {"body": {"anyOf": [{"required": ["x"]}, {"required": ["y"]}]}},
            },
            "#/$defs/body/anyOf is a choice within an allOf",
        ),
        ({"type": "string", "allOf": [WHOLE]}, "#/allOf/0/type is 'integer' beside 'string'"),
        ({"type": "integer", "allOf": [{"enum": ["a", "b"]}]}, "#/allOf/0/enum has no value of the type 'integer'"),
        ({"type": "string", "const": 1}, "#/const is not of the type 'string'"),
        ({"type": "string", "allOf": [{"anyOf": [{"enum": ["a"]}, WHOLE]}]}, "#/allOf/0/anyOf is a choice beside a"),
        (
            {"allOf": [{"properties": {"a": WHOLE}}, {"properties": {"a": TEXT}}]},
            "#/allOf/1/properties/a stands in two",
        ),
        (
            {"properties": {"b": TEXT}, "allOf": [{"properties": {}, "additionalProperties": False}]},
            "/allOf/0/additional",
        ),
        ({"properties": {'a"b': TEXT}}, "#/properties holds"),
        ({"properties": {"a": {"$ref": "https://example.org/a"}}}, "#/properties/a/$ref is 'https"),
        ({"$ref": "#/$defs/missing"}, "#/$ref is '#/$defs/missing'"),
    ],
)
def test_what_would_make_a_wrong_grammar_is_refused_by_its_place(schema, place):
    with pytest.raises(ExportError) as refused:
        grammar_of(schema, ())
    assert place in str(refused.value)


def test_a_pattern_that_the_converter_does_not_read_is_told_and_not_refused():
    schema = {"type": "object", "additionalProperties": TEXT, "propertyNames": {"pattern": r"^\d+$"}}
    assert grammar_of(schema, ()).not_enforced == ("#/propertyNames",)


def test_what_a_grammar_keeps_loosely_is_told():
    schema = {"oneOf": [TEXT, {"type": "string", "format": "date"}, {"type": "string", "format": "time"}]}
    assert set(grammar_of(schema, ()).not_enforced) == {"#/oneOf", "#/oneOf/1/format"}


def test_what_is_required_but_no_property_is_told():
    schema = {"type": "object", "properties": {"a": WHOLE}, "required": ["a", "b"]}
    assert grammar_of(schema, ()).not_enforced == ("#/required",)


def test_of_the_parts_of_an_all_of_what_is_put_together_is_read():
    part = {"properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"], "minProperties": 1}
    other = {"properties": {"b": TEXT}, "not": {}}
    assert set(grammar_of({"type": "object", "allOf": [part, other]}, ()).not_enforced) == {
        "#/allOf/0/properties/a/minimum",
        "#/allOf/0/minProperties",
        "#/allOf/1/not",
    }


def test_a_grammar_that_llama_cpp_cannot_read_is_told_with_what_to_look_for(vocabulary):
    grammar = grammar_of({"type": "string", "pattern": "^(|a)*$"}, ())
    with pytest.raises(ExportError, match="a pattern that repeats what may be empty"):
        require_accepted(vocabulary, grammar.text, ["a"])


def test_a_schema_without_a_grammar_and_a_text_that_is_none(vocabulary):
    with pytest.raises(ExportError, match="no grammar of the JSON schema"):
        grammar_of({"type": "weird"}, ())
    with pytest.raises(ExportError, match="no grammar of the JSON schema"):
        grammar_of({"$ref": "#/$defs/missing"}, ())
    with pytest.raises(EngineError, match="reads no grammar"):
        GrammarWalk(vocabulary, "root ::= nowhere")


def test_keys_come_in_the_order_of_the_rows():
    assert key_order_of([{"b": [{"z": 1}]}, {"a": 1, "b": 2}]) == ("b", "z", "a")
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    assert 'b-kv "," space a-kv' in grammar_of(schema, ("b", "a")).text
    assert 'a-kv "," space b-kv' in grammar_of(schema, ()).text


def test_the_rejected_mass_is_that_of_the_tokens_which_do_not_continue_the_one_text_allowed(bundle, run):
    """The grammar allows one text only, so that by hand a token passes if its bytes begin what is left of it."""
    item = Items.model_validate_json((run / "check/items.json").read_text("utf-8")).items[0]
    item = item.model_copy(update={"scored": tuple(p for p in item.scored if p >= len(item.prompt))})
    grammar = f"root ::= {json.dumps(item.answer, ensure_ascii=False)}\n"
    engine = llama_cpp.load(bundle / "model-q8_0.gguf", vocabulary_size=4096, context_tokens=256, threads=1)
    try:
        found = rejected_mass("x", engine, grammar, [item])
        probabilities = np.exp(engine.log_probs(item.ids, item.scored).astype(np.float64))
        pieces = [engine.vocabulary._bytes_of(token) for token in range(4096)]
        left, expected = item.answer.encode(), []
        for row, position in zip(probabilities, item.scored, strict=True):
            stops = [token for token in range(4096) if engine.vocabulary.is_stop(token)]
            passes = [t for t, piece in enumerate(pieces) if piece and left.startswith(piece)] if left else stops
            expected.append(1 - row[passes].sum())
            left = left[len(pieces[item.ids[position]]) :]
    finally:
        engine.close()
    assert found.sample[0] == pytest.approx(expected, abs=1e-6)
    assert found.figures.tokens == len(item.scored)
    assert found.figures.largest == pytest.approx(max(expected), abs=1e-6)
    assert 0.001 < found.figures.mean < 1


def test_what_the_grammar_takes_is_told_before_and_after_quantization(bundle, run):
    told = read(bundle / "grammar_check.json")
    before, after = told["rejected"]
    assert (before["subject"], after["subject"]) == ("gguf/f16", "gguf/q8_0")
    assert before["rows"] == after["rows"] == 12
    assert before["interval"][0] <= before["mean"] <= before["interval"][1]
    assert told["change"]["delta"] == pytest.approx(after["mean"] - before["mean"])
    assert told["answers"] == len(_answers(run, "train", "held_out"))
