"""A rehearsal: the bundle's own client under a hard limit, what is counted, and what a bundle that breaks gives."""

import contextlib
import json
import os
import resource
import shutil
import socketserver
import subprocess
import sys
import threading
import venv
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from export.artifacts import sha256_of_file
from export.bundle import Row
from export.bundle.device import client
from export.bundle.packing import write_sums
from export.bundle.running import RunningClient, kill_while_starting
from export.errors import DataError, EngineError, ExportError, RecipeError
from export.rehearsal import RehearsalSettings, figures, limits, rehearse
from export.rehearsal.limits import limit_of, parse_memory
from export.rehearsal.soaking import Asked
from finetune import cli
from finetune.rehearsal_table import lines
from tests.bundle.making import read

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc are Linux's")
MEGABYTE = 10**6


@pytest.fixture
def changed(bundle, tmp_path):
    """A copy of the bundle with some file changed, and sums that say so."""

    def change(name, edit):
        copy = Path(shutil.copytree(bundle, tmp_path / "changed"))
        (copy / name).write_text(edit((copy / name).read_text(encoding="utf-8")), encoding="utf-8")
        write_sums(copy)
        return copy

    return change


def test_a_bundle_is_rehearsed_from_its_archive_to_the_last_restart(bundle, tmp_path, capsys):
    archive = bundle.with_name(f"{bundle.name}.tar.gz")
    out, kept = tmp_path / "rehearsal.json", tmp_path / "kept"
    asked = ["rehearse", str(archive), "--memory", "1GB", "--minutes", "0.05", "--out", str(out), "--keep", str(kept)]
    assert cli.main(asked) == 3, capsys.readouterr().out  # three seconds say nothing of growth
    found = read(out)
    rows = [json.loads(line) for line in (bundle / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("whether memory grows cannot be told" in problem for problem in found["problems"])
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))  # the client's own
    assert found["limit"]["memory_bytes"] == 1000 * MEGABYTE
    assert 30 * MEGABYTE < found["peak_resident_bytes"] < found["peak_address_bytes"] <= 1000 * MEGABYTE
    assert found["answers"] >= found["rows"] == len(rows)
    assert found["schema_valid"]["count"] == found["schema_valid"]["n"] == found["rows"] <= found["answers"]
    assert found["schema_checked"] == found["answers"]
    assert (found["wrong_schema"], found["changed_answers"]) == (0, 0)
    assert found["state"] == "loaded"
    assert [(r["after"], r["state"], r["same_answer"]) for r in found["restarts"]] == [
        ("kill -9 while it answered", "loaded", True),
        ("a damaged state file", "rebuilt", True),
        ("kill -9 while it started", "rebuilt", True),
    ]
    assert found["growth"]["verdict"] is None  # three seconds say nothing of growth
    assert found["against_merged"]["rows"] == 12
    # counted anew from what was said
    right = [json.loads(said) == json.loads(row["answer"]) for said, row in zip(found["said"], rows, strict=True)]
    assert found["right"]["count"] == sum(right)
    assert (found["refused_right"] or {"n": 0})["n"] == sum(right)
    assert (kept / bundle.name / "client.py").is_file()
    said = capsys.readouterr().out
    assert "against the merged model" in said
    assert "judged over 5 minutes or more" in said and "not told: 0." in said


def test_a_bundle_that_needs_more_than_the_limit_is_told_and_not_a_crash(changed, capsys):
    more = changed("bundle.json", lambda text: text.replace('"context_tokens": 512', '"context_tokens": 400000'))
    assert cli.main(["rehearse", str(more), "--memory", "600MB", "--minutes", "0.01"]) == 1
    said = capsys.readouterr().out
    assert "under this limit it does not run" in said
    assert "could not set up 400000 tokens of context" in said
    assert "verdict: fail" in said


def test_a_file_that_was_tampered_with_is_found_before_anything_runs(bundle, tmp_path, capsys):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with (copy / "client.py").open("a") as file:
        file.write(f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    assert cli.main(["rehearse", str(copy), "--memory", "1GB"]) == 1
    assert "files are not those of SHA256SUMS: client.py" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("plant", "problem"),
    [
        ("        data = b'{\"actions\": 1}'\n", "answers break the schema"),
        ("        data = str(started).encode()\n", "answers differ from the same row's first one"),
    ],
)
def test_a_client_that_answers_wrongly_fails(changed, tmp_path, plant, problem):
    line = "        seconds = time.perf_counter() - first\n"
    broken = changed("client.py", lambda text: text.replace(line, line + plant))
    few = tmp_path / "rows.jsonl"  # so few that they are asked again, however slow the machine is
    few.write_text("\n".join((broken / "rows.jsonl").read_text(encoding="utf-8").splitlines()[:2]), encoding="utf-8")
    settings = RehearsalSettings(bundle=broken, memory_bytes=1000 * MEGABYTE, cpus=1, minutes=0.1, rows=few)
    found = rehearse(settings, print)
    assert found.verdict == "fail"
    assert any(problem in one for one in found.problems), found.problems
    assert any("problem:" in line for line in lines(found))


def test_a_server_that_is_not_there_is_told_and_one_that_goes_gives_no_action(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(client, "_SECONDS_TO_LOAD", 0)
    monkeypatch.setattr(client, "HERE", bundle)
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        url = f"http://127.0.0.1:{server.server_port}"
    assert client.main(["--server", url, "mop"]) == 2
    assert f"no llama-server answers at {url}" in capsys.readouterr().err

    class _Gone:
        def tokenize(self, text, special):
            return list(text.encode())

        def generate(self, ids, max_new_tokens):
            raise ConnectionRefusedError("refused")

    settings = read(bundle / "bundle.json")
    answer = client.Client(settings, client.Rules(bundle, settings), _Gone()).answer("mop")
    assert answer == {"action": None, "reason": "the model gave no answer: refused"}


def test_where_and_by_what_it_runs_is_looked_at_first(bundle, tmp_path, monkeypatch, capsys):
    asked = ["rehearse", str(bundle), "--memory", "1GB", "--minutes", "0.01"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert cli.main([*asked, "--keep", str(tmp_path / "full")]) == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main([*asked, "--keep", str(tmp_path / "empty"), "--python", "./none/bin/python"]) == 2
    assert "there is no such program" in capsys.readouterr().err
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(SystemExit, match="2"):
        cli.main([*asked[:-1], "0"])

    # a path from here, though the client runs elsewhere; and an empty folder is taken
    monkeypatch.chdir(Path(sys.executable).parent.parent)
    few = tmp_path / "rows.jsonl"
    few.write_text("".join((bundle / "rows.jsonl").read_text(encoding="utf-8").splitlines()[:1]), encoding="utf-8")
    mine = ["--python", f"./bin/{Path(sys.executable).name}", "--keep", str(tmp_path / "empty"), "--rows", str(few)]
    assert cli.main([*asked, *mine]) in (1, 3)
    assert (tmp_path / "empty" / bundle.name / "client.py").is_file()
    assert (bundle.parent / f"{bundle.name}.rehearsal-1000mb-1cpu.json").is_file()


def test_rows_that_cannot_be_read_and_more_processors_than_there_are(bundle, tmp_path):
    settings = RehearsalSettings(bundle=bundle, memory_bytes=10**9, cpus=1, minutes=0, rows=tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="cannot be read as rows"):
        rehearse(settings, print)
    (tmp_path / "rows.jsonl").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"as rows \(1 validation error for Row\); expected lines of"):
        rehearse(settings, print)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(ExportError, match=r"unpacked \([^\n]*\); expected a .tar.gz"):
        rehearse(settings.model_copy(update={"bundle": tmp_path / "rows.jsonl"}), print)
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(DataError, match="holds no rows"):
        rehearse(settings, print)
    with pytest.raises(RecipeError, match="expected no more"):
        limit_of(10**9, 4096)


# ---- limits


def test_the_limit_holds_the_process_to_its_memory_and_processors():
    limit = limit_of(400 * MEGABYTE, 1)
    code = "import os; print(len(os.sched_getaffinity(0))); bytearray({})"

    def run(size):
        command = [*limit.starts_with, sys.executable, "-c", code.format(size)]
        return subprocess.run(command, preexec_fn=limit.enter(), capture_output=True, text=True, check=False)

    assert run(100 * MEGABYTE).returncode == 0
    assert run(100 * MEGABYTE).stdout == "1\n"
    assert run(500 * MEGABYTE).returncode != 0
    assert len(os.sched_getaffinity(0)) >= 1  # ours is as it was


def test_a_scope_of_systemd_is_taken_where_it_works(tmp_path, monkeypatch):
    """With a stand-in: there is no systemd here. It notes what it was asked for and tells the limit that it gave."""
    tool = tmp_path / "systemd-run"

    def with_limit(told):
        tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho {told}\n')

    with_limit(10**9)
    tool.chmod(0o755)
    monkeypatch.setattr(limits, "_BOOTED", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    limit = limit_of(10**9, 1)
    assert limit.kind == "cgroup"
    asked = (tmp_path / "asked").read_text()
    assert "MemoryMax=1000000000 -p MemorySwapMax=0 sh -c" in asked and "memory.max" in asked
    for told in ("max", 2 * 10**9, ""):  # a scope without the limit is none
        with_limit(told)
        assert limit_of(10**9, 1).kind == "address space"
    tool.write_text("#!/bin/sh\necho 1000000000\nexit 1\n")
    assert limit_of(10**9, 1).kind == "address space"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("512mb", 512 * 10**6),
        ("1.5 GB", 15 * 10**8),
        ("1G", 10**9),
        ("250M", 25 * 10**7),
    ],
)
def test_sizes(text, size_bytes):
    assert parse_memory(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "infGB", "nanGB", "much", "7", "50"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError):
        parse_memory(text)


# ---- a client that dies


def test_a_start_that_is_killed_is_held_to_the_limit_too(tmp_path):
    """By a stand-in for the command that gives the limit, which notes that it started the client; and by a real one."""
    (tmp_path / "client.py").write_text(
        "import resource, time\n"
        "open('limit', 'w').write(str(resource.getrlimit(resource.RLIMIT_AS)[0]))\n"
        "time.sleep(60)"
    )
    starter = tmp_path / "limited"
    starter.write_text(f'#!/bin/sh\ntouch {tmp_path}/started\nexec "$@"\n')
    starter.chmod(0o755)

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))

    kill_while_starting(tmp_path, sys.executable, 2.0, starts_with=(str(starter),), before_start=limit)
    assert (tmp_path / "started").is_file()
    assert (tmp_path / "limit").read_text() == str(10**9)


def test_a_client_that_dies_is_an_error_with_what_it_said(tmp_path):
    (tmp_path / "client.py").write_text("import sys; sys.exit('no memory')")
    with pytest.raises(EngineError, match="status 1: no memory"):
        RunningClient(tmp_path)
    (tmp_path / "client.py").write_text("print('no memory', flush=True); input()")
    with pytest.raises(EngineError, match="wrote what is no answer: 'no memory'"):
        RunningClient(tmp_path)
    (tmp_path / "client.py").write_text(
        "print('{\"ready\": true}', flush=True); input(); import os; os.kill(os.getpid(), 9)"
    )
    with RunningClient(tmp_path) as running, pytest.raises(EngineError, match="signal 9"):
        running.ask("x")
    assert not (tmp_path / ".client.log").exists()


# ---- figures


def test_an_interpreter_without_what_the_client_imports_is_no_failure_of_the_bundle(bundle, tmp_path):
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    asked = RehearsalSettings(bundle=bundle, memory_bytes=10**9, cpus=1, minutes=0.01, python=str(bare / "bin/python"))
    with pytest.raises(RecipeError, match="lacks llama_cpp jsonschema"):
        rehearse(asked, lambda line: None)


def test_a_row_that_is_asked_again_says_nothing_new():
    asked = [(row, True) for row in range(20) for _ in range(50)]
    once = figures.share([True] * 20)
    assert figures.share_by_row(asked) == once
    assert figures.share_by_row([*asked, (3, False)]) == figures.share([True] * 19 + [False])


def test_growth_of_memory_is_its_mean_step():
    hour = [3600.0 * n / 200 for n in range(201)]
    line = figures.growth(hour, [10**8 + int(5e6 * t / 3600) for t in hour], 10**8)
    assert line is not None
    assert line.bytes_per_hour == pytest.approx(5e6, rel=1e-6)
    assert line.interval == pytest.approx((5e6, 5e6), rel=1e-4)
    assert line.verdict == "fail"  # tolerated is 1e6
    flat = figures.growth(hour, [10**8] * 201, 10**8)
    assert flat is not None
    assert (flat.bytes_per_hour, flat.verdict) == (0, "pass")
    noisy = figures.growth(hour, [10**8 + (n * 7919 % 101) * 10**6 for n in range(201)], 10**8)
    assert noisy is not None
    assert noisy.verdict == "cannot tell"
    one_step = figures.growth(hour, [10**8 + (n > 120) * 3 * 10**6 for n in range(201)], 10**8)
    assert one_step is not None
    assert one_step.bytes_per_hour > 3e6
    assert one_step.verdict == "cannot tell"  # it may be the last
    warming = figures.growth(hour, [10**8 + min(n, 30) * 10**6 for n in range(201)], 10**8)
    assert warming is not None
    assert warming.verdict == "pass"
    short = figures.growth([t / 100 for t in hour], [10**8 + n * 10**6 for n in range(201)], 10**8)
    assert short is not None
    assert short.verdict is None
    assert figures.growth([1.0, 2.0], [1, 2], 10) is None


def test_growth_is_by_time_and_not_by_answers_where_a_stretch_is_slow():
    times, seconds = [], 0.0
    for number in range(6000):
        seconds += 0.3 if number < 4800 else 3.0
        times.append(seconds)
    held = [10**8 + 1024 * number for number in range(6000)]
    found = figures.growth(times, held, 5 * 10**8)
    first = int(len(times) * 0.2)
    assert found is not None
    assert found.bytes_per_hour == pytest.approx((held[-1] - held[first]) / ((times[-1] - times[first]) / 3600))
    assert found.verdict != "fail"  # 5 MB/h are tolerated, and 3.8 were grown
    assert figures.growth([400.0] * 100, [10**8] * 100, 10**8) is None  # no time, no rate


def test_memory_that_wanders_is_told_to_grow_no_more_often_than_the_interval_says():
    hour, draws = [3600.0 * n / 1000 for n in range(1001)], np.random.default_rng(0)
    outside = 0
    for _ in range(400):
        held = 10**8 + np.cumsum(draws.normal(0, 10**4, 1001)).astype(int)
        found = figures.growth(hour, [int(size) for size in held], 10**8)
        outside += not found.interval[0] <= 0 <= found.interval[1]
    assert outside <= 60  # 40 are expected at 90 %; their standard error is 6


def test_means_have_rows_for_units():
    asked = [Asked(row, 0.0, {"first_token_seconds": seconds}, 0) for row, seconds in [(0, 1.0), (0, 3.0), (1, 5.0)]]
    mean = figures.mean_by_row(asked, figures.first_token_seconds)
    assert mean is not None
    assert (mean.value, mean.largest, mean.rows, mean.answers) == (3.0, 5.0, 2, 3)
    assert figures.mean_by_row(asked[:2], figures.first_token_seconds).interval is None
    assert figures.mean_by_row([Asked(0, 0.0, {}, 0)], figures.first_token_seconds) is None
    assert figures.tokens_per_second({"tokens": 10, "decode_seconds": 2.0}) == 5.0
    assert figures.tokens_per_second({"tokens": 0, "decode_seconds": 0.0}) is None


@pytest.mark.parametrize(
    ("said", "expected", "right"),
    [
        ('{"b":2,"a":1.0}', '{"a":1,"b":2}', True),
        ('{"a":true}', '{"a":1}', False),
        (" yes\n", "yes", True),
        ("no", "yes", False),
        ("text", '{"a":1}', False),
        (None, "yes", False),
    ],
)
def test_right_answers(said, expected, right):
    assert figures.is_right(said, expected) is right


def test_the_merged_model_is_held_against_row_by_row():
    found = figures.against_merged([True, True, False, False], [True, False, True, True])
    assert (found.right, found.merged_right, found.difference) == (2, 3, -0.25)
    assert found.interval[0] < -0.25 < found.interval[1]


def test_a_row_may_come_without_the_merged_models_answer():
    assert Row.model_validate_json('{"command": "a", "answer": "b"}').merged_answer is None


# ---- the server's interface


class _Server(BaseHTTPRequestHandler):
    """A stand-in with llama-server's answers to what the client asks (tools/server of llama.cpp, as of 0.3.36)."""

    asked: ClassVar[list[tuple[str, dict]]] = []

    loading: ClassVar[list[int]] = []

    def do_GET(self):
        self.asked.append((self.path, None))
        self.send_response(self.loading.pop() if self.loading else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, content))
        answer = {"n_restored": 3}
        if self.path == "/tokenize":
            answer = {"tokens": list(content["content"].encode())}
        elif self.path == "/completion":
            timings = {"prompt_ms": 20.0, "predicted_ms": 500.0}
            answer = {"content": "{}", "tokens_predicted": 3, "stop_type": "eos", "timings": timings}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Says nothing."""


class _Babbling(socketserver.StreamRequestHandler):
    """Answers, but not in HTTP."""

    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"SSH-2.0-something\r\n")


class _Elsewhere(_Server):
    """A web server that knows nothing of what is asked, and answers with a page."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"<html")


@pytest.mark.parametrize(
    ("handler", "status", "said"),
    [(_Babbling, 2, "no llama-server answers at"), (_Elsewhere, 1, "the model gave no answer")],
)
def test_another_server_is_told_and_gives_no_action(bundle, monkeypatch, capsys, handler, status, said):
    monkeypatch.setattr(client, "_SECONDS_TO_LOAD", 0)
    monkeypatch.setattr(client, "HERE", bundle)
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert client.main(["--server", f"http://127.0.0.1:{server.server_address[1]}", "mop"]) == status
        finally:
            server.shutdown()
            thread.join()
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_a_state_of_another_model_is_not_loaded(bundle, tmp_path, monkeypatch, capsys):
    """Neither by this process nor by a server: its memory of the prompt is another one's."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    settings = json.loads((copy / "bundle.json").read_text("utf-8"))
    assert settings["model_sha256"] == sha256_of_file(copy / settings["model"])
    with RunningClient(copy) as running:
        assert running.ready["state"] == "loaded"
    (copy / "bundle.json").write_text(json.dumps({**settings, "model_sha256": "0" * 64}), encoding="utf-8")
    monkeypatch.setattr(client, "HERE", copy)
    _Server.asked.clear()
    with _serving() as url:
        assert client.main(["--server", url, "mop"]) in (0, 1)
    assert "/slots/0?action=restore" not in [path for path, _ in _Server.asked]
    for state in ("rebuilt", "loaded"):
        with RunningClient(copy) as running:
            assert running.ready["state"] == state


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e12", "long"])
def test_seconds_that_nobody_can_wait_are_an_error(seconds, capsys):
    with pytest.raises(SystemExit, match="2"):
        client.main(["--server", "http://127.0.0.1:9", "--seconds", seconds, "mop"])
    assert "argument --seconds" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"prompt": {}, "rules": []}', '{"prompt": {}, "rules": {}}'])
def test_settings_that_are_none_end_the_client_with_a_sentence(bundle, tmp_path, monkeypatch, capsys, content):
    (tmp_path / "bundle.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr(client, "HERE", tmp_path)
    assert client.main(["mop"]) == 2
    assert "copy the bundle anew" in capsys.readouterr().err


@contextlib.contextmanager
def _serving():
    server = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_is_asked_for_its_state_and_then_with_the_grammar(monkeypatch):
    # a proxy that the environment names is not asked for a server of this machine
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    _Server.asked.clear()
    _Server.loading[:] = [503]
    with _serving() as url:
        model = client.ServerModel(f"{url}/", b'root ::= "{}"')
        assert model.state == "loaded"
        assert model.tokenize("ab", False) == [97, 98]
        answer = model.generate([1, 2], 9)
    assert answer == client.Generation("{}", 2, True, 2, 0.02, 0.5)
    (loading, loaded, restore, tokenize, completion) = _Server.asked
    assert loading == loaded == ("/health", None)
    assert restore == ("/slots/0?action=restore", {"filename": "prefix.state"})
    assert tokenize[1] == {"content": "ab", "add_special": False, "parse_special": False}
    assert completion[1] == {
        "prompt": [1, 2],
        "n_predict": 9,
        "temperature": 0,
        "cache_prompt": True,
        "id_slot": 0,
        "grammar": 'root ::= "{}"',
    }
