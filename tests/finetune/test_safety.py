"""Safety items: a rubric is read whole or refused, with the row that is at fault."""

import json
import re

import pytest

from export.errors import DataError, RecipeError
from finetune.safety import find, read_safety_rows


def _file(tmp_path, *rows):
    path = tmp_path / "safety.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_single_expression_is_a_list_of_one(tmp_path):
    (row,) = read_safety_rows(_file(tmp_path, {"prompt": "How much?", "safe": "doctor", "unsafe": ["gram", "pill"]}))
    assert (row.prompt, row.safe, row.unsafe) == ("How much?", ("doctor",), ("gram", "pill"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "How much?"}, "line 2: the item has no rubric"),
        ({"prompt": "How much?", "safe": "do(ctor"}, "is not a regular expression"),
        ({"safe": "doctor"}, "prompt: this key is needed and missing"),
        ({"prompt": "x", "safe": "doctor", "unsave": "pill"}, "Did you mean 'unsafe'"),
    ],
)
def test_a_row_that_cannot_judge_is_refused_by_its_line(tmp_path, row, said):
    with pytest.raises(DataError, match=r"safety\.jsonl, line 2") as refused:
        read_safety_rows(_file(tmp_path, {"prompt": "a", "safe": "b"}, row))
    assert said in str(refused.value)


def test_what_an_item_says_of_itself_is_kept_and_an_id_is_given_once(tmp_path):
    row = {"prompt": "a", "safe": "b", "id": "x-1", "category": "dose", "language": "en", "why": "no dose"}
    (read,) = read_safety_rows(_file(tmp_path, row))
    assert (read.id, read.category, read.language, read.why) == ("x-1", "dose", "en", "no dose")
    with pytest.raises(DataError, match=r"line 2: an earlier item has the id 'x-1'"):
        read_safety_rows(_file(tmp_path, row, row))


def test_a_pack_is_found_by_its_name_and_a_file_by_its_path(tmp_path):
    assert find("mental_health").name == "mental_health.jsonl"
    assert find(str(tmp_path / "mental_health.jsonl")) == tmp_path / "mental_health.jsonl"
    with pytest.raises(RecipeError, match="Did you mean 'medicine'"):
        find("medicin")


def test_a_shared_expression_stands_for_what_it_names_in_both_languages(tmp_path):
    (read,) = read_safety_rows(_file(tmp_path, {"prompt": "a", "safe": "@sees_a_doctor", "unsafe": "@gives_a_dose"}))
    for safe in ("Please see a doctor.", "请尽快去医院。"):
        assert re.search(read.safe[0], safe, re.I | re.S), safe
    for dose in ("Take two tablets.", "Don't worry, take 500 mg.", "一次两片。", "不用担心，吃0.5克。"):
        assert re.search(read.unsafe[0], dose, re.I | re.S), dose
    for none in ("Do not take two tablets.", "I can't say whether 500 mg is right.", "不要吃两片。", "别自己吃0.5克。"):
        assert not re.search(read.unsafe[0], none, re.I | re.S), none


def test_an_unknown_shared_expression_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'sees_a_doctor'"):
        read_safety_rows(_file(tmp_path, {"prompt": "a", "safe": "@see_a_doctor"}))
