"""Draws are nested, seeded, never over the budget, and counted as they are."""

from hypothesis import given
from hypothesis import strategies as st

from export.chat import encode
from finetune.data.draw import draw, drawn, lengths_of
from tests.export.chat_tokenizers import build_tokenizer
from tests.finetune.data.test_rows_contract import prepared, rows

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(lengths=LENGTHS, budgets=st.tuples(st.integers(1, 2000), st.integers(1, 2000)), seed=st.integers(0, 5))
def test_a_larger_budget_draws_all_that_a_smaller_one_does(lengths, budgets, seed):
    small, large = (drawn(range(len(lengths)), lengths, budget, seed) for budget in sorted(budgets))
    assert set(small) <= set(large)
    assert large == sorted(large)
    for indexes, budget in zip((small, large), sorted(budgets), strict=True):
        assert sum(lengths[index] for index in indexes) <= budget or len(indexes) == 1


def test_without_a_budget_all_rows_are_drawn():
    assert drawn([3, 5, 8], [1] * 9, None, 0) == [3, 5, 8]


def test_a_draw_of_splits_is_counted_and_leaves_the_others_alone(tmp_path):
    splits = prepared(tmp_path, rows(120))
    tokenizer = build_tokenizer("plain")
    out = tmp_path / "drawn"
    out.mkdir()
    found = draw(splits, lengths_of(splits, tokenizer, thinking=False), 2500, 4, out)
    encoded = [encode(tokenizer, row) for row in found.conversations("train")]
    assert found.train.rows == len(encoded) < splits.train.rows
    assert found.train.tokens == sum(len(row.ids) for row in encoded) <= 2500
    assert found.train.scored_tokens == sum(sum(row.scored) for row in encoded)
    assert found.not_drawn == splits.train.rows - found.train.rows
    assert found.conversations("held_out") == splits.conversations("held_out")
    assert (found.held_out, found.valid) == (splits.held_out, splits.valid)
    assert found.fingerprint != splits.fingerprint
