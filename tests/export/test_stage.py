"""A stage runs once, says why it runs again, and leaves nothing half-written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.artifacts import StageResult, read_model_config, write_atomically
from export.errors import DataError, ModelError, StorageError
from export.stage import MANIFEST, flatten, locked, run_stage, storage_problem

ROOT = Path(__file__).parents[2]


class _Result(StageResult):
    words: str


def _run(folder, inputs, said, work=None):
    def write(out):
        (out / "words.txt").write_text("hello")
        return _Result(folder=out, words="hello")

    return run_stage(folder, "speak", inputs, work or write, _Result, said.append)


def test_a_finished_stage_is_skipped_and_says_so(tmp_path):
    said = []
    first = _run(tmp_path / "a", {"x": 1}, said)
    second = _run(tmp_path / "a", {"x": 1}, said, work=lambda out: pytest.fail("ran again"))
    assert first == second
    assert first.folder == tmp_path / "a"
    assert "already done" in said[1]


def test_a_changed_input_is_named(tmp_path):
    said = []
    _run(tmp_path / "a", {"train.lora.rank": 16, "seed": 0}, said)
    _run(tmp_path / "a", {"train.lora.rank": 32, "seed": 0}, said)
    assert "train.lora.rank 16 -> 32" in said[1]
    assert "seed" not in said[1]


@pytest.mark.parametrize("error", [RuntimeError("broke"), KeyboardInterrupt()])
def test_a_failed_stage_leaves_nothing_and_keeps_the_earlier_result(tmp_path, error):
    _run(tmp_path / "a", {"x": 1}, [])

    def fail(out):
        (out / "half.txt").write_text("half")
        raise error

    with pytest.raises(type(error)):
        _run(tmp_path / "a", {"x": 2}, [], work=fail)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", MANIFEST, "words.txt"]
    assert _run(tmp_path / "a", {"x": 1}, [], work=lambda out: pytest.fail("ran again")).words == "hello"


def test_a_finished_folder_can_be_read_by_whoever_can_read_its_manifest(tmp_path):
    def work(out):
        (out / "below").mkdir()
        weights = out / "below" / "model.safetensors"
        weights.touch(mode=0o600)
        return _Result(folder=out, words="x")

    run_stage(tmp_path / "made", "make", {}, work, _Result, print)
    modes = {file.stat().st_mode for file in (tmp_path / "made").rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "made" / "manifest.json").stat().st_mode}


def test_a_folder_without_manifest_is_not_complete(tmp_path):
    _run(tmp_path / "a", {"x": 1}, [])
    (tmp_path / "a" / MANIFEST).unlink()
    said = []
    _run(tmp_path / "a", {"x": 1}, said)
    assert "running" in said[0]


def test_a_run_folder_can_be_moved(tmp_path):
    _run(tmp_path / "a", {"x": 1}, [])
    (tmp_path / "a").rename(tmp_path / "b")
    moved = _run(tmp_path / "b", {"x": 1}, [], work=lambda out: pytest.fail("ran again"))
    assert moved.folder == tmp_path / "b"


# each carries the number or the words, not both, so that neither way of telling hides that the other is broken
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "Auf dem Gerät ist kein Speicherplatz mehr verfügbar"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "Datei zu groß"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("I/O error: File too large (os error 27)"),
    ],
    ids=["ENOSPC", "EDQUOT", "EFBIG", "words of ENOSPC", "words of EFBIG"],
)
def test_a_full_disk_says_what_to_do(tmp_path, error):
    def fail(out):
        raise error

    with pytest.raises(StorageError, match=r"disk is full.*--out"):
        _run(tmp_path / "a", {"x": 1}, [], work=fail)
    assert not list(tmp_path.iterdir())


def test_flatten_names_every_leaf():
    assert flatten("train", {"lora": {"rank": 8, "targets": ["q", "k"]}, "steps": None}) == {
        "train.lora.rank": 8,
        "train.lora.targets": '["q", "k"]',
        "train.steps": None,
    }


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_an_interrupt_while_folders_are_renamed_loses_nothing(tmp_path, monkeypatch, when):
    _run(tmp_path / "a", {"x": 1}, [])
    rename = Path.rename

    def interrupted(path, target):
        is_new = path.name == ".a.partial"
        if (is_new and when == "between") or (not is_new and when == "before" and path.name == "a"):
            raise KeyboardInterrupt
        renamed = rename(path, target)
        if is_new and when == "after":
            raise KeyboardInterrupt
        return renamed

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", interrupted)
        _run(tmp_path / "a", {"x": 2}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    kept = {"x": 2 if when == "after" else 1}
    assert _run(tmp_path / "a", kept, [], work=lambda out: pytest.fail("ran again")).words == "hello"


def test_a_result_that_a_killed_process_had_moved_aside_is_found_again(tmp_path):
    _run(tmp_path / "a", {"x": 1}, [])
    (tmp_path / "a").rename(tmp_path / ".a.replaced")
    assert _run(tmp_path / "a", {"x": 1}, [], work=lambda out: pytest.fail("ran again")).words == "hello"


def _try_to_lock(folder):
    code = "import sys; from pathlib import Path; from export.stage import locked\n"
    code += "with locked(Path(sys.argv[1])): print('in')"
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_run_folder_admits_one_process_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "a"
    with locked(folder):
        other = _try_to_lock(folder)
        assert "in" not in other.stdout.split()
        assert f"another fieldtune is at work in {folder}" in other.stderr
        (folder / "kept").mkdir()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert _try_to_lock(folder).stdout == "in\n"


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(DataError), locked(tmp_path / "runs" / "a"):
        raise DataError("no rows")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("readable", "said"), [(True, "cannot be written"), (False, "cannot be read")])
def test_a_denied_file_is_named_with_what_was_denied(tmp_path, monkeypatch, readable, said):
    path = tmp_path / "rows.jsonl"
    path.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: readable == (mode == os.R_OK))
    problem = storage_problem(PermissionError(errno.EACCES, "Permission denied", str(path)), tmp_path)
    assert f"{path} {said}" in str(problem)


@pytest.mark.parametrize("place", ["afile", "afile/x", "nowhere/x", "."])
def test_a_path_that_leads_nowhere_is_a_storage_problem(tmp_path, place):
    (tmp_path / "afile").touch()
    with pytest.raises(OSError) as caught:
        (tmp_path / place).mkdir() if place == "afile" else (tmp_path / place).write_text("x")
    assert str(tmp_path) in str(storage_problem(caught.value, tmp_path))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no folders")
@pytest.mark.parametrize("folder", ["/proc/mine", "/proc/mine/run"])
def test_a_folder_that_the_system_takes_none_in(folder):
    with pytest.raises(OSError) as caught, locked(Path(folder)):
        pass
    said = "cannot make a folder at /proc/mine: the system takes none in /proc. Choose another place."
    assert str(storage_problem(caught.value, Path(folder))) == said


def test_our_own_errors_and_bugs_are_no_storage_problem(tmp_path):
    denied = PermissionError(errno.EACCES, "Permission denied", "rows.jsonl")
    own = DataError("rows.jsonl cannot be opened")
    own.__cause__ = denied
    assert storage_problem(own, tmp_path) is None
    bug = KeyError("x")
    bug.__context__ = denied
    assert storage_problem(bug, tmp_path) is None
    caused = RuntimeError("x")
    caused.__cause__ = denied
    assert storage_problem(caused, tmp_path) is not None


def test_an_atomic_write_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomically(path, "中\n")
    assert path.read_bytes() == "中\n".encode()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "replace", full)
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "中\n"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not JSON"), ("[]", "holds a list"), ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull")],
)
def test_a_broken_config_says_what_to_do(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        read_model_config(tmp_path)


def test_a_hash_that_changed_is_told_in_words(tmp_path):
    said = []
    _run(tmp_path / "a", {"artifact": "a" * 64, "reference": "b" * 64, "rank": 8, "none": None}, [])
    changed = {"artifact": "c" * 64, "reference": None, "rank": 4, "items": "d" * 64, "none": 3}
    _run(tmp_path / "a", changed, said)
    assert "artifact (another one now), items (new), none None -> 3, rank 8 -> 4 and 1 more" in said[0]
    _run(tmp_path / "a", {**changed, "items": None}, said)
    assert "because of items (there is none now) (" in said[1]


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path):
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "missing" / "quickstart.yaml", "x")
    assert caught.value.filename == str(tmp_path / "missing" / "quickstart.yaml")
    assert "partial" not in str(storage_problem(caught.value, tmp_path))
    name = "x" * 250  # with the partial file's ending it is too long for a name
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / name, "x")
    assert f"{name} cannot be used: file name too long" in str(storage_problem(caught.value, tmp_path))
    assert "partial" not in str(storage_problem(caught.value, tmp_path))
