"""A stage runs once, says why it runs again, and leaves nothing half-written."""

import errno

import pytest

from export.artifacts import StageResult
from export.errors import StorageError
from export.stage import MANIFEST, flatten, run_stage


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


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O: No space left on device (os 28)")]
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
