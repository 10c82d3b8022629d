"""Planted faults: each is caught by the clause, the split or the error that is meant for it."""

import copy
import json

import pytest
import yaml

from export.errors import ContractError, DataError
from finetune import cli
from finetune.data import Contract, DataSettings, prepare
from tests.export.chat_tokenizers import build_tokenizer

# Rows that share no five characters in a row beyond chance, so that nothing is near unless it is planted.
NOUNS = ["harbour", "violin", "glacier", "pepper", "lantern", "orchard", "compass", "thunder", "bicycle", "marble"]
VERBS = ["polishes", "follows", "measures", "forgets", "paints", "carries", "mentions", "divides", "borrows", "greets"]


def said(number):
    first, second, third = NOUNS[number % 10], VERBS[number // 10 % 10], NOUNS[(number * 7 + 3) % 10]
    return f"Case {number * 7919 % 1000003}: who {second} the {first} while nobody watches the {third} at noon?"


def rows(count):
    return [{"question": said(n), "answer": told(n)} for n in range(count)]


def told(number):
    verb, noun = VERBS[number * 3 % 10], NOUNS[number * 9 % 10]
    return (
        f"Person {number * 104729 % 999983} {verb} it, says report {number * 31337}, and the {noun} stays where it is."
    )


def prepared(tmp_path, content, *, name="out", tokenizer=None, contract=None, **keys):
    source = tmp_path / f"{name}.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    out = tmp_path / name
    out.mkdir()
    settings = DataSettings(
        path=str(source), template=keys.pop("template", "question_answer"), contract=contract or Contract(), **keys
    )
    return prepare(
        settings,
        tokenizer or build_tokenizer("plain"),
        name="x",
        seed=3,
        thinking=False,
        offline=True,
        out=out,
        say=lambda line: None,
    )


def clause(splits, name):
    (found,) = [clause for clause in splits.report().clauses if clause.name == name]
    return found


def places(splits, words):
    """The splits in which a row's question holds `words`."""
    return {
        split
        for split in ("train", "valid", "held_out")
        for item in splits.conversations(split)
        if words in item.prompt[-1].content
    }


def test_rows_that_are_as_they_should_be_keep_every_clause(tmp_path):
    splits = prepared(tmp_path, rows(90))
    report = splits.report()
    assert {c.name for c in report.clauses} == set(Contract.model_fields)
    assert report.broken == ()
    assert all(c.count == 0 for c in report.clauses if not c.at_least)
    splits.require_contract()


def test_a_copied_row_is_dropped_counted_and_named(tmp_path):
    content = rows(50)
    splits = prepared(tmp_path, [*content, content[7], content[8]], contract=Contract(duplicate_share=0.03))
    assert splits.dropped == {"duplicate": 2}
    found = clause(splits, "duplicate_share")
    assert (found.count, found.n, found.ok) == (2, 52, False)
    assert found.examples[0].endswith("out.jsonl, line 51")
    with pytest.raises(ContractError, match=r"(?s)1 of the contract's 13 .*3\.8% \(2 of 52\); at most 3\.0% allowed"):
        splits.require_contract()


def test_the_same_question_with_another_answer_is_never_in_two_splits(tmp_path):
    content = rows(60)
    content += [{"question": row["question"].upper() + " ", "answer": f"No: {n}"} for n, row in enumerate(content)]
    splits = prepared(tmp_path, content)
    exact = [o for o in splits.report().overlaps if o.kind == "exact"]
    assert [o.rows for o in exact] == [0]
    for number in range(60):
        key = said(number).casefold()
        held = {
            split
            for split in ("train", "valid", "held_out")
            for item in splits.conversations(split)
            if item.prompt[-1].content.strip().casefold() == key
        }
        assert len(held) == 1


def near_copies_of(content):
    """Each row again with one word changed."""
    return [{**row, "question": row["question"].replace("nobody", "everyone")} for row in content]


def test_a_near_copy_is_counted_and_kept_in_the_same_split(tmp_path):
    content = rows(60)
    splits = prepared(tmp_path, [*content, *near_copies_of(content)])
    found = clause(splits, "near_duplicate_share")
    assert (found.count, found.n) == (60, 120)
    assert "nobody" in found.examples[0] and "everyone" in found.examples[0]
    for number in range(60):
        assert len(places(splits, f"Case {number * 7919 % 1000003}:")) == 1
    assert clause(splits, "overlap_near_share").count == 0


def test_near_copies_in_two_splits_break_the_contract(tmp_path):
    content = rows(60)
    splits = prepared(tmp_path, [*content, *near_copies_of(content)], near_copies="counted")
    found = clause(splits, "overlap_near_share")
    assert found.ok is False
    assert found.count > 10
    assert "Set data.near_copies to together" in found.remedy


def test_near_copies_that_are_not_searched_are_said_not_to_be(tmp_path):
    splits = prepared(tmp_path, rows(20), near_copies="ignored")
    assert "not searched" in clause(splits, "near_duplicate_share").what
    assert clause(splits, "near_duplicate_share").ok is None
    assert "not searched" in clause(splits, "overlap_near_share").what
    assert {overlap.kind for overlap in splits.report().overlaps} == {"exact", "ngram"}
    with pytest.raises(ValueError, match=r"contract\.overlap_near_share cannot be judged"):
        prepared(tmp_path, rows(20), near_copies="ignored", contract=Contract(overlap_near_share=0.0), name="asked")


def test_thirteen_shared_words_are_found(tmp_path):
    passage = "the seventh keeper of the north tower wrote down every storm that he heard in winter"
    content = rows(40)
    content += [{"question": f"{said(n)} {passage}?", "answer": f"{n * 7907} of them."} for n in range(100, 140)]
    limited = Contract(overlap_ngram_share=0.0)
    # in more than one row of a hundred it would count as boilerplate: here it stands in half of them
    assert clause(prepared(tmp_path, content), "overlap_ngram_share").ok is None
    few = rows(90) + content[40:48]
    splits = prepared(tmp_path, few, name="few", contract=limited, held_out_share=0.4)
    held = [item for item in splits.conversations("held_out") if passage in item.prompt[-1].content]
    trained = [item for item in splits.conversations("train") if passage in item.prompt[-1].content]
    assert held and trained, "another seed would do"
    assert clause(splits, "overlap_ngram_share").count == len(held)
    assert clause(splits, "overlap_ngram_share").ok is False


def conversation(number, turns):
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": f"{said(number)} Turn {turn} of {number * 7919}."}
        for turn in range(turns)
    ]
    return {"messages": messages}


def test_parts_of_one_conversation_stay_together(tmp_path):
    content = [conversation(number, turns) for number in range(40) for turns in (2, 4, 6)]
    splits = prepared(tmp_path, content, template="chat_messages", near_copies="ignored")
    for number in range(40):
        opening = conversation(number, 1)["messages"][0]["content"]
        held = {
            split
            for split in ("train", "valid", "held_out")
            for item in splits.conversations(split)
            if item.messages[0].content == opening
        }
        assert len(held) == 1


def test_short_parts_of_one_conversation_stay_together_too(tmp_path):
    """Chinese openings are short; each conversation stands there three times, longer each time."""
    parts = []
    for number in range(60):
        turns = [f"第{number * 7919}号机器人的{NOUNS[number % 10]}坏了", f"换第{number * 31}个。"]
        turns += [
            f"还有{number * 13}号呢？",
            f"那个等到{number * 17}日。",
            f"谢谢，{number * 11}。",
            f"不客气，{number * 3}。",
        ]
        for count in (2, 4, 6):
            messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns[:count])]
            parts.append({"messages": messages})
    splits = prepared(tmp_path, parts, template="chat_messages", near_copies="counted")
    held = {
        split: {item.messages[0].content for item in splits.conversations(split)} for split in ("train", "held_out")
    }
    assert not held["train"] & held["held_out"]
    greeting = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    greeted = [{"messages": [*greeting, *row["messages"]]} for row in parts if len(row["messages"]) == 2]
    assert prepared(tmp_path, greeted, template="chat_messages", name="greeted").train.groups > 30


def test_a_question_with_another_mark_at_its_end_and_another_answer_is_the_same_question(tmp_path):
    content = rows(60) + [
        {"question": row["question"].rstrip("?") + "？", "answer": told(n + 500)} for n, row in enumerate(rows(60))
    ]
    splits = prepared(tmp_path, content, near_copies="ignored")
    for number in range(60):
        assert len(places(splits, f"Case {number * 7919 % 1000003}:")) == 1


def test_what_system_messages_are_about_is_part_of_the_question(tmp_path):
    def document(number):
        return " ".join(
            f"{VERBS[(number * 3 + k) % 10]} {NOUNS[(number * 7 + k * k) % 10]} {number * 31 + k}" for k in range(20)
        )

    content = [
        {
            "messages": [
                {"role": "system", "content": document(number)},
                {"role": "user", "content": "Summarise the document in one sentence, please."},
                {"role": "assistant", "content": told(number)},
            ]
        }
        for number in range(40)
    ]
    splits = prepared(tmp_path, content, template="chat_messages")
    assert splits.held_out.rows == 8
    asked = [
        {
            "messages": [
                row["messages"][0],
                {"role": "user", "content": said(n * 4 + k)},
                {"role": "assistant", "content": told(n * 4 + k)},
            ]
        }
        for n, row in enumerate(content[:30])
        for k in range(4)
    ]
    shared = prepared(tmp_path, asked, template="chat_messages", name="asked", near_copies="counted")
    assert clause(shared, "overlap_ngram_share").count > 0.9 * shared.held_out.rows


def test_a_system_message_that_all_rows_share_is_no_overlap(tmp_path):
    """Nor is its end together with the first words of two questions that begin alike."""
    shared = "You are a patient and careful assistant who answers every question about this old house in one sentence."
    content = [{"question": f"Who {VERBS[n % 10]} number {n * 7919}?", "answer": told(n)} for n in range(90)]
    splits = prepared(tmp_path, content, system_prompt=shared)
    assert clause(splits, "overlap_ngram_share").count == 0


def test_a_document_in_many_rows_is_no_boilerplate(tmp_path):
    def document(number):
        return " ".join(
            f"{VERBS[(number * 3 + k) % 10]} {NOUNS[(number * 7 + k * k) % 10]} {number * 31 + k}" for k in range(12)
        )

    content = [
        {"question": f"{document(n)}\n{said(n * 20 + k)}", "answer": told(n * 20 + k)}
        for n in range(20)
        for k in range(20)
    ]
    splits = prepared(tmp_path, content, near_copies="counted")
    assert clause(splits, "overlap_ngram_share").count == splits.held_out.rows


def test_a_dropped_copy_still_binds_the_groups_it_stood_in(tmp_path):
    content = [row | {"document": f"d{n // 3}"} for n, row in enumerate(rows(90))]
    for pair in range(0, 30, 2):
        shared = {"question": f"Shared by {pair * 7919}, is it?", "answer": "It is."}
        content += [shared | {"document": f"d{pair}"}, shared | {"document": f"d{pair + 1}"}]
    splits = prepared(tmp_path, content, group_by="document")
    assert splits.dropped == {"duplicate": 15}
    place = {item.group: split for split in ("train", "valid", "held_out") for item in splits.conversations(split)}
    assert all(place[f"d{pair}"] == place[f"d{pair + 1}"] for pair in range(0, 30, 2))


def test_copies_of_what_is_too_long_are_too_long_and_no_duplicates(tmp_path):
    long = {"question": "Say it all.", "answer": "word " * 400}
    splits = prepared(tmp_path, [*rows(40), *[long] * 5], max_tokens=256)
    assert splits.dropped == {"too_long": 5}


def test_splits_that_share_a_question_break_the_contract(tmp_path, monkeypatch):
    from finetune.data import preparation

    def leaking(groups, **shares):
        return {"train": list(range(30)), "valid": [30, 31], "held_out": [0, 1, *range(32, 40)]}

    monkeypatch.setattr(preparation, "split_groups", leaking)
    found = clause(prepared(tmp_path, rows(40), near_copies="counted"), "overlap_exact_share")
    assert (found.count, found.n, found.ok) == (2, 10, False)


def test_a_turn_end_that_carries_no_loss_breaks_the_contract(tmp_path, monkeypatch):
    from finetune.data import intake

    encode = intake.encode

    def without_end(tokenizer, conversation, *, thinking):
        encoded = encode(tokenizer, conversation, thinking=thinking)
        scored = [s and i != tokenizer.eos_token_id for i, s in zip(encoded.ids, encoded.scored, strict=True)]
        return encoded.model_copy(update={"scored": tuple(scored)})

    monkeypatch.setattr(intake, "encode", without_end)
    found = clause(prepared(tmp_path, rows(20)), "turn_end_share")
    assert (found.count, found.n, found.ok) == (0, 20, False)


def test_masking_reaches_groups_messages_of_broken_rows_and_json(tmp_path):
    content = [row | {"person": f"jane{n}@example.org"} for n, row in enumerate(rows(20))]
    content[3]["answer"] = '{"phone":13800138000,"name":"x"}'
    content[4]["answer"] = ["jane.doe@example.org"]
    settings = {"group_by": "person", "mask_personal": True}
    splits = prepared(tmp_path, content, contract=Contract(broken_share=0.1, personal_share=0.0), **settings)
    written = "".join(path.read_text(encoding="utf-8") for path in splits.folder.iterdir())
    assert "@example.org" not in written
    assert "13800138000" not in written
    (masked,) = [
        item.answer for s in ("train", "valid", "held_out") for item in splits.conversations(s) if "name" in item.answer
    ]
    assert json.loads(masked) == {"phone": "[phone]", "name": "x"}
    splits.require_contract()
    assert {count.kind for count in splits.report().personal} == {"phone"}


def test_answers_that_the_length_limit_would_cut_are_dropped_whole_and_counted(tmp_path):
    content = rows(40) + [{"question": said(900 + n), "answer": "word " * 400} for n in range(4)]
    splits = prepared(tmp_path, content, max_tokens=256)
    found = clause(splits, "too_long_share")
    assert (found.count, found.n, found.ok) == (4, 44, False)
    assert "Raise data.max_tokens" in found.remedy
    limits = {limit.max_tokens: limit.rows for limit in splits.report().lengths}
    assert limits[256] == 4
    assert limits[2048] == 0


def test_a_template_that_drops_the_turn_end_is_refused(tmp_path):
    tokenizer = copy.deepcopy(build_tokenizer("plain"))
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    with pytest.raises(DataError, match="is not followed by the turn-end token"):
        prepared(tmp_path, rows(5), tokenizer=tokenizer)


def test_turns_that_repeat_are_counted(tmp_path):
    content = [conversation(number, 4) for number in range(20)]
    for row in content[:3]:
        row["messages"][2]["content"] = row["messages"][0]["content"]
    splits = prepared(tmp_path, content, template="chat_messages")
    found = clause(splits, "repeated_turn_share")
    assert (found.count, found.n, found.ok) == (3, 20, False)


def test_personal_data_is_counted_partly_hidden_and_can_be_masked(tmp_path):
    content = rows(20)
    content[4]["answer"] += " Write to jane.doe@example.org."
    splits = prepared(tmp_path, content, contract=Contract(personal_share=0.0))
    assert clause(splits, "personal_share").ok is False
    (count,) = splits.report().personal
    assert (count.kind, count.rows, count.findings) == ("email", 1, 1)
    assert "jane.doe" not in count.examples[0]
    masked = prepared(tmp_path, content, name="masked", mask_personal=True)
    text = "".join((masked.folder / f"{split}.jsonl").read_text() for split in ("train", "valid", "held_out"))
    assert "jane.doe@example.org" not in text
    assert masked.report().masked


def test_broken_rows_are_told_of_together_or_dropped_where_that_is_allowed(tmp_path):
    content = rows(30)
    for number in (3, 9):
        del content[number]["answer"]
    with pytest.raises(DataError, match=r"(?s)2 of the 30 rows.*line 4: .*'answer'.*line 10: .*broken_share"):
        prepared(tmp_path, content)
    splits = prepared(tmp_path, content, name="allowed", contract=Contract(broken_share=0.1))
    assert splits.dropped == {"broken": 2}
    assert clause(splits, "broken_share").ok is True
    assert "line 4" in clause(splits, "broken_share").examples[0]


@pytest.mark.parametrize("template", ["question_answer", "auto"])
@pytest.mark.parametrize(
    ("ending", "first", "line"),
    [
        ("csv", "question,answer", '{question},"{answer}"'),
        ("jsonl", "", '{{"question":"{question}","answer":"{answer}"}}'),
    ],
)
def test_a_line_that_cannot_be_read_is_a_broken_row_like_any_other(tmp_path, ending, first, line, template):
    content = [line.format(**row) for row in rows(30)]
    content[3], content[9] = "1", "[1]"  # one field of two; no object
    path = tmp_path / f"rows.{ending}"
    path.write_text("\n".join([first, *content]) + "\n", encoding="utf-8")

    def kept(contract):
        out = tmp_path / f"out-{contract.broken_share}"
        out.mkdir()
        settings = DataSettings(path=str(path), template=template, contract=contract)
        keys = {"name": "x", "seed": 3, "thinking": False, "offline": True, "out": out}
        return prepare(settings, build_tokenizer("plain"), say=lambda line: None, **keys)

    with pytest.raises(DataError, match=r"(?s)2 of the 30 rows.*line 5: found.*line 11: found.*broken_share"):
        kept(Contract())
    splits = kept(Contract(broken_share=0.1))
    assert (splits.read, splits.kept, splits.dropped) == (30, 28, {"broken": 2})
    assert "line 5: found" in clause(splits, "broken_share").examples[0]


def test_a_token_budget_draws_rows_until_it_is_spent(tmp_path):
    whole = prepared(tmp_path, rows(200))
    less = prepared(tmp_path, rows(200), name="less", max_train_tokens=3000)
    least = prepared(tmp_path, rows(200), name="least", max_train_tokens=1000)
    assert less.held_out == whole.held_out
    assert 2800 < less.train.tokens <= 3000
    assert less.not_drawn == whole.train.rows - less.train.rows > 0
    assert set(least.conversations("train")) < set(less.conversations("train")) < set(whole.conversations("train"))
    assert prepared(tmp_path, rows(200), name="one", max_train_tokens=1).train.rows == 1


def test_a_broken_contract_stops_the_run_with_status_1_and_leaves_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = rows(40)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content + content[:30]))
    recipe = {"name": "x", "data": {"path": "rows.jsonl", "template": "question_answer"}, "train": {}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["run", "recipe.yaml", "--set", "model.name=starter"]) == 1
    said_to_user = capsys.readouterr().err
    assert "the rows break 1 of the contract's 13 clauses; nothing is trained on them" in said_to_user
    assert "42.9% (30 of 70); at most 30.0% allowed" in said_to_user
    assert (tmp_path / "runs/x/data/report.html").is_file()
    assert not (tmp_path / "runs/x/adapter").exists()
    raised = ["run", "recipe.yaml", "--set", "model.name=starter", "--set", "data.contract.duplicate_share=0.5"]
    assert cli.main([*raised, "--until", "data"]) == 0
