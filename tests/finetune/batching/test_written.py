"""What is written of a row and its answer, and how rows ask."""

import csv
import json
from pathlib import Path

import pytest

from finetune import partner
from finetune.batching import BatchSettings, work
from finetune.batching.answers import Writer
from finetune.data.sources import Row
from tests.export.tiny_models import build
from tests.finetune.batching.speaking import ASK, TABLE, Engine, read_answers, write_rows


def _writer(**settings):
    made = BatchSettings(model="m", rows="in.jsonl", out=Path.cwd() / "out.jsonl", parse_json=True, **settings)
    return Writer(made, ("text",), lambda value: isinstance(value, dict))


@pytest.mark.parametrize(
    ("text", "value", "counts"),
    [
        ('{"a": [1, 2.5]}', {"a": [1, 2.5]}, (0, 0)),
        ('```json\n{"a": 1}\n```', {"a": 1}, (0, 1)),
        ('<think>{"b": 2}</think>\n\n{"a": 1}', {"a": 1}, (0, 0)),
        ("[1]", [1], (1, 0)),
        ("no JSON", "no JSON", (1, 0)),
        ('{"a": 1e999}', '{"a": 1e999}', (1, 0)),
        ('{"a": 1, "a": 2}', '{"a": 1, "a": 2}', (1, 0)),
        ("", "", (1, 0)),
    ],
)
def test_answers_in_json_become_values_and_the_others_are_counted(text, value, counts):
    written = _writer().answered({"text": "x"}, partner.Said(text, "", stopped=True))
    line = json.loads(written.data)
    assert line == {"text": "x", "answer": value, "stopped": True, "valid": counts[0] == 0}
    assert (written.tally.invalid, written.tally.fenced) == counts


def test_a_schema_and_the_share_of_invalid_answers(speak, capsys):
    texts = ['{"A": 1}', '{"A": "X"}', "no"]
    write_rows(*texts, "")
    schema = {"type": "object", "properties": {"A": {"type": "number"}}, "required": ["A"]}
    Path("schema.json").write_text(json.dumps(schema))
    speak(*ASK, "--json", "--schema", "schema.json", status=1)
    rows = read_answers()
    assert [row.get("answer") for row in rows] == [{"A": 1}, {"A": "X"}, "NO", None]
    assert [row.get("valid") for row in rows] == [True, False, False, None]
    assert "; 2 of 3 answers invalid (66.7%): out.jsonl" in capsys.readouterr().out


def test_a_table_is_read_back_as_it_was(speak):
    rows = [{"text": 'a "b",\nc', "more": [1, {"x": "好"}]}, {"text": "d", "other": None, "flag": True}, {"text": ""}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    speak(*TABLE, status=1)
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        first, second, third = csv.DictReader(file)
    assert list(first) == ["text", "more", "other", "flag", "answer", "stopped", "error"]
    assert (first["text"], first["answer"], first["stopped"]) == (rows[0]["text"], rows[0]["text"].upper(), "true")
    assert json.loads(first["more"]) == rows[0]["more"]
    assert (second["other"], second["flag"], second["error"]) == ("", "true", "")
    assert "the prompt is empty" in third["error"] and third["answer"] == ""


def test_values_that_json_has_not_are_written_as_it_can(speak):
    from datetime import date

    line = (
        _writer().refused({"n": float("nan"), "d": date(2024, 5, 1), "b": b"x", "s": "\ud83d", "t": (1,)}, "why").data
    )
    expected = {"n": None, "d": "2024-05-01", "b": "x", "s": "\ud83d", "t": [1], "error": "why"}
    assert json.loads(line) == expected


def test_a_file_is_answered_a_second_time_under_another_name(speak, capsys):
    write_rows("a", "b")
    speak(*ASK)
    again = ("--in", "out.jsonl", "--out", "two.jsonl", "--prompt", "{answer}!")
    speak(*again, status=2)
    assert "the rows have a field 'answer' already" in capsys.readouterr().err
    speak(*again, "--field", "second")
    expected = {"id": 0, "text": "a", "answer": "A", "stopped": True, "second": "A!", "second_stopped": True}
    assert read_answers("two.jsonl")[0] == expected


def test_rows_are_read_as_they_are_answered(speak, monkeypatch):
    """No more rows are in memory than are answered side by side, however many there are."""
    engine, ahead = Engine(4), []
    count = 500

    def read(path):
        for number in range(count):
            ahead.append(number - engine.answered)
            yield Row({"text": "a"}, f"row {number}")

    write_rows("a")
    monkeypatch.setattr(work, "read_rows", read)
    speak(*ASK, engine=engine)
    assert len(read_answers()) == count
    assert max(ahead[count:]) < 4


def _in_a_run(folder, data):
    (folder / "data").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps({"name": "x", "data": {"path": "x.jsonl", **data}}))
    (folder / "data" / "report.json").write_text(json.dumps({"template": "question_answer"}))
    messages = [{"role": "system", "content": "Trained."}, {"role": "user", "content": "a"}]
    row = {"messages": [*messages, {"role": "assistant", "content": "b"}]}
    (folder / "data" / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder / "merged"


@pytest.mark.parametrize(
    ("data", "more", "expected"),
    [
        ({"template": "auto"}, (), "Q"),
        ({"template": "question_answer", "system_prompt": "Run."}, (), "RUN./Q"),
        ({"template": "auto", "system_prompt": "Run."}, ("--system", ""), "Q"),
        ({"template": {"prompt": "<{text}>", "answer": "{no}", "system": "s"}}, (), "S/<T>"),
        ({"template": "auto"}, ("--prompt", "{text}?"), "TRAINED./T?"),
        ({"template": "auto"}, ("--prompt", "{text}?", "--system", "g"), "G/T?"),
        ({"template": "auto"}, ("--template", "instruction"), "I"),
        ({"template": {"prompt": "<{text}>", "answer": "{no}"}}, ("--template", "auto"), "I"),
    ],
)
def test_rows_ask_as_they_did_in_the_models_run(speak, tmp_path, data, more, expected):
    path = _in_a_run(tmp_path / "run", data)
    build(path, "qwen3", tied=True, hidden_size=64)
    fields = {"text": "t", "instruction": "i"} | ({} if "auto" in more else {"question": "q"})
    Path("in.jsonl").write_text(json.dumps(fields) + "\n")
    speak("--in", "in.jsonl", "--out", "out.jsonl", *more, path=path)
    assert read_answers()[0]["answer"] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--in", "in.jsonl", "--out", "out.txt"), "found .txt; expected .jsonl or .csv"),
        (("--in", "in.jsonl", "--out", "in.jsonl"), "is, or lies in, what --in reads"),
        (("--in", "in.jsonl", "--out", "none/out.csv"), "there is no folder none"),
        (("--in", "no.jsonl", "--out", "out.csv"), "there is no file or folder no.jsonl"),
        (("--in", "empty.jsonl", "--out", "out.csv"), "empty.jsonl holds no rows"),
        (("--in", "in.jsonl", "--out", "out.csv"), "--prompt '{review}'"),
        (("--in", "in.jsonl", "--out", "out.csv", "--template", "cleaning_robt"), "Did you mean 'cleaning_robot'?"),
        (("--in", "in.jsonl", "--out", "out.csv", "--template", "question_answer"), "none of the first 1 rows can be"),
        ((*ASK, "--schema", "s.json"), "without --json"),
        ((*ASK, "--json", "--schema", "s.json"), "--schema: s.json cannot be read"),
        ((*ASK, "--field", " "), "--field is empty"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_opened(speak, capsys, arguments, expected):
    write_rows("a")
    Path("empty.jsonl").touch()
    engine = speak(*arguments, status=2)
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said
    assert not engine.closed and not Path("out.csv").exists()
