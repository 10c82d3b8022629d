"""Importance data: against llama.cpp's own arithmetic on the same tokens, and as a file that gguf's reader opens."""

from itertools import product
from pathlib import Path

import gguf
import numpy as np
import pytest

from export import importance
from export.errors import ExportError, ModelError
from export.formats import ExportRows
from export.formats.gguf import Gguf
from export.importance import Importances, gather, read_importances, write_importances
from export.readers.gguf import read_tensors
from tests.export.llama_activations import mean_squares
from tests.export.tiny_models import ARCHITECTURES, MODEL_VOCABULARY_SIZE, build

STARTER = Path(__file__).parents[2] / "finetune" / "starter" / "model"
ROWS = [np.random.default_rng(seed).integers(0, 400, length).tolist() for seed, length in enumerate((96, 17, 64))]


def converted(folder: Path, out: Path) -> Path:
    from export.artifacts import ModelFolder

    out.mkdir()
    model = ModelFolder(folder=folder, dtype="bfloat16", base="any", chat_template_sha256="")
    return Gguf(types=()).quantize("gguf-f16", model, ExportRows(), out, {}.__getitem__).path


def assert_as_llama_cpp(found: Importances, path: Path) -> None:
    theirs = mean_squares(path, ROWS)
    assert found.of.keys() == theirs.keys()
    for name, entry in found.of.items():
        assert entry.tokens == sum(map(len, ROWS))
        # of all channels together as strictly as of each one that matters: a channel near 0 is rounding noise
        difference = np.abs(entry.mean_squares - theirs[name])
        assert difference.sum() <= 1e-3 * theirs[name].sum(), name
        assert np.median(difference / theirs[name]) <= 1e-3, name


@pytest.mark.parametrize(("architecture", "tied"), list(product(ARCHITECTURES, (True, False))))
def test_mean_squares_are_llama_cpps_own(architecture, tied, tmp_path):
    build(tmp_path / "model", architecture, tied=tied, hidden_size=256)
    found = gather(tmp_path / "model", ROWS)
    head = "token_embd.weight" if tied else "output.weight"
    assert head in found.of
    assert ("token_embd.weight" in found.of) == tied
    assert_as_llama_cpp(found, converted(tmp_path / "model", tmp_path / "out"))


def test_mean_squares_of_the_starter_are_llama_cpps_own(tmp_path):
    assert_as_llama_cpp(gather(STARTER, ROWS), converted(STARTER, tmp_path / "out"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    build(folder, "qwen2", tied=False, hidden_size=64)
    return folder


@pytest.fixture(scope="module")
def found(tiny):
    return gather(tiny, ROWS)


def test_every_matrix_that_llama_cpp_quantizes_has_importance_but_the_untied_embedding(tiny, found, tmp_path):
    matrices = [t.name for t in read_tensors(converted(tiny, tmp_path / "out")) if t.stored_as == "f16"]
    used = found.used_for(matrices)
    assert used.without == ("token_embd.weight",)
    assert (used.rows, used.tokens, used.tensors) == (3, sum(map(len, ROWS)), len(matrices) - 1)


def test_the_file_is_what_ggufs_reader_and_llama_cpps_tool_expect(found, tmp_path):
    """The keys, names, types and shapes of llama.cpp's tools/imatrix: sums of (channels, 1) and counts of (1, 1)."""
    path = tmp_path / "importance.imatrix"
    write_importances(found, path)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == len(ROWS)
    assert reader.fields["imatrix.chunk_size"].contents() == round(sum(map(len, ROWS)) / len(ROWS))
    assert isinstance(reader.fields["imatrix.datasets"].contents(), list)
    assert "general.architecture" not in reader.fields
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * len(found.of)
    for name, entry in found.of.items():
        sums, counts = tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]
        assert sums.tensor_type == counts.tensor_type == gguf.GGMLQuantizationType.F32
        assert sums.shape.tolist() == [len(entry.mean_squares), 1]
        assert counts.shape.tolist() == [1, 1]
        np.testing.assert_allclose(sums.data[0] / counts.data[0, 0], entry.mean_squares, rtol=1e-6)


def test_what_is_written_is_read(found, tmp_path):
    path = tmp_path / "importance.imatrix"
    write_importances(found, path)
    again = read_importances(path)
    assert again.rows_sha256 == found.rows_sha256
    assert again.rounding == ""
    assert again.of.keys() == found.of.keys()
    for name, entry in again.of.items():
        assert entry.tokens == found.of[name].tokens
        np.testing.assert_allclose(entry.mean_squares, found.of[name].mean_squares, rtol=1e-6)


def test_what_was_lost_by_rounding_goes_with_it(found, tmp_path):
    write_importances(found._replace(rounding="computed in bf16"), tmp_path / "rounded.imatrix")
    again = read_importances(tmp_path / "rounded.imatrix")
    assert again.used_for(list(again.of)).rounding == "computed in bf16"


def test_a_model_file_is_no_importance_data(tiny, tmp_path):
    with pytest.raises(ModelError, match="no importance data"):
        read_importances(converted(tiny, tmp_path / "out"))


def test_channels_that_are_never_active_are_counted(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    build(tmp_path / "model", "qwen2", tied=True, hidden_size=64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[[3, 5, 8]] = 0
    model.save_pretrained(tmp_path / "model")
    found = gather(tmp_path / "model", ROWS)
    assert found.of["blk.1.ffn_down.weight"].never_active == 3
    assert found.of["blk.0.ffn_down.weight"].never_active == 0
    assert found.used_for(list(found.of)).never_active_channels == {"blk.1.ffn_down.weight": 3}


def test_a_layer_that_no_row_reaches_is_left_out(tiny, monkeypatch):
    from torch import nn

    plain, expected = importance._linear_layers, gather(tiny, ROWS)
    unused = {"model.layers.0.mlp.unused": nn.Linear(8, 8)}
    monkeypatch.setattr(importance, "_linear_layers", lambda model: plain(model) | unused)
    found = gather(tiny, ROWS)
    assert found.of.keys() == expected.of.keys()
    assert found.used_for(["blk.0.mlp.unused.weight", *found.of]).without == ("blk.0.mlp.unused.weight",)


def test_no_rows_and_broken_activations_are_refused(tiny, tmp_path):
    with pytest.raises(ExportError, match="needs calibration rows"):
        gather(tiny, [()])
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="not finite"):
        gather(tmp_path, ROWS)


def test_all_ids_are_the_models(tiny):
    assert max(max(row) for row in ROWS) < MODEL_VOCABULARY_SIZE
