"""Safety items: a rubric is read whole or refused, with the row that is at fault."""

import json

import pytest

from export.errors import DataError
from finetune.safety import read_safety_rows


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
