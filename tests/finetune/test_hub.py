"""Models and datasets are found, fetched and refused with a remedy; offline means no connection at all."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.errors import DataError, MissingDependencyError, ModelError, StorageError
from finetune import hub
from finetune.data.sources import read_snapshot
from tests.finetune.hub_stand_in import COMMIT, StandIn, serve

CONFIG = json.dumps({"model_type": "qwen2"}).encode()
MODEL = {
    "config.json": CONFIG,
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "onnx/model.safetensors": b"other",
    "README.md": b"# model",
}
DATASET = {
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "data/train.jsonl": b'{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n',
    "data/test.jsonl": b'{"question": "e", "answer": "f"}\n',
    "load.py": b"raise SystemExit",
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The hub's client, pointed at a local stand-in and an empty cache, as its environment variables would."""
    import datasets.config
    from huggingface_hub import constants

    with serve({"models/acme/tiny": dict(MODEL), "datasets/acme/talk": dict(DATASET)}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to connect fails the test, whatever library makes it."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a connection was attempted: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("name", ["hf:acme/tiny", "acme/tiny"])
def test_a_model_is_fetched_without_pickles_or_code(stand_in: StandIn, name: str) -> None:
    folder = hub.resolve_model(name, revision=None, offline=False)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # the README for the licence it states
    expected = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "merges.txt", "README.md"}
    assert present == expected
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert hub.commit_of(folder) == COMMIT
    assert not any("evil" in path or ".bin" in path for path in stand_in.asked)


def test_offline_takes_what_was_fetched_before(stand_in: StandIn, request: pytest.FixtureRequest) -> None:
    fetched = hub.resolve_model("hf:acme/tiny", revision=None, offline=False)
    data = hub.download_dataset("hf:acme/talk", revision=None, offline=False)
    asked = len(stand_in.asked)
    request.getfixturevalue("no_network")
    assert hub.resolve_model("hf:acme/tiny", revision=None, offline=True) == fetched
    assert hub.resolve_model("hf:acme/tiny", revision=COMMIT, offline=True) == fetched
    again = hub.download_dataset("hf:acme/talk", revision=None, offline=True)
    assert again == data
    rows = [row.fields for row in read_snapshot(again, "hf:acme/talk", split="train", subset=None)]
    assert rows == [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]
    assert len(stand_in.asked) == asked


@pytest.mark.usefixtures("stand_in", "no_network")
def test_offline_without_the_files_says_so_and_connects_to_nothing() -> None:
    with pytest.raises(ModelError, match=r"not, or not wholly, in the local cache .*Run once with a connection"):
        hub.resolve_model("hf:acme/tiny", revision=None, offline=True)
    with pytest.raises(DataError, match="not, or not wholly, in the local cache"):
        hub.download_dataset("hf:acme/talk", revision=None, offline=True)


def test_offline_refuses_a_half_fetched_model(stand_in: StandIn) -> None:
    folder = hub.resolve_model("hf:acme/tiny", revision=None, offline=False)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="not wholly"):
        hub.resolve_model("hf:acme/tiny", revision=None, offline=True)


def test_a_missing_repository(stand_in: StandIn) -> None:
    with pytest.raises(
        ModelError, match=f"no such repository, or it is private: the model 'acme/huge'.*{stand_in.url}"
    ):
        hub.resolve_model("hf:acme/huge", revision=None, offline=False)
    with pytest.raises(DataError, match="no such repository, or it is private: the dataset 'acme/huge'"):
        hub.download_dataset("hf:acme/huge", revision=None, offline=False)


def test_a_missing_revision(stand_in: StandIn) -> None:
    with pytest.raises(ModelError, match="at revision 'v9' on Hugging Face does not exist"):
        hub.resolve_model("hf:acme/tiny", revision="v9", offline=False)


def test_a_gated_repository(stand_in: StandIn) -> None:
    stand_in.refusals["models/acme/tiny"] = (403, "GatedRepo")
    with pytest.raises(ModelError, match=r"is gated .*accept its terms.*HF_TOKEN"):
        hub.resolve_model("hf:acme/tiny", revision=None, offline=False)


def test_a_hub_that_is_down(stand_in: StandIn) -> None:
    stand_in.refusals["models/acme/tiny"] = (507, "Broken")
    with pytest.raises(ModelError, match="507"):
        hub.resolve_model("hf:acme/tiny", revision=None, offline=False)


def test_a_hub_that_cannot_be_reached(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"could not be fetched .*Connect.*HF_ENDPOINT"):
            hub.resolve_model("hf:acme/tiny", revision=None, offline=False)


def test_a_repository_without_safetensors(stand_in: StandIn) -> None:
    del stand_in.repositories["models/acme/tiny"]["model.safetensors"]
    with pytest.raises(ModelError, match=r"has no weights: .* holds no \*\.safetensors"):
        hub.resolve_model("hf:acme/tiny", revision=None, offline=False)


def test_the_splits_of_a_dataset_are_found_by_their_names(stand_in: StandIn, capfd: pytest.CaptureFixture[str]) -> None:
    folder = hub.download_dataset("hf:acme/talk", revision=None, offline=False)
    assert not (folder / "load.py").exists()
    rows = list(read_snapshot(folder, "hf:acme/talk", split="test", subset=None))
    assert [row.fields for row in rows] == [{"question": "e", "answer": "f"}]
    assert rows[0].origin == "hf:acme/talk (test), row 1"
    with pytest.raises(DataError, match=r"the split 'dev' of hf:acme/talk cannot be read.*Splits there: train, test"):
        list(read_snapshot(folder, "hf:acme/talk", split="dev", subset=None))


def test_the_endpoint_of_the_environment_is_honoured(tmp_path: Path) -> None:
    code = "from finetune.hub import resolve_model; print(resolve_model('acme/tiny', revision=None, offline=False))"
    with serve({"models/acme/tiny": dict(MODEL)}) as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
        environment.pop("HF_HUB_CACHE", None)
        root = Path(hub.__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
        )
    assert server.asked
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_a_local_folder_is_itself_and_is_checked(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    assert hub.resolve_model(str(folder), revision=None, offline=True) == folder
    with pytest.raises(ModelError, match="has no revisions"):
        hub.resolve_model(str(folder), revision="main", offline=True)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        hub.resolve_model(str(folder), revision=None, offline=True)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        hub.resolve_model(str(folder), revision=None, offline=True)


def test_a_missing_shard_is_found_before_anything_loads(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks 1 weight files \(model-00002\.safetensors\)"):
        hub.resolve_model(str(folder), revision=None, offline=True)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match="not an index of weights"):
        hub.resolve_model(str(folder), revision=None, offline=True)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="A GGUF file cannot be trained"):
        hub.resolve_model(str(tmp_path / "model.gguf"), revision=None, offline=True)


@pytest.mark.parametrize("name", ["stater", "./nowhere", "/no/such/model", "a/b/c", "s3:a/b", "hf:one", ""])
@pytest.mark.usefixtures("no_network")
def test_a_name_that_can_be_nothing(name: str) -> None:
    with pytest.raises(ModelError, match=r"there is no model|not a model"):
        hub.resolve_model(name, revision=None, offline=False)


@pytest.mark.usefixtures("no_network")
def test_the_starter_is_the_embedded_folder() -> None:
    folder = Path(hub.__file__).parent / "starter" / "model"
    if not (folder / "config.json").is_file():
        pytest.skip("the starter's weights are not built in this checkout")
    assert hub.resolve_model("starter", revision=None, offline=True) == folder


# ModelScope's package is optional: one test runs its real client where it is installed, the others inject the one
# function that is used of it.


def test_modelscopes_own_client_fetches_models_and_datasets(tmp_path: Path) -> None:
    if importlib.util.find_spec("modelscope") is None:
        pytest.skip("modelscope is not installed (pip install 'fieldtune[modelscope]')")
    code = """
from finetune.hub import download_dataset, resolve_model
for offline in (False, True):
    print(resolve_model("modelscope:acme/tiny", revision=None, offline=offline))
    print(download_dataset("modelscope:acme/talk", revision=None, offline=offline))
"""
    with serve({"models/acme/tiny": dict(MODEL), "datasets/acme/talk": dict(DATASET)}) as server:
        environment = os.environ | {"MODELSCOPE_ENDPOINT": server.url, "MODELSCOPE_CACHE": str(tmp_path)}
        root = Path(hub.__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
        )
    model, dataset, *offline = done.stdout.split()
    assert [model, dataset] == offline
    assert {path.name for path in Path(model).iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not [path for path in Path(model).rglob("*") if path.suffix in (".py", ".bin") or path.parent.name == "onnx"]
    rows = [row.fields for row in read_snapshot(Path(dataset), "modelscope:acme/talk", split="test", subset=None)]
    assert rows == [{"question": "e", "answer": "f"}]


class HTTPStatusError(OSError):
    """Carries a response as the package's errors do."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} from the stand-in")
        self.response = types.SimpleNamespace(status_code=status)


def inject_modelscope(monkeypatch: pytest.MonkeyPatch, fetch: Any) -> None:
    module = types.ModuleType("modelscope.hub.snapshot_download")
    module.snapshot_download = fetch  # type: ignore[attr-defined]
    for name in ("modelscope", "modelscope.hub"):
        package = types.ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_modelscope_is_asked_for_weights_and_text_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "fetched")
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def fetch(*args: Any, **kwargs: Any) -> str:
        calls.append((args, kwargs))
        return str(folder)

    inject_modelscope(monkeypatch, fetch)
    assert hub.resolve_model("modelscope:acme/tiny", revision="v1", offline=True) == folder
    hub.download_dataset("modelscope:acme/talk", revision=None, offline=False)
    (model_args, model), (_, dataset) = calls
    assert model_args == ("acme/tiny",)
    assert (model["repo_type"], model["revision"], model["local_files_only"]) == ("model", "v1", True)
    assert not any("bin" in pattern or "py" in pattern for pattern in model["allow_patterns"])
    assert (dataset["repo_type"], dataset["local_files_only"]) == ("dataset", False)
    assert hub.commit_of(folder) is None


@pytest.mark.parametrize(
    ("error", "offline", "expected"),
    [
        (HTTPStatusError(404), False, "no such repository, or it is private: the model 'acme/tiny' on ModelScope"),
        (HTTPStatusError(403), False, "may not be read.*modelscope login"),
        (ConnectionError("no route"), False, "could not be fetched: ConnectionError: no route. Check the connection"),
        (ValueError("not cached"), True, "not in the local cache, and working offline"),
    ],
)
def test_modelscopes_refusals(monkeypatch: pytest.MonkeyPatch, error: Exception, offline: bool, expected: str) -> None:
    def fetch(*args: Any, **kwargs: Any) -> str:
        raise error

    inject_modelscope(monkeypatch, fetch)
    with pytest.raises(ModelError, match=expected):
        hub.resolve_model("modelscope:acme/tiny", revision=None, offline=offline)


def test_modelscope_without_its_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope.hub.snapshot_download", None)
    with pytest.raises(MissingDependencyError, match=r"Run: pip install 'fieldtune\[modelscope\]'"):
        hub.resolve_model("modelscope:acme/tiny", revision=None, offline=False)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_not_a_model(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path / "tiny")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    with pytest.raises(ModelError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        hub.resolve_model(str(folder), revision=None, offline=True)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "disk is full.*HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache/x"), StorageError, "/cache/x cannot be written"),
        (RuntimeError("Data processing error: CAS service error"), ModelError, "CAS service error.*HF_HUB_DISABLE_XET"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), StorageError, "disk is full"),
    ],
)
def test_a_download_that_the_machine_stops_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], said: str
) -> None:
    import huggingface_hub

    def stopped(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stopped)
    with pytest.raises(kind, match=said):
        hub.resolve_model("hf:acme/tiny", revision=None, offline=False)
