"""A batch: every row once and in order, whatever happens to the process; answers that are those of one by one."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.engines import Generation
from export.formats import ExportRows
from export.formats.gguf import Gguf
from finetune import chatting, cli
from finetune.base_model import ModelSettings, open_base
from finetune.batching import BatchSettings, answer_file, output, work
from finetune.batching.answers import Writer
from finetune.batching.progress import _clock, shown_speed
from finetune.data.sources import Row
from tests.export.tiny_models import build


class _Engine:
    """Answers a prompt, which here is text, with its capitals; `interrupt_at` presses Ctrl-C before that answer."""

    def __init__(self, prompts_at_once=3, interrupt_at=None):
        self.prompts_at_once = prompts_at_once
        self.interrupt_at = interrupt_at
        self.answered = 0
        self.closed = False

    def generate(self, prompts, max_new_tokens):
        assert 0 < len(prompts) <= self.prompts_at_once
        made = []
        for prompt in prompts:
            if self.answered == self.interrupt_at:
                raise KeyboardInterrupt
            self.answered += 1
            ids = tuple(map(ord, prompt.upper()))
            made.append(Generation(ids=ids[:max_new_tokens], stopped=len(ids) <= max_new_tokens, seconds=0.0))
        return made

    def close(self):
        self.closed = True


@pytest.fixture
def speak(model, tmp_path, monkeypatch):
    """Runs the command on the tiny model's folder, with the engine that is given in place of a real one."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, engine=None, status=0, path=model):
        engine = engine or _Engine()
        decode = lambda ids: "".join(map(chr, ids))  # noqa: E731
        encode = lambda messages: "/".join(message.content for message in messages)  # noqa: E731
        monkeypatch.setattr(work, "open_partner", lambda path: chatting.Partner(engine, encode, decode, 400))
        assert cli.main(["batch", str(path), *map(str, arguments)]) == status
        return engine

    return run


def _rows(*texts):
    Path("in.jsonl").write_text("".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts)))


def _read(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


ASK = ("--in", "in.jsonl", "--out", "out.jsonl", "--prompt", "{text}")
TABLE = ("--in", "in.jsonl", "--out", "out.csv", "--prompt", "{text}")


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 32])
def test_every_row_is_there_once_in_order_those_in_error_too(speak, capsys, at_once):
    texts = ["a", "", "b", None, "c" * 150, "d", "e"]
    _rows(*texts)
    engine = speak(*ASK, "--max-new-tokens", "100", engine=_Engine(at_once), status=1)
    rows = _read()
    assert [row["id"] for row in rows] == list(range(7))
    assert [row.get("answer") for row in rows] == ["A", None, "B", None, "C" * 100, "D", "E"]
    assert [row.get("stopped") for row in rows] == [True, None, True, None, False, True, True]
    assert "line 2: the prompt is empty" in rows[1]["error"]
    assert "the field 'text' is null" in rows[3]["error"]
    assert engine.closed
    said = capsys.readouterr()
    assert said.out.startswith("7 rows at ")
    assert said.out.endswith("; 2 in error; 1 cut at 100 tokens: out.jsonl\n")
    assert "rows/s" in said.err and " left" in said.err


def test_a_row_that_is_too_long_for_the_context_is_an_error_and_no_more(speak):
    _rows("a" * 301, "b" * 300)
    speak(*ASK, "--max-new-tokens", "100", status=1)
    too_long, fits = _read()
    assert "has 301 tokens; expected at most 300, which leaves room for 100" in too_long["error"]
    assert fits["answer"] == "B" * 100


def test_a_file_of_which_every_row_is_answered_ends_with_status_0(speak, capsys):
    _rows("a", "b")
    speak(*ASK)
    assert "error" not in capsys.readouterr().out
    assert _read()[1] == {"id": 1, "text": "b", "answer": "B", "stopped": True}


# --- going on


@pytest.mark.parametrize("ask", [ASK, TABLE], ids=["jsonl", "csv"])
def test_killed_at_any_byte_it_goes_on_to_the_same_file(speak, monkeypatch, ask):
    """Every state of the file that a process can leave, half lines and half characters too, becomes the whole."""
    _rows("a\nb", "", 'say "好"', "d")
    out, records = Path(ask[3]), []
    monkeypatch.setattr(output, "_SECONDS_BETWEEN_RECORDS", -1.0)
    monkeypatch.setattr(output.os, "fsync", lambda descriptor: None)
    write = output.write_atomically
    monkeypatch.setattr(output, "write_atomically", lambda path, text: (write(path, text), records.append(text)))
    speak(*ask, status=1)
    whole, steps = out.read_bytes(), records.copy()
    sizes = [json.loads(text)["size_bytes"] for text in steps] + [len(whole)]
    assert sorted(set(sizes)) == sizes[:1] + sorted(set(sizes))[1:] and len(set(sizes)) >= 5
    tried = 0
    for text, begin, end in zip(steps, sizes, sizes[1:], strict=False):
        for size in range(begin, end + 1):
            out.write_bytes(whole[:size])
            output.progress_path(out).write_text(text, encoding="utf-8")
            speak(*ask, status=1)
            assert out.read_bytes() == whole, size
            tried += 1
    assert tried > len(whole)


def test_what_a_machine_that_lost_power_left_behind_the_record_is_cut_off(speak):
    _rows("a", "b", "c")
    speak(*ASK)
    out, record = Path("out.jsonl"), output.progress_path(Path("out.jsonl"))
    whole, done = out.read_bytes(), record.read_text()
    out.write_bytes(whole + b"\0" * 500)
    speak(*ASK)
    assert out.read_bytes() == whole
    assert record.read_text() == done


def test_killed_without_warning_it_goes_on(tiny_qwen, tmp_path, monkeypatch):

    monkeypatch.chdir(tmp_path)
    file = Gguf(types=()).quantize("gguf-f16", tiny_qwen, ExportRows(), tmp_path, lambda name: pytest.fail(name)).path
    _rows(*(f"row {number}" for number in range(3000)))
    command = [sys.executable, "-m", "finetune", "batch", str(file), *ASK, "--max-new-tokens", "6"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ, cwd=tmp_path)
    record = output.progress_path(Path("out.jsonl"))
    try:
        while process.poll() is None and not (record.is_file() and json.loads(record.read_text())["tally"]["rows"]):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    left = Path("out.jsonl").read_bytes().count(b"\n")
    assert 0 < left < 3000
    limit = left + 20
    arguments = ["batch", str(file), *ASK, "--max-new-tokens", "6", "--limit", str(limit)]
    assert cli.main(arguments) == 0
    rows = _read()
    assert [row["id"] for row in rows] == list(range(limit))
    arguments[3 + arguments.index("--in")] = "fresh.jsonl"
    assert cli.main(arguments) == 0
    assert Path("fresh.jsonl").read_bytes() == Path("out.jsonl").read_bytes()


def test_control_c_keeps_the_answers_and_the_same_command_goes_on(speak, capsys):
    _rows(*"abcdef")
    engine = speak(*ASK, engine=_Engine(1, interrupt_at=4), status=cli.EXIT_INTERRUPTED)
    assert engine.closed
    assert "run the same command again to go on from there" in capsys.readouterr().err
    assert len(_read()) == 4
    assert speak(*ASK).answered == 2
    assert "going on: out.jsonl holds 4 of 6 rows" in capsys.readouterr().err
    assert [row["answer"] for row in _read()] == list("ABCDEF")


def test_a_batch_that_is_done_opens_no_model(speak, model, capsys, monkeypatch):
    _rows("a", "")
    speak(*ASK, status=1)
    first, before = capsys.readouterr().out, Path("out.jsonl").read_bytes()
    monkeypatch.setattr(work, "open_partner", lambda path: pytest.fail("the model was opened"))
    assert cli.main(["batch", str(model), *ASK]) == 1
    said = capsys.readouterr()
    assert "already done: out.jsonl" in said.err
    assert said.out == first
    assert Path("out.jsonl").read_bytes() == before


def test_the_first_rows_first_and_then_the_rest(speak, capsys):
    _rows(*"abc", "")
    assert speak(*ASK, "--limit", "2").answered == 2
    assert speak(*ASK, status=1).answered == 1
    assert [row["id"] for row in _read()] == [0, 1, 2, 3]
    assert speak(*ASK, status=1).answered == 0
    assert "already done: out.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--max-new-tokens", "9"), "found --max-new-tokens 256; expected --max-new-tokens 9"),
        (("--system", "Be kind."), "found system prompt none; expected system prompt Be kind."),
        (("--json",), "found --json False; expected --json True"),
        (("--field", "label"), "found --field answer; expected --field label"),
    ],
)
def test_other_settings_do_not_go_on(speak, capsys, more, named):
    _rows("a", "b")
    speak(*ASK)
    before = Path("out.jsonl").read_bytes()
    speak(*ASK, *more, status=2)
    assert named in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == before
    assert speak(*ASK, *more, "--restart").answered == 2
    assert Path("out.jsonl").read_bytes() != before or more[0] == "--max-new-tokens" or more[0] == "--system"


def test_other_rows_and_another_model_do_not_go_on(speak, model, tmp_path, capsys):
    _rows("a", "b")
    speak(*ASK)
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_bytes((model / "config.json").read_bytes() + b"\n")
    speak(*ASK, path=other, status=2)
    assert "found content of MODEL" in capsys.readouterr().err
    _rows("a", "c")
    speak(*ASK, status=2)
    assert "found content of --in" in capsys.readouterr().err


def test_a_file_that_was_changed_or_is_anybodys_is_not_touched(speak, capsys):
    _rows("a", "b")
    Path("out.jsonl").write_text("mine\n")
    speak(*ASK, status=2)
    assert "is there already, and beside it no out.jsonl.progress.json" in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == "mine\n"
    speak(*ASK, "--restart")
    for changed in (Path("out.jsonl").read_text().replace("A", "B"), '{"id": 0'):
        Path("out.jsonl").write_text(changed)
        speak(*ASK, status=2)
        assert "was changed since its answers were written" in capsys.readouterr().err
        assert Path("out.jsonl").read_text() == changed


def test_two_batches_do_not_write_one_file(speak, capsys):
    _rows("a")
    with Path("out.jsonl").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        speak(*ASK, status=2)
    assert "another fieldtune is writing out.jsonl" in capsys.readouterr().err


def test_a_full_disk_keeps_what_was_answered(speak, capsys, monkeypatch):
    _rows("a", "b", "c")

    class Full(output.FileIO):
        def write(self, data):
            if self.tell() > 90:
                super().write(bytes(data)[:5])
                raise OSError(28, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patched:
        patched.setattr(output, "FileIO", Full)
        speak(*ASK, status=2)
    assert "the disk is full: writing out.jsonl stopped. The answers so far are kept." in capsys.readouterr().err
    assert speak(*ASK).answered == 1
    assert [row["answer"] for row in _read()] == ["A", "B", "C"]


# --- what is written


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
    written = _writer().answered({"text": "x"}, text, stopped=True)
    line = json.loads(written.data)
    assert line == {"text": "x", "answer": value, "stopped": True, "valid": counts[0] == 0}
    assert (written.tally.invalid, written.tally.fenced) == counts


def test_a_schema_and_the_share_of_invalid_answers(speak, capsys):
    texts = ['{"A": 1}', '{"A": "X"}', "no"]
    _rows(*texts, "")
    schema = {"type": "object", "properties": {"A": {"type": "number"}}, "required": ["A"]}
    Path("schema.json").write_text(json.dumps(schema))
    speak(*ASK, "--json", "--schema", "schema.json", status=1)
    rows = _read()
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
    _rows("a", "b")
    speak(*ASK)
    again = ("--in", "out.jsonl", "--out", "two.jsonl", "--prompt", "{answer}!")
    speak(*again, status=2)
    assert "the rows have a field 'answer' already" in capsys.readouterr().err
    speak(*again, "--field", "second")
    expected = {"id": 0, "text": "a", "answer": "A", "stopped": True, "second": "A!", "second_stopped": True}
    assert _read("two.jsonl")[0] == expected


def test_rows_are_read_as_they_are_answered(speak, monkeypatch):
    """No more rows are in memory than are answered side by side, however many there are."""
    engine, ahead = _Engine(4), []
    count = 500

    def read(path):
        for number in range(count):
            ahead.append(number - engine.answered)
            yield Row({"text": "a"}, f"row {number}")

    _rows("a")
    monkeypatch.setattr(work, "read_rows", read)
    speak(*ASK, engine=engine)
    assert len(_read()) == count
    assert max(ahead[count:]) < 4


# --- how rows ask


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
    assert _read()[0]["answer"] == expected


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
    _rows("a")
    Path("empty.jsonl").touch()
    engine = speak(*arguments, status=2)
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said
    assert not engine.closed and not Path("out.csv").exists()


# --- the engines


def _one_by_one(path, texts):
    partner = chatting.open_partner(path)
    try:
        return [chatting.reply(partner, [chatting.Message(role="user", content=text)], 12) for text in texts]
    finally:
        partner.engine.close()


TEXTS = [*("Turn on the light" + " please" * n for n in range(5)), "把客厅的灯打开。", "x", *map(str, range(33))]


@pytest.mark.parametrize("kind", ["starter folder", "folder", "gguf"])
def test_answers_are_those_of_one_by_one(kind, tiny_qwen, tmp_path, monkeypatch):

    monkeypatch.chdir(tmp_path)
    path = open_base(ModelSettings()).path if kind == "starter folder" else tiny_qwen.folder
    if kind == "gguf":
        path = Gguf(types=()).quantize("gguf-f16", tiny_qwen, ExportRows(), tmp_path, {}.__getitem__).path
    _rows(*TEXTS)
    settings = BatchSettings(
        model=path, rows=Path("in.jsonl"), out=Path("out.jsonl"), prompt="{text}", max_new_tokens=12
    )
    answer_file(settings, lambda line: None)
    assert [row["answer"] for row in _read()] == _one_by_one(path, TEXTS)
    assert len({row["answer"] for row in _read()}) > 5


def test_speeds_and_times_are_shown_in_few_digits():
    assert [shown_speed(value) for value in (1234.5, 99.94, 0.03456)] == [
        "1,234 rows/s",
        "99.9 rows/s",
        "0.0346 rows/s",
    ]
    assert [_clock(seconds) for seconds in (4.4, 75, 36_001)] == ["0:00:04", "0:01:15", "10:00:01"]
