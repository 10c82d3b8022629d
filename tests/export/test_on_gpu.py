"""Measuring on an NVIDIA device against the same on this machine's processor, in a process that sees no device."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import importance
from export.engines import Subject, hf
from export.formats import ExportRows
from export.formats.gptq import Gptq
from tests.export import tiny_models
from tests.export.predictions import divergence, log_probs
from tests.processor import processor_only

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA device here"),
]

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 390, 200)]
ROWS = [[int(i) for i in np.random.default_rng(row).integers(0, 390, 60)] for row in range(40)]


@pytest.fixture(scope="module", params=tiny_models.ARCHITECTURES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_models.build(tmp_path_factory.mktemp("gpu") / "model", request.param, tied=True, hidden_size=128)


def _on_a_processor(code: str, folder: Path, out: Path) -> Any:
    """What `code` saves in `out`, run where torch sees no device."""
    begin = "import sys, json, numpy as np; from pathlib import Path; folder, out = map(Path, sys.argv[1:3])\n"
    command = [sys.executable, "-c", begin + code, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=processor_only(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(out) if out.suffix == ".npy" else json.loads(out.read_text(encoding="utf-8"))


_SAVE_LOG_PROBS = "from tests.export.test_on_gpu import IDS, log_probs; np.save(out, log_probs(folder, IDS))"


def test_a_dense_folder_predicts_as_on_a_processor(source: Any, tmp_path: Path) -> None:
    expected = _on_a_processor(_SAVE_LOG_PROBS, source.folder, tmp_path / "cpu.npy")
    seen = log_probs(source.folder, IDS)
    assert np.abs(seen - expected).max() < 1e-3
    assert divergence(expected, seen) < 1e-7


def test_where_float32_does_not_fit_the_engine_says_so_and_is_less_exact(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = log_probs(source.folder, IDS)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_device: (1_000_000, 80_000_000_000))
    engine = hf.load(Subject(name="x", engine="hf", path=source.folder), vocabulary_size=None, threads=1)
    assert engine.rounding.startswith("computed in bf16, as it is stored")
    rounded = engine.log_probs(IDS, range(1, len(IDS)))
    assert divergence(exact, rounded) > 1e-6


def test_a_gptq_folder_made_on_the_device_predicts_alike_on_both(source: Any, tmp_path: Path) -> None:
    def never(variant: str) -> Any:
        raise AssertionError(variant)

    step = Gptq(bits=4, calibration_tokens=128, calibration_rows=40)
    (tmp_path / "made").mkdir()
    made = step.quantize(step.variants()[0], source, ExportRows(ROWS), tmp_path / "made", never)
    expected = _on_a_processor(_SAVE_LOG_PROBS, made.folder, tmp_path / "cpu.npy")
    assert divergence(expected, log_probs(made.folder, IDS)) < 1e-3
    assert 0 < divergence(log_probs(source.folder, IDS), expected) < 0.5


def test_answers_are_those_of_a_processor(source: Any, tmp_path: Path) -> None:
    code = "from tests.export.test_on_gpu import _answers; out.write_text(json.dumps(_answers(folder)))"
    expected = _on_a_processor(code, source.folder, tmp_path / "cpu.json")
    same = [mine == theirs for mine, theirs in zip(_answers(source.folder), expected, strict=True)]
    assert sum(same) >= len(same) - 1  # a tie between two tokens may break either way


def _answers(folder: Path) -> list[list[int]]:
    engine = hf.load(Subject(name="x", engine="hf", path=folder), vocabulary_size=None, threads=1)
    return [list(answer.ids) for answer in engine.generate([row[:20] for row in ROWS[:8]], 12)]


def test_importance_is_that_of_a_processor(source: Any, tmp_path: Path) -> None:
    code = "from tests.export.test_on_gpu import _importances; out.write_text(json.dumps(_importances(folder)))"
    expected = _on_a_processor(code, source.folder, tmp_path / "cpu.json")
    seen = _importances(source.folder)
    assert seen.keys() == expected.keys()
    assert all(np.allclose(seen[name], expected[name], rtol=1e-3) for name in seen)


def _importances(folder: Path) -> dict[str, list[float]]:
    found = importance.gather(folder, ROWS)
    return {name: [float(value) for value in entry.mean_squares] for name, entry in found.of.items()}
