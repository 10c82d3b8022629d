"""General rows among the training rows: as many as the share asks for, and nothing else is touched."""

import pytest

from export.chat import encode
from finetune.data.draw import lengths_of
from finetune.data.mixing import account, drawn, mix, rows_for, share_of
from finetune.data.splits import fingerprint, write_conversations
from tests.export.chat_tokenizers import build_tokenizer
from tests.finetune.data.small_splits import row_of, small_splits


@pytest.fixture
def mixed(tmp_path):
    domain, general = small_splits(tmp_path / "domain", "mop", 60), small_splits(tmp_path / "general", "sky", 90)
    lengths = lengths_of(general, build_tokenizer("plain"), thinking=False)

    def at(share, seed=0):
        out = tmp_path / f"mixed-{share}-{seed}"
        out.mkdir()
        return domain, general, mix(domain, general, lengths, share, seed, out)

    return at


@pytest.mark.parametrize(
    ("share", "rows", "wanted"), [(0, 90, 0), (0.1, 90, 10), (0.25, 60, 20), (0.5, 7, 7), (0.9, 10, 90), (0.01, 5, 1)]
)
def test_how_many_rows_a_share_of_all_is(share, rows, wanted):
    assert rows_for(share, rows) == wanted


def test_a_larger_draw_holds_a_smaller_one():
    few, more = drawn(range(50), 5, seed=3), drawn(range(50), 20, seed=3)
    assert len(few) == 5 and set(few) < set(more)
    assert drawn((1, 4, 6), 9, seed=3) == [1, 4, 6]


def test_the_share_is_of_the_training_rows(mixed):
    domain, _, found = mixed(0.25)
    rows = found.conversations("train")
    general = [row for row in rows if row.messages[0].content.startswith("sky train")]
    assert len(general) == found.general.rows == len(rows) - 60
    tokens = sum(len(encode(build_tokenizer("plain"), row).ids) for row in general)
    assert tokens == found.general.tokens == found.train.tokens - domain.train.tokens
    assert len(general) == 20
    assert share_of(found) == 0.25
    assert len({row.messages[0].content for row in general}) == len(general)
    scored = [
        sum(len(encode(build_tokenizer("plain"), row).scored_positions) for row in part) for part in (general, rows)
    ]
    shares = [(len(general), len(rows)), (tokens, found.train.tokens), scored]
    told = account(found, 0.25)
    assert [f"{part / whole * 100:.1f} %" in told for part, whole in shares] == [True] * 3
    assert told.startswith("20 general rows mixed in, 25.0 % of the rows")
    assert told.endswith(f"{scored[0] / scored[1] * 100:.1f} % of those that carry loss")


def test_only_training_rows_are_mixed(mixed):
    domain, _, found = mixed(0.25)
    assert found.conversations("held_out") == domain.conversations("held_out")
    assert found.conversations("valid") == domain.conversations("valid")
    assert found.conversations("train")[:60] == domain.conversations("train")
    assert found.fingerprint == fingerprint(found.folder) != domain.fingerprint


def test_a_seed_decides_which_rows_are_drawn(mixed):
    _, _, one = mixed(0.1)
    _, _, other = mixed(0.1, seed=1)
    assert one.conversations("train") != other.conversations("train")


def test_too_few_general_rows_are_all_taken_and_told(mixed):
    _, general, found = mixed(0.9)
    assert found.general.rows == general.train.rows
    assert "90 % of the rows were asked for: there are no more of them" in account(found, 0.9)


def test_general_rows_that_resemble_what_the_domain_is_measured_on_are_left_out(tmp_path):
    domain, general = small_splits(tmp_path / "domain", "mop", 9), small_splits(tmp_path / "general", "sky", 9)
    asked = "Which of the two brushes reaches farther under the low shelves along the northern wall of the hall"
    held_out = [*domain.conversations("held_out"), row_of(f"{asked}?", "The left.")]
    write_conversations(domain.folder / "held_out.jsonl", held_out)
    planted = [
        row_of("MOP  held_out 3", "Other."),
        row_of(f"{asked}, please?", "The right one."),
        row_of("Why?", "So."),
    ]
    write_conversations(general.folder / "train.jsonl", [*general.conversations("train"), *planted])
    tokenizer, out = build_tokenizer("plain"), tmp_path / "mixed"
    out.mkdir()
    found = mix(domain, general, lengths_of(general, tokenizer, thinking=False), 0.9, 0, out)
    mixed_in = [row.messages[0].content for row in found.conversations("train")[domain.train.rows :]]
    assert sorted(mixed_in) == sorted([*(f"sky train {number}?" for number in range(9)), "Why?"])
    assert "2 left out that resemble rows on which the domain is measured" in account(found, 0.9)
