"""What a notebook shows: output as it comes, every end said or raised, pages and verdicts as the run wrote them."""

import builtins
import json
import sys
import time

import pytest

from export.errors import CommandError, ModelError
from export.report import write
from finetune import notebook
from finetune.notebook import fieldtune, page, shipped_files
from tests.export.page_reports import run_report
from tests.html_reading import Reader

ANSWERS = [f"answer {row}" for row in range(20)]


def test_a_verb_runs_and_its_output_is_printed(capsys):
    fieldtune("recipes")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "$ fieldtune recipes"
    assert any(line.startswith("quickstart ") for line in said)
    assert said[-1].startswith("exit status 0: done")


def test_what_could_not_be_done_stops_the_notebook_and_says_why(capsys, tmp_path):
    with pytest.raises(CommandError, match=r"validate .*no such\.yaml' could not be done \(exit status 2\)"):
        fieldtune("validate", tmp_path / "no such.yaml")
    assert "no such.yaml" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(("status", "meaning"), [(0, "done"), (1, "fail"), (3, "cannot tell")])
def test_a_verdict_is_a_result(monkeypatch, capsys, status, meaning):
    monkeypatch.setattr(notebook, "_streamed", lambda command, typed: status)
    fieldtune("run", "a.yaml")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"exit status {status}: {meaning}")


@pytest.mark.parametrize(("status", "said"), [(2, "status 2"), (-9, "status -9"), (130, "was interrupted")])
def test_everything_else_is_raised(monkeypatch, status, said):
    monkeypatch.setattr(notebook, "_streamed", lambda command, typed: status)
    with pytest.raises(CommandError, match=said):
        fieldtune("run", "a.yaml")


def test_lines_are_printed_as_they_come_and_what_is_typed_is_read(tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    child = f"""
import pathlib, sys, time
print("first:", input(), file=sys.stderr, flush=True)
end = time.monotonic() + 20
while not pathlib.Path({str(seen)!r}).exists() and time.monotonic() < end:
    time.sleep(0.02)
print("second" if time.monotonic() < end else "nobody saw the first line")
sys.exit(3)
"""
    printed = []

    def show(text="", **how):
        printed.append(text)
        seen.touch()

    monkeypatch.setattr(builtins, "print", show)
    assert notebook._streamed([sys.executable, "-c", child], "你好\n") == 3
    assert printed == ["first: 你好\n", "second\n"]


def test_an_interrupted_cell_lets_the_process_end_as_ctrl_c_does(tmp_path, monkeypatch):
    ended = tmp_path / "ended"
    child = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests run in the background inherit that it is ignored
try:
    print("working", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path({str(ended)!r}).touch()
"""

    def interrupted(text="", **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "print", interrupted)
    monkeypatch.setattr(notebook, "_SECONDS_TO_STOP", 0.1)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        notebook._streamed([sys.executable, "-c", child], "")
    assert ended.exists()
    assert time.monotonic() - started < 30


def test_a_page_is_shown_whole_and_can_run_nothing(tmp_path):
    text = '<!doctype html><p title="a &amp; b">"<b>\'quoted\'</b>" </iframe><script>alert(1)</script> 中文'
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    shown = page(tmp_path / "report.html")
    reader = Reader()
    reader.feed(shown._repr_html_())
    (frame,) = reader.root.all("iframe")
    assert frame.attributes["srcdoc"] == text
    assert frame.attributes["sandbox"] in ("", None)  # every permission refused
    assert [child for child in reader.root.children if child is not frame] == []
    assert repr(shown) == f"page: {tmp_path / 'report.html'}"


def test_a_run_that_was_stopped_has_no_page_and_no_files(tmp_path):
    with pytest.raises(CommandError, match="has not come so far"):
        page(tmp_path / "report.html")
    with pytest.raises(CommandError, match="has not come so far"):
        shipped_files(tmp_path)


@pytest.fixture
def run_folder(tmp_path):
    report, _ = run_report(ANSWERS)
    failed = [s.model_copy(update={"verdict": "fail"}) if s.name == "gguf/q4_k_m" else s for s in report.subjects]
    write(report.model_copy(update={"subjects": tuple(failed), "verdict": "fail"}), tmp_path)
    return tmp_path


def test_files_are_listed_with_the_reports_own_verdicts(run_folder):
    content = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    expected = {s["name"]: s for s in content["subjects"] if s["name"].startswith(("gguf", "gptq"))}
    files = shipped_files(run_folder)
    assert {file.name: file.verdict for file in files.files} == {n: s["verdict"] for n, s in expected.items()}
    assert files.named("gguf/q4_k_m").path == run_folder / expected["gguf/q4_k_m"]["path"]
    lines = str(files).splitlines()
    assert lines[-1] == "verdict of the run: fail"
    (failed,) = (line for line in lines if line.startswith("gguf/q4_k_m"))
    assert " fail " in failed
    assert f"{expected['gguf/q4_k_m']['size_bytes'] / 1e6:,.1f} MB" in failed


def test_a_file_that_was_not_made_is_named_with_the_nearest(run_folder):
    with pytest.raises(ModelError, match="Did you mean 'gguf/q4_k_m'"):
        shipped_files(run_folder).named("gguf/q4_km")
