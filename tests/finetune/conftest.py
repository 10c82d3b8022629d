"""Shared by the tests of finetune: one tiny random model to read, and a folder with a recipe and rows to work in."""

import json

import pytest

from export.artifacts import sha256_of_folder
from tests.export.tiny_models import build


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory):
    """A tiny random Qwen3 with tied embeddings, for reading only: a test that changes it works on a copy."""
    made = build(tmp_path_factory.mktemp("model") / "tiny", "qwen3", tied=True, hidden_size=64)
    content = sha256_of_folder(made.folder)
    yield made
    assert sha256_of_folder(made.folder) == content, "a test changed the model that all of them share"


@pytest.fixture(scope="session")
def model(tiny_qwen):
    """The folder of the tiny model."""
    return tiny_qwen.folder


@pytest.fixture
def start_in_folder(tmp_path, monkeypatch):
    """Writes recipe.yaml and rows.jsonl into the test's own folder, and makes that the current one."""

    def start(recipe, rows):
        monkeypatch.chdir(tmp_path)
        lines = (json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        return tmp_path

    return start
