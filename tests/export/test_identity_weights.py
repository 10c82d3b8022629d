"""What an artifact is stored as, its head, and what it was calibrated on: honest files pass, planted ones are found."""

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from export.formats.gguf import FILE_TYPES
from export.identity._weights import allowed_by_rounding, gguf_types_finding, relative_difference
from export.promises import promised
from export.quantization_record import RECORD, CalibrationRecord, QuantizationRecord, row_sha256
from export.readers.gguf import GgufContent, StoredTensor, read_gguf, read_tensors, rows_of
from tests.export import tiny_models
from tests.export.artifact_edits import Weights, change_json, change_weights, pack_folder, rewrite_gguf
from tests.export.chat_tokenizers import PLAIN
from tests.export.identity_cases import ROWS, Made, failed, findings, held_out, make, quantized, set_key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may spoil."""
    return Path(shutil.copytree(made.folder, tmp_path / "copy"))


# --- what it is stored as


def test_two_bits_sold_as_four_are_found(made: Made, tmp_path: Path) -> None:
    sold = quantized(made.f16, "q2_k", tmp_path, name="Q4_K_M")
    found = failed(sold, made.folder)
    assert set(found) == {"tensor types"}
    assert "its metadata say q2_k" in found["tensor types"].found
    assert "q4_k_m, by the name: 4.5 bits per weight or more" in found["tensor types"].expected
    # with metadata that lie as well
    lying = rewrite_gguf(sold, tmp_path / "x.gguf", set_key("general.file_type", 15))
    found = failed(lying, made.folder)
    assert set(found) == {"tensor types"}
    assert "of its weights are stored in fewer bits (q2_k" in found["tensor types"].found
    assert "by the metadata" in found["tensor types"].expected
    assert set(failed(sold, made.folder, promised="q2_k")) == set()
    assert set(failed(made.q4_k_m, made.folder, promised="q5_k_m")) == {"tensor types"}


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_file_type_passes_as_itself_and_as_no_better_one(made: Made, tmp_path: Path, file_type: str) -> None:
    content = read_gguf(quantized(made.f16, file_type, tmp_path))
    found = gguf_types_finding("s", content, promised(file_type))
    assert found.ok, found
    assert found.expected.startswith(f"{file_type}, by the name")
    content.metadata.pop("general.file_type")
    better = {"q8_0": "f16", "q6_k": "q8_0", "q5_k_m": "q6_k"}.get(file_type, "q5_1" if file_type < "q5" else "q6_k")
    assert not gguf_types_finding("s", content, promised(better)).ok


def test_a_large_embedding_does_not_hide_layers_of_fewer_bits() -> None:
    """As in a Qwen2.5-0.5B, whose embedding and head are 43 % of its weights and stored in 8 bits."""

    def stored(name: str, stored_as: str, rows: int, bits: float) -> StoredTensor:
        return StoredTensor(name, stored_as, rows * 256, 256, int(rows * 32 * bits), Path(), 0)

    matrices = stored("token_embd.weight", "q8_0", 430, 8.5), stored("blk.0.ffn_up.weight", "q2_k", 570, 2.625)
    found = gguf_types_finding("s", GgufContent({"general.file_type": 15}, matrices), promised("q4_k_m"))
    assert not found.ok
    assert "57% of its weights are stored in fewer bits (q2_k 100%); 5.15 bits per weight" in found.found


def test_more_bits_than_promised_are_another_type_by_the_metadata_alone(made: Made, tmp_path: Path) -> None:
    path = quantized(made.f16, "q8_0", tmp_path, name="q4_k_m")
    assert "its metadata say q8_0" in failed(path, made.folder)["tensor types"].found
    honest = rewrite_gguf(path, tmp_path / "x.gguf", set_key("general.file_type", 15))
    assert failed(honest, made.folder) == {}


def test_a_file_that_names_no_type_is_described(made: Made, tmp_path: Path) -> None:
    path = rewrite_gguf(made.q4_k_m, tmp_path / "x.gguf", lambda values: values.pop("general.file_type"))
    found = findings(path, made.folder)["tensor types"]
    assert found.ok
    assert "bits per weight in 15 matrices (q4_k" in found.found
    assert "neither the name nor the metadata" in found.note


@pytest.mark.parametrize("name", ["Q4_K", "Q4_K_L", "UD-Q4_K_XL", "4bit"])
def test_bits_that_are_promised_without_a_type_are_held_to(made: Made, tmp_path: Path, name: str) -> None:
    sold = quantized(made.f16, "q2_k", tmp_path, name=name)
    for path in (sold, rewrite_gguf(sold, tmp_path / f"lying-{name}.gguf", set_key("general.file_type", 15))):
        found = failed(path, made.folder)
        assert set(found) == {"tensor types"}
        assert "of its weights are stored in fewer bits (q2_k" in found["tensor types"].found
        assert found["tensor types"].expected == "4 bits, by the name: 4 bits per weight or more"
    shutil.copyfile(made.q4_k_m, sold)
    assert failed(sold, made.folder) == {}


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_rounding_moves_a_matrix_by_what_is_allowed_for(made: Made, tmp_path: Path, file_type: str) -> None:
    """The rule of 2^(1-bits) that the comparison of head and embedding allows for, against llama.cpp's quantizer."""
    before = {tensor.name: tensor for tensor in read_tensors(made.f16)}
    for tensor in read_tensors(quantized(made.f16, file_type, tmp_path)):
        # gguf cannot de-quantize these
        if tensor.rows > 1 and tensor.stored_as not in ("f32", "f16", "q1_0", "q2_0"):
            pair = rows_of(tensor, 0, tensor.rows), rows_of(before[tensor.name], 0, tensor.rows)
            found = relative_difference([pair])
            assert 0 < found < allowed_by_rounding(tensor.bits_per_weight)


# --- head and embedding


def with_head(made: Made, target: Path, scale: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The tied model with its shared matrix stored a second time, in 8 bits as Qwen's own files have it."""

    def add(tensors: Weights) -> None:
        embedding = gguf.dequantize(tensors["token_embd.weight"], gguf.GGMLQuantizationType.Q6_K)
        codes = gguf.quantize(embedding, gguf.GGMLQuantizationType.Q8_0)
        tensors["output.weight"] = scale(gguf.dequantize(codes, gguf.GGMLQuantizationType.Q8_0))

    return rewrite_gguf(made.q4_k_m, target, tensors=add)


def test_a_tied_matrix_stored_twice_is_said_and_passes(made: Made, tmp_path: Path) -> None:
    found = findings(with_head(made, tmp_path / "x-q4_k_m.gguf", lambda head: head), made.folder)
    assert all(finding.ok for finding in found.values())
    assert "a second time" in found["tied embeddings"].note


@pytest.mark.parametrize("scale", [1.5, 0.0, -1.0])
def test_a_head_that_left_the_embedding_is_found(made: Made, tmp_path: Path, scale: float) -> None:
    path = with_head(made, tmp_path / "x-q4_k_m.gguf", lambda head: (head * scale).astype(np.float32))
    found = failed(path, made.folder)
    assert set(found) == {"tied embeddings"}
    assert "differs from the embedding by" in found["tied embeddings"].found


def test_a_head_that_was_dropped_is_found(tmp_path: Path) -> None:
    made = make(tmp_path, tied=False)
    path = rewrite_gguf(made.q4_k_m, tmp_path / "x-q4_k_m.gguf", tensors=lambda t: t.pop("output.weight"))
    found = failed(path, made.folder)
    assert set(found) == {"tied embeddings"}
    assert "the embedding is used" in found["tied embeddings"].found


def test_the_same_of_folders(made: Made, folder: Path, tmp_path: Path) -> None:
    untied = tiny_models.build(tmp_path / "untied", "qwen3", tied=False, hidden_size=256).folder
    (untied / "chat_template.jinja").write_text(PLAIN, encoding="utf-8")
    change_json(untied / "config.json", lambda config: config.update(tie_word_embeddings=True))
    own = tiny_models.build(tmp_path / "own", "qwen3", tied=False, hidden_size=256).folder
    (own / "chat_template.jinja").write_text(PLAIN, encoding="utf-8")
    assert "the embedding is used" in failed(untied, own)["tied embeddings"].found
    change_json(folder / "config.json", lambda config: config.update(tie_word_embeddings=False))
    change_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert findings(folder, made.folder)["tied embeddings"].ok
    change_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 1.1}))
    found = failed(folder, made.folder)
    assert set(found) == {"tied embeddings"}
    assert "differs from the embedding by" in found["tied embeddings"].found


# --- GPTQ folders


@pytest.fixture
def packed(made: Made, tmp_path: Path) -> Path:
    return pack_folder(made.folder, tmp_path / "gptq-4bit")


def test_bits_that_the_packed_layers_do_not_have_are_found(made: Made, packed: Path) -> None:
    assert failed(packed, made.folder, promised="8bit").keys() == {"tensor types"}
    change_json(packed / "config.json", lambda c: c["quantization_config"].update(bits=8))
    found = failed(packed, made.folder)
    assert set(found) == {"tensor types", "weights"}
    assert "its config says 8 bits" in found["tensor types"].found
    assert "14 layers: " in found["tensor types"].found


def test_scales_of_another_shape_are_found(made: Made, packed: Path) -> None:
    name = "model.layers.0.mlp.up_proj.scales"
    change_weights(packed, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    assert name in failed(packed, made.folder)["tensor types"].found


@pytest.mark.parametrize("sold_as", ["4bit", "my-w4a16-model", "f32"])
def test_a_folder_sold_as_what_it_is_not_is_found(made: Made, folder: Path, sold_as: str) -> None:
    found = failed(folder, made.folder, promised=sold_as)
    assert set(found) == {"tensor types"}
    assert "in bf16" in found["tensor types"].found
    assert failed(folder, made.folder, promised="model-BF16") == {}


@pytest.mark.parametrize("size", [None, "128", 0, True])
def test_a_group_size_that_is_none_is_found(made: Made, packed: Path, size: object) -> None:
    change_json(packed / "config.json", lambda c: c["quantization_config"].update(group_size=size))
    found = failed(packed, made.folder)
    assert set(found) == {"file"}
    assert f"group_size is {size!r}" in found["file"].found


def test_a_quantization_config_that_is_no_mapping_is_found(made: Made, packed: Path) -> None:
    change_json(packed / "config.json", lambda c: c.update(quantization_config=["gptq"]))
    assert "no mapping" in failed(packed, made.folder)["file"].found


def test_another_quantization_is_said_and_not_judged(made: Made, packed: Path) -> None:
    change_json(packed / "config.json", lambda c: c["quantization_config"].update(quant_method="awq"))
    found = findings(packed, made.folder)
    assert found["tensor types"].ok
    assert "'awq'" in found["tensor types"].found


def record(folder: Path, rows: list[tuple[int, ...]]) -> None:
    calibration = CalibrationRecord(
        rows=len(rows), sequences=1, sequence_tokens=8, tokens=8, rows_sha256=tuple(map(row_sha256, rows))
    )
    settings = {
        "bits": 4,
        "group_size": 64,
        "damp": 0.1,
        "desc_act": False,
        "symmetric": True,
        "computed_in": "float32",
    }
    written = QuantizationRecord(calibration=calibration, modules=(), **settings)
    (folder / RECORD).write_text(written.model_dump_json(), encoding="utf-8")


def test_held_out_rows_among_the_calibration_rows_are_found(made: Made, packed: Path) -> None:
    items = held_out(made.folder, *ROWS)
    rows = [item.ids for item in items.items]
    record(packed, [(1, 2, 3), (4, 5)])
    found = findings(packed, made.folder, items=items)["calibration rows"]
    assert found.ok
    assert found.found == "0 of the 3 held-out rows among the 2 it was calibrated on"
    record(packed, [(1, 2, 3), rows[2], rows[0]])
    found = failed(packed, made.folder, items=items)["calibration rows"]
    assert found.found == "2 of the 3 held-out rows among the 3 it was calibrated on"


def test_without_a_record_nothing_is_claimed(made: Made, packed: Path) -> None:
    items = held_out(made.folder, *ROWS)
    assert findings(packed, made.folder, items=items)["calibration rows"].found == "not recorded"
    record(packed, [])
    assert findings(packed, made.folder, items=items)["calibration rows"].found == "not recorded"
    (packed / RECORD).write_text("{", encoding="utf-8")
    found = findings(packed, made.folder, items=items)["calibration rows"]
    assert (found.ok, found.found) == (True, "not recorded")
    assert "calibration rows" not in findings(made.folder, made.folder, items=items)


def test_an_importance_matrix_is_named(made: Made, tmp_path: Path) -> None:
    path = rewrite_gguf(made.q4_k_m, tmp_path / "x-q4_k_m.gguf", set_key("quantize.imatrix.dataset", "wiki.txt"))
    assert "wiki.txt" in findings(path, made.folder)["calibration rows"].found
