"""In which type weights are measured, told by the memory of a GPU that is only said to be there."""

from pathlib import Path

import pytest
import torch

from export.engines import Subject, hf
from export.errors import EngineError
from export.precision import BESIDE_WEIGHTS_BYTES, best_precision
from export.weights import weight_facts
from tests.export import tiny_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.build(tmp_path / "model", "qwen2", tied=True, hidden_size=64).folder


def _gpu_with(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_bytes, 80_000_000_000))


def test_a_processor_computes_in_float32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_precision(folder) == (torch.float32, "")


def test_a_gpu_computes_in_float32_from_the_byte_on_that_it_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * weight_facts(folder).weights + BESIDE_WEIGHTS_BYTES
    _gpu_with(monkeypatch, needed)
    assert best_precision(folder) == (torch.float32, "")
    _gpu_with(monkeypatch, needed - 1)
    found = best_precision(folder)
    assert found.dtype == "auto"
    assert found.rounding == (
        "computed in bf16, as it is stored: float32 takes 3.0 GB of the GPU, of which 3.0 GB are free"
    )


def test_weights_that_are_cut_short_are_the_artifacts_fault_on_a_gpu_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    _gpu_with(monkeypatch, 80_000_000_000)
    with pytest.raises(EngineError, match="cut short"):
        hf.load(Subject(name="x", engine="hf", path=folder), vocabulary_size=None, threads=1)
