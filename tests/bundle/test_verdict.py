"""What a rehearsal's figures amount to: nothing passes that was not judged."""

from types import SimpleNamespace

import pytest

from export.rehearsal.figures import against_merged, share
from export.rehearsal.rehearsing import _verdict

_ROWS = 200


def _found(**changed):
    return {
        "answers": _ROWS,
        "wrong_schema": 0,
        "changed_answers": 0,
        "not_taken": share([False] * _ROWS),
        "against_merged": against_merged([True] * _ROWS, [True] * _ROWS),
        "restarts": (),
        "growth": SimpleNamespace(verdict="pass"),
        **changed,
    }


def _worse_by(rows):
    return against_merged([True] * (_ROWS - rows) + [False] * rows, [True] * _ROWS)


@pytest.mark.parametrize(
    ("changed", "verdict", "said"),
    [
        ({}, "pass", None),
        ({"not_taken": share([True] * (_ROWS - 1) + [False])}, "pass", None),
        ({"not_taken": share([True] * _ROWS)}, "fail", "no answer was taken"),
        ({"against_merged": _worse_by(2)}, "pass", None),
        ({"against_merged": _worse_by(3)}, "cannot tell", "197 right against 200 of 200 rows"),
        ({"against_merged": _worse_by(30)}, "fail", "more than one point worse"),
        ({"against_merged": None}, "pass", None),
        ({"wrong_schema": 1}, "fail", "1 of 200 answers break the schema"),
        ({"growth": None}, "cannot tell", "whether memory grows"),
        ({"growth": SimpleNamespace(verdict=None)}, "cannot tell", "whether memory grows"),
        ({"growth": SimpleNamespace(verdict="fail")}, "fail", "memory grows"),
    ],
)
def test_a_rehearsal_passes_only_what_was_judged(changed, verdict, said):
    problems, decided = _verdict(_found(**changed))
    assert decided == verdict
    assert problems == () if said is None else said in problems[0]
