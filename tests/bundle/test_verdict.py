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
        "schema_checked": 200,
        "changed_answers": 0,
        "not_taken": share([False] * _ROWS),
        "refused_right": share([False] * _ROWS),
        "against_merged": against_merged([True] * _ROWS, [True] * _ROWS),
        "restarts": (),
        "growth": SimpleNamespace(verdict="pass"),
        **changed,
    }


def _worse_by(rows, of=_ROWS):
    return against_merged([True] * (of - rows) + [False] * rows, [True] * of)


def _refused(count, of=150):
    return share([True] * count + [False] * (of - count))


@pytest.mark.parametrize(
    ("changed", "verdict", "said"),
    [
        ({}, "pass", None),
        ({"not_taken": share([True] * (_ROWS - 1) + [False])}, "pass", None),  # rows out of scope may be most
        ({"not_taken": share([True] * _ROWS)}, "fail", "no answer was taken"),
        ({"refused_right": _refused(3)}, "pass", None),
        ({"refused_right": _refused(10)}, "cannot tell", "10 of 150 were refused"),
        ({"refused_right": _refused(30)}, "fail", "refused 30 of 150 right answers"),
        ({"refused_right": None}, "cannot tell", "no answer was right"),
        ({"against_merged": _worse_by(0, of=100)}, "pass", None),
        ({"against_merged": _worse_by(0, of=5)}, "cannot tell", "5 right against 5 of 5 rows"),
        ({"against_merged": _worse_by(0, of=1)}, "cannot tell", "1 right against 1 of 1 rows"),
        ({"against_merged": _worse_by(3)}, "cannot tell", "197 right against 200 of 200 rows"),
        ({"against_merged": _worse_by(30)}, "fail", "more than one point worse"),
        ({"against_merged": None}, "cannot tell", "do not say what the merged model answered"),
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
