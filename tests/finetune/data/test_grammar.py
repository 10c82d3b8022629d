"""The grammar expander: same seed same rows, combinations that can be held out, and errors that name the fault."""

import hashlib
import json
from pathlib import Path

import pytest

from export.errors import DataError
from finetune.data.grammar import expand, load_grammar

ROBOT_GRAMMAR = Path(__file__).parents[3] / "data_templates" / "cleaning_robot.grammar.yaml"

LAMP_GRAMMAR = """
name: lamp
description: Switches a lamp.
system_prompt: Answer with JSON.
joiners: {en: {before: ", ", after: " "}, zh: {before: "", after: "，"}}
openers: {en: ["", "please "], zh: ["", "请"]}
closers: {en: [""], zh: [""]}
options_chance: [1, 1]
slots:
  state:
    values:
      - {value: true, en: ["on"], zh: [打开]}
      - {value: false, en: ["off"], zh: [关掉]}
  level:
    position: {en: [before, after], zh: [before]}
    values:
      - {value: 1, en: [softly], zh: [轻轻地]}
      - {value: 2, en: [brightly], zh: [亮一点]}
intents:
  - name: switch
    share: 3
    action: {"on": "{state}", how: "{options}"}
    options: [level]
    sentences: {en: ["{before}turn the lamp {state}{after}"], zh: ["{before}{state}灯"]}
out_of_scope:
  share: 1
  action: {refuse: true}
  families:
    - {name: song, en: [sing], zh: [唱歌]}
"""


@pytest.fixture
def lamp_grammar(tmp_path: Path) -> Path:
    """A grammar that is small enough to be known by heart."""
    path = tmp_path / "lamp.yaml"
    path.write_text(LAMP_GRAMMAR, encoding="utf-8")
    return path


def rewritten(path: Path, old: str, new: str) -> Path:
    """The grammar with one passage replaced."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_the_same_seed_gives_the_same_rows() -> None:
    assert list(expand(ROBOT_GRAMMAR, 300, seed=5)) == list(expand(ROBOT_GRAMMAR, 300, seed=5))


def test_another_seed_gives_other_rows() -> None:
    assert list(expand(ROBOT_GRAMMAR, 300, seed=5)) != list(expand(ROBOT_GRAMMAR, 300, seed=6))


def test_as_many_rows_as_asked_for_and_no_command_twice() -> None:
    commands = [row["command"] for row in expand(ROBOT_GRAMMAR, 2000, seed=1)]
    assert len(commands) == 2000
    assert len(set(commands)) == 2000


def test_every_action_is_compact_json_with_a_fixed_order_of_keys() -> None:
    orders = set()
    for row in expand(ROBOT_GRAMMAR, 1000, seed=2):
        action = json.loads(row["action"])
        assert row["action"] == json.dumps(action, ensure_ascii=False, separators=(",", ":"))
        orders.add(tuple(action))
    assert orders == {("task", "area", "options"), ("task", "options"), ("task", "reason")}


def test_both_languages_share_the_combination_of_an_action() -> None:
    languages_of: dict[str, set[str]] = {}
    for row in expand(ROBOT_GRAMMAR, 3000, seed=3):
        languages_of.setdefault(row["combination"], set()).add(row["language"])
    assert sum(languages == {"en", "zh"} for languages in languages_of.values()) > 100


def test_holding_out_combinations_holds_out_their_actions() -> None:
    rows = list(expand(ROBOT_GRAMMAR, 2000, seed=4))
    in_scope = [row for row in rows if row["combination"] == row["action"]]
    held_out = set(sorted({row["combination"] for row in in_scope})[::5])
    seen = {row["action"] for row in in_scope if row["combination"] not in held_out}
    unseen = {row["action"] for row in in_scope if row["combination"] in held_out}
    assert unseen
    assert not seen & unseen


def test_an_action_of_one_slot_is_grouped_by_its_words_and_never_held_back_as_a_whole() -> None:
    rows = [row for row in expand(ROBOT_GRAMMAR, 2000, seed=4) if row["action"] == '{"task":"pause","options":{}}']
    assert len({row["combination"] for row in rows}) > 3
    assert not any(row["combination"] == row["action"] for row in rows)


def test_a_refusal_is_grouped_by_its_family() -> None:
    rows = list(expand(ROBOT_GRAMMAR, 1000, seed=7))
    refused = [row for row in rows if json.loads(row["action"])["task"] == "refuse"]
    assert all(row["combination"].startswith("out_of_scope/") for row in refused)
    assert len({row["combination"] for row in refused}) > 20


def test_values_keep_their_type_and_options_their_object(lamp_grammar: Path) -> None:
    actions = {row["action"] for row in expand(lamp_grammar, 20, seed=1)}
    assert actions >= {'{"on":true,"how":{}}', '{"on":false,"how":{"level":2}}', '{"refuse":true}'}


def test_an_option_is_said_where_the_sentence_has_room(lamp_grammar: Path) -> None:
    commands = {row["command"] for row in expand(lamp_grammar, 36, seed=1)}
    assert {"softly, turn the lamp on", "turn the lamp off brightly", "请亮一点打开灯"} <= commands


@pytest.mark.parametrize(
    ("old", "new"),
    [("turn the lamp {state}", "turn the {device} {state}"), ("[level]", "[device]"), ("[sing]", "['sing {device}']")],
)
def test_an_undefined_slot_is_named_with_its_place(lamp_grammar: Path, old: str, new: str) -> None:
    with pytest.raises(DataError, match=r"(intent 'switch'|family 'song') uses the slot 'device', which is not"):
        list(expand(rewritten(lamp_grammar, old, new), 1, seed=1))


def test_an_unknown_key_is_an_error(lamp_grammar: Path) -> None:
    with pytest.raises(DataError, match="colour"):
        load_grammar(rewritten(lamp_grammar, "name: lamp", "name: lamp\ncolour: red"))


def test_a_restriction_to_an_unknown_value_is_an_error(lamp_grammar: Path) -> None:
    with pytest.raises(DataError, match="unknown values of 'level'"):
        load_grammar(rewritten(lamp_grammar, "share: 3", "share: 3\n    only: {level: [9]}"))


def test_a_sentence_without_room_for_an_option_is_an_error(lamp_grammar: Path) -> None:
    with pytest.raises(DataError, match="no sentence with room"):
        list(expand(rewritten(lamp_grammar, "{before}{state}灯", "{state}灯"), 20, seed=1))


def test_more_rows_than_the_grammar_can_make_is_an_error(lamp_grammar: Path) -> None:
    with pytest.raises(DataError, match="different commands, 500 were asked for"):
        list(expand(lamp_grammar, 500, seed=1))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the grammar"):
        load_grammar(tmp_path / "none.yaml")


def test_the_quickstarts_rows_stay_what_they_were() -> None:
    # of the rows that the quickstart was measured on, before grammars of other kinds came
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in expand(ROBOT_GRAMMAR, 2000, seed=0))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert digest == "a24dee70d8e853316ec4c8bc8bccd8bf0adfeb7d82fbe2dd802d2ba26e4004a7"
