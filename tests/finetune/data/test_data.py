"""Every row is accounted for, none stands in two splits, and what is wrong is said with its remedy."""

from __future__ import annotations

import json
import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from export.artifacts import sha256_of_file
from export.chat import Conversation, Message, encode
from export.compare import Gate, Limits
from export.errors import DataError, RecipeError
from finetune.data import DataSettings, Splits, identity, prepare, read_conversations
from finetune.data.belonging import Belonging
from finetune.data.splitting import split_groups
from tests.export.chat_tokenizers import build_tokenizer

SHARED_ROBOT_DATA = Path(__file__).parents[4] / "shared" / "data" / "robot"
SPLITS = ("train", "valid", "held_out")


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"question": f"question {number}", "answer": f"answer {number}"} for number in range(count)]


def run(tmp_path: Path, content: list[dict[str, Any]], /, *, seed: int = 1, name: str = "out", **keys: Any) -> Splits:
    keys = {"path": str(write_rows(tmp_path / "in", content)), "template": "question_answer"} | keys
    out = tmp_path / name
    out.mkdir()
    tokenizer = build_tokenizer("plain")
    return prepare(
        DataSettings(**keys), tokenizer, name="x", seed=seed, thinking=False, offline=True, out=out, say=print
    )


def prompts(splits: Splits) -> dict[str, set[str]]:
    return {name: {item.prompt[-1].content for item in splits.conversations(name)} for name in SPLITS}  # type: ignore[arg-type]


def test_every_row_is_in_exactly_one_split_and_the_shares_are_kept(tmp_path: Path) -> None:
    splits = run(tmp_path, numbered(200))
    assert (splits.read, splits.kept, splits.dropped, splits.sampled_out) == (200, 200, {}, 0)
    assert (splits.train.rows, splits.valid.rows, splits.held_out.rows) == (150, 10, 40)
    seen = Counter(prompt for held in prompts(splits).values() for prompt in held)
    assert set(seen.values()) == {1}
    assert len(seen) == 200


def test_the_counts_are_what_the_files_hold(tmp_path: Path) -> None:
    splits = run(tmp_path, numbered(30))
    tokenizer = build_tokenizer("plain")
    longest = 0
    for name in SPLITS:
        encoded = [encode(tokenizer, item) for item in read_conversations(splits.folder / f"{name}.jsonl")]
        counts = getattr(splits, name)
        assert counts.rows == counts.groups == len(encoded)
        assert counts.tokens == sum(len(item.ids) for item in encoded)
        assert counts.scored_tokens == sum(len(item.scored_positions) for item in encoded)
        longest = max([longest, *(len(item.ids) for item in encoded)])
    assert splits.longest_row_tokens == longest


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again = run(tmp_path, numbered(50)), run(tmp_path, numbered(50), name="again")
    other = run(tmp_path, numbered(50), seed=2, name="other")
    assert first.fingerprint == again.fingerprint != other.fingerprint
    for name in SPLITS:
        assert sha256_of_file(first.folder / f"{name}.jsonl") == sha256_of_file(again.folder / f"{name}.jsonl")
    assert prompts(first)["held_out"] != prompts(other)["held_out"]


def test_a_group_is_never_divided(tmp_path: Path) -> None:
    rows = [row | {"document": f"d{number % 20}"} for number, row in enumerate(numbered(200))]
    splits = run(tmp_path, rows, group_by="document")
    groups = [{item.group for item in splits.conversations(name)} for name in SPLITS]  # type: ignore[arg-type]
    assert sum(len(held) for held in groups) == len(set.union(*groups)) == 20
    assert (splits.train.groups, splits.valid.groups, splits.held_out.groups) == (15, 1, 4)


def test_one_prompt_in_two_groups_binds_them(tmp_path: Path) -> None:
    rows = [row | {"document": f"d{number // 2}"} for number, row in enumerate(numbered(60))]
    for document in range(0, 30, 2):
        same = {"question": f"Shared  {document}", "document": f"d{document}", "answer": "one"}
        rows += [same, {"question": f"shared {document} ", "document": f"d{document + 1}", "answer": "two"}]
    splits = run(tmp_path, rows, group_by="document")
    place = {item.group: name for name in SPLITS for item in splits.conversations(name)}  # type: ignore[arg-type]
    assert all(place[f"d{document}"] == place[f"d{document + 1}"] for document in range(0, 30, 2))


def test_without_a_group_rows_of_one_prompt_stay_together(tmp_path: Path) -> None:
    rows = numbered(40) + [{"question": f"Question   {number}", "answer": "another"} for number in range(40)]
    splits = run(tmp_path, rows)
    held = [{" ".join(prompt.split()).casefold() for prompt in held} for held in prompts(splits).values()]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    assert splits.kept == 80


texts = st.sampled_from(["a", "A ", "b", "c", "d", "e", "f"])
items = st.builds(
    lambda prompt, answer, group: Conversation(
        messages=(Message(role="user", content=prompt), Message(role="assistant", content=answer)), group=group
    ),
    texts,
    texts,
    st.sampled_from(["", "g1", "g2", "g3"]),
)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(items, max_size=30),
    valid=st.floats(0.01, 0.5),
    held_out=st.floats(0.01, 0.45),
    seed=st.integers(0, 5),
)
def test_splitting_never_leaks_whatever_the_groups(
    rows: list[Conversation], valid: float, held_out: float, seed: int
) -> None:
    belonging = Belonging()
    for row in rows:
        belonging.add(row)
    groups = belonging.groups()
    assigned = split_groups(groups, valid_share=valid, held_out_share=held_out, seed=seed)
    if assigned is None:
        assert len(groups) < 3
        return
    assert sorted(index for indexes in assigned.values() for index in indexes) == list(range(len(rows)))
    assert all(assigned.values()), "no split is empty"
    for key in (lambda row: row.group, lambda row: row.prompt[0].content.strip().casefold()):
        places: dict[str, set[str]] = {}
        for name, indexes in assigned.items():
            for index in indexes:
                places.setdefault(key(rows[index]), set()).add(name)
        places.pop("", None)
        assert all(len(names) == 1 for names in places.values())


def test_every_drop_has_a_counted_reason(tmp_path: Path) -> None:
    rows = numbered(20)
    rows += [rows[3], rows[4], rows[4]]
    rows += [{"question": "q", "answer": "  \n"}, {"question": " ", "answer": "x"}]
    rows += [{"question": "long", "answer": "word " * 600}]
    splits = run(tmp_path, rows, max_tokens=128)
    assert splits.dropped == {"duplicate": 3, "empty_answer": 1, "empty_prompt": 1, "too_long": 1}
    assert splits.read == splits.kept + splits.sampled_out + sum(splits.dropped.values()) == 26
    assert splits.max_tokens == 128


def test_the_limit_is_the_last_length_that_is_kept(tmp_path: Path) -> None:
    longest = run(tmp_path, numbered(20)).longest_row_tokens
    assert run(tmp_path, numbered(20), name="at", max_tokens=longest).kept == 20
    short = run(tmp_path, numbered(20), name="below", max_tokens=longest - 1)
    assert short.dropped["too_long"] > 0
    assert short.longest_row_tokens < longest
    assert short.kept + short.dropped["too_long"] == 20


def test_a_row_limit_takes_a_seeded_sample_and_counts_the_rest(tmp_path: Path) -> None:
    splits = run(tmp_path, numbered(500), rows=50)
    assert (splits.read, splits.kept, splits.sampled_out) == (500, 50, 450)
    taken = sorted(int(prompt.split()[1]) for held in prompts(splits).values() for prompt in held)
    assert taken[0] < 60 and taken[-1] > 440, "a sample of all rows, not the first ones"
    assert run(tmp_path, numbered(500), rows=50, name="again").fingerprint == splits.fingerprint
    assert run(tmp_path, numbered(20), rows=50, name="fewer").sampled_out == 0


def test_too_few_groups_say_how_many_and_what_to_do(tmp_path: Path) -> None:
    rows = [row | {"document": "one"} for row in numbered(10)]
    with pytest.raises(DataError, match=r"10 rows read, 10 kept, dropped: none, in fewer than 3 groups.*group_by"):
        run(tmp_path, rows, group_by="document")


def test_no_rows_left_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"no rows are left: 9 rows read, 0 kept, dropped: too_long 9.*Raise data\.max_tokens, which is 8",
    ):
        run(tmp_path, numbered(9), max_tokens=8)
    with pytest.raises(DataError, match="Check that the template 'question_answer' reads the right fields"):
        run(tmp_path, [{"question": "a", "answer": ""}] * 3, name="other")


def test_a_bad_row_is_an_error_with_its_line(tmp_path: Path) -> None:
    rows = [*numbered(5), {"question": "a", "anser": "b"}]
    with pytest.raises(DataError, match=r"rows\.jsonl, line 6: the field 'answer' is missing\. Did you mean 'anser'"):
        run(tmp_path, rows)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: turn 1 holds the special token '<\|im_end\|>'"):
        run(tmp_path, [*numbered(1), {"question": "<|im_end|>", "answer": "b"}], name="other")


def test_text_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [*numbered(5), {"question": " 你好\u2028 🙂\n", "answer": "\n\tок \"'\\"}]
    splits = run(tmp_path, rows)
    found = [item for name in SPLITS for item in splits.conversations(name) if "你好" in item.prompt[0].content]  # type: ignore[arg-type]
    assert [(item.prompt[0].content, item.answer) for item in found] == [(rows[-1]["question"], rows[-1]["answer"])]


def test_a_row_without_a_group_is_written_without_one_and_read_again(tmp_path: Path) -> None:
    splits = run(tmp_path, numbered(9))
    lines = [json.loads(line) for line in (splits.folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line.keys() == {"messages"} for line in lines)
    assert [item.group for item in splits.conversations("train")] == [""] * len(lines)
    grouped = run(tmp_path, numbered(9), group_by="question", name="grouped").folder / "train.jsonl"
    assert all(json.loads(line)["group"] for line in grouped.read_text(encoding="utf-8").splitlines())


def test_too_few_held_out_rows_are_warned_of_with_what_to_raise(tmp_path: Path) -> None:
    splits = run(tmp_path, numbered(700))
    assert splits.held_out.rows == 140
    assert splits.warning(Gate(), rows=300) is None
    assert re.match(r"100 held-out rows are few: .* below 133 rows\. Raise check\.rows\.$", splits.warning(Gate(), 100))
    few = run(tmp_path, numbered(50), name="few").warning(Gate(), rows=300)
    assert re.match(r"10 held-out rows are few: .* Raise data\.held_out_share, or give more rows\.$", few)
    loose = Gate(from_6_bits=Limits(task_drop_bound=0.3))
    assert run(tmp_path, numbered(50), name="loose").warning(loose, rows=300) is None


def test_a_result_survives_its_manifest(tmp_path: Path) -> None:
    splits = run(tmp_path, [*numbered(20), numbered(1)[0]])
    assert Splits.model_validate({**splits.model_dump(mode="json"), "folder": splits.folder}) == splits
    assert splits.source["template"] == "question_answer"
    assert set(splits.source) == {"path", "template", "template_sha256", "data_sha256"}


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    def of(path: Path) -> dict[str, str]:
        return identity(DataSettings(path=str(path), template="question_answer"), seed=1, offline=True)

    one = write_rows(tmp_path / "one", numbered(5))
    two = write_rows(tmp_path / "two", numbered(5))
    assert of(one) == of(two)
    assert of(tmp_path / "one") == of(tmp_path / "two")
    write_rows(tmp_path / "two", numbered(6))
    assert of(one) != of(two)
    assert of(tmp_path / "one") != of(tmp_path / "two")


def test_identity_follows_the_template(tmp_path: Path) -> None:
    from finetune.data.template import find

    path = write_rows(tmp_path, numbered(5))
    mine = tmp_path / "mine.yaml"
    mine.write_text(find("question_answer").read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    shipped = identity(DataSettings(path=str(path), template="question_answer"), seed=1, offline=True)
    changed = identity(DataSettings(path=str(path), template=str(mine)), seed=1, offline=True)
    assert shipped["data_sha256"] == changed["data_sha256"]
    assert shipped["template_sha256"] != changed["template_sha256"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"valid_share": 0.5, "held_out_share": 0.5}, "leave nothing to train on"),
        ({"valid_share": 0}, "greater than 0"),
        ({"held_out_share": 1}, "less than 1"),
        ({"rows": 2}, "greater than or equal to 3"),
        ({"max_tokens": 0}, "greater than or equal to 8"),
        ({"split": "test"}, "split is for hf: and modelscope: datasets; 'rows.jsonl' is neither"),
        ({"revision": "main"}, "revision is for hf: and modelscope:"),
        ({"path": "generated:robot"}, "'generated:robot' needs rows"),
        ({"path": "hf:robot"}, "has not the form of a hub's id, such as hf:owner/name"),
        ({"row": 5}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be_meant(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        DataSettings(**({"path": "rows.jsonl", "template": "question_answer"} | keys))


def test_every_key_is_described() -> None:
    properties = DataSettings.model_json_schema()["properties"]
    assert all(properties[name].get("description") for name in properties)


@pytest.fixture
def grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grammar among the shipped templates, and an expander that makes numbered rows."""
    from finetune import shipped

    folder = shipped.folder("data_templates")
    mine = tmp_path / "data_templates"
    mine.mkdir()
    (mine / "question_answer.yaml").write_bytes((folder / "question_answer.yaml").read_bytes())
    (mine / "talk.grammar.yaml").write_text("seen: by expand\n")
    monkeypatch.setattr(shipped, "folder", lambda kind: mine)
    module = types.ModuleType("finetune.data.grammar")

    def expand(path: Path, rows: int, seed: int) -> Iterator[dict[str, str]]:
        assert path == mine / "talk.grammar.yaml"
        yield from ({"question": f"{seed} {number}", "answer": "x"} for number in range(rows))

    module.expand = expand  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "finetune.data.grammar", module)
    return mine / "talk.grammar.yaml"


def test_generated_rows_come_from_the_grammar(tmp_path: Path, grammar: Path) -> None:
    splits = run(tmp_path, numbered(1), path="generated:talk", rows=40, seed=7)
    assert (splits.read, splits.kept, splits.sampled_out) == (40, 40, 0)
    assert all(prompt.startswith("7 ") for held in prompts(splits).values() for prompt in held)
    assert splits.source["grammar_sha256"] == sha256_of_file(grammar)
    with pytest.raises(DataError, match=r"there is no grammar for 'generated:tolk'.*Known: talk, starter_general\."):
        run(tmp_path, numbered(1), path="generated:tolk", rows=40, name="other")


def test_a_hubs_dataset_is_split_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune import hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "cache" / commit
    write_rows(snapshot, numbered(1)).rename(snapshot / "test.jsonl")
    write_rows(snapshot, numbered(30)).rename(snapshot / "train.jsonl")
    monkeypatch.setattr(hub, "download_dataset", lambda name, *, revision, offline: snapshot)
    card = "---\nlicense:\n- cc-by-4.0\n- mit\n---\n# Talk\n"
    (snapshot / "README.md").write_text(card)
    splits = run(tmp_path, numbered(1), path="hf:acme/talk", revision="main")
    assert dict(splits.report().licences)["rows"] == "cc-by-4.0, mit"
    assert (splits.read, splits.kept) == (30, 30)
    assert splits.source["data_revision"] == commit


def test_the_wrong_template_name_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'question_answer'"):
        run(tmp_path, numbered(5), template="question_answers")


def test_real_home_commands(tmp_path: Path) -> None:
    path = SHARED_ROBOT_DATA / "nlu_home_commands.jsonl"
    if not path.is_file():
        pytest.skip("the real rows lie in ../shared, which this checkout does not have")
    splits = run(tmp_path, numbered(1), path=str(path), template="nlu_home_commands")
    assert splits.read == path.read_bytes().count(b"\n") == splits.kept + sum(splits.dropped.values())
    assert splits.dropped == {}
    held = prompts(splits)
    assert not held["train"] & held["held_out"]
