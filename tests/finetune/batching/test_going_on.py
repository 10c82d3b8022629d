"""Whatever happens to the process, the same command goes on where it was."""

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

from export.errors import ModelError
from export.formats import ExportRows
from export.formats.gguf import Gguf
from finetune import cli
from finetune.batching import output, work
from tests.finetune.batching.speaking import ASK, TABLE, Engine, read_answers, write_rows


@pytest.mark.parametrize("ask", [ASK, TABLE], ids=["jsonl", "csv"])
def test_killed_at_any_byte_it_goes_on_to_the_same_file(speak, monkeypatch, ask):
    """Every state of the file that a process can leave, half lines and half characters too, becomes the whole."""
    write_rows("a\nb", "", 'say "好"', "d")
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
    write_rows("a", "b", "c")
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
    write_rows(*(f"row {number}" for number in range(3000)))
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
    rows = read_answers()
    assert [row["id"] for row in rows] == list(range(limit))
    arguments[3 + arguments.index("--in")] = "fresh.jsonl"
    assert cli.main(arguments) == 0
    assert Path("fresh.jsonl").read_bytes() == Path("out.jsonl").read_bytes()


def test_control_c_keeps_the_answers_and_the_same_command_goes_on(speak, capsys):
    write_rows(*"abcdef")
    engine = speak(*ASK, engine=Engine(1, interrupt_at=4), status=cli.EXIT_INTERRUPTED)
    assert engine.closed
    assert "run the same command again to go on from there" in capsys.readouterr().err
    assert len(read_answers()) == 4
    assert speak(*ASK).answered == 2
    assert "going on: out.jsonl holds 4 of 6 rows" in capsys.readouterr().err
    assert [row["answer"] for row in read_answers()] == list("ABCDEF")


def test_a_batch_that_is_done_opens_no_model(speak, model, capsys, monkeypatch):
    write_rows("a", "")
    speak(*ASK, status=1)
    first, before = capsys.readouterr().out, Path("out.jsonl").read_bytes()
    monkeypatch.setattr(work, "open_partner", lambda path: pytest.fail("the model was opened"))
    assert cli.main(["batch", str(model), *ASK]) == 1
    said = capsys.readouterr()
    assert "already done: out.jsonl" in said.err
    assert said.out == first
    assert Path("out.jsonl").read_bytes() == before


def test_the_first_rows_first_and_then_the_rest(speak, capsys):
    write_rows(*"abc", "")
    assert speak(*ASK, "--limit", "2").answered == 2
    assert speak(*ASK, status=1).answered == 1
    assert [row["id"] for row in read_answers()] == [0, 1, 2, 3]
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
    write_rows("a", "b")
    speak(*ASK)
    before = Path("out.jsonl").read_bytes()
    speak(*ASK, *more, status=2)
    assert named in capsys.readouterr().err
    assert Path("out.jsonl").read_bytes() == before
    assert speak(*ASK, *more, "--restart").answered == 2
    assert Path("out.jsonl").read_bytes() != before or more[0] == "--max-new-tokens" or more[0] == "--system"


def test_other_rows_and_another_model_do_not_go_on(speak, model, tmp_path, capsys):
    write_rows("a", "b")
    speak(*ASK)
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_bytes((model / "config.json").read_bytes() + b"\n")
    speak(*ASK, path=other, status=2)
    assert "found content of MODEL" in capsys.readouterr().err
    write_rows("a", "c")
    speak(*ASK, status=2)
    assert "found content of --in" in capsys.readouterr().err


def test_a_file_that_was_changed_or_is_anybodys_is_not_touched(speak, capsys):
    write_rows("a", "b")
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


def test_answers_are_replaced_only_once_there_is_a_model_to_replace_them(speak, model, monkeypatch, capsys):
    write_rows("a", "b")
    speak(*ASK)
    kept = {name: Path(name).read_bytes() for name in ("out.jsonl", "out.jsonl.progress.json")}

    def refusing(path):
        raise ModelError("it cannot be opened")

    monkeypatch.setattr(work, "open_partner", refusing)
    assert cli.main(["batch", str(model), *ASK, "--restart"]) == 2
    assert "it cannot be opened" in capsys.readouterr().err
    assert {name: Path(name).read_bytes() for name in kept} == kept
    assert speak(*ASK).answered == 0


def test_two_batches_do_not_write_one_file(speak, capsys):
    write_rows("a")
    with Path("out.jsonl").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        speak(*ASK, status=2)
    assert "another fieldtune is writing out.jsonl" in capsys.readouterr().err


def test_a_full_disk_keeps_what_was_answered(speak, capsys, monkeypatch):
    write_rows("a", "b", "c")

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
    assert [row["answer"] for row in read_answers()] == ["A", "B", "C"]
