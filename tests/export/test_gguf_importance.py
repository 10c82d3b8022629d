"""Quantizing with importance data, and with a type of its own for each tensor."""

from pathlib import Path

import numpy as np
import pytest

from export.artifacts import ModelFolder, QuantizedModel
from export.engines.llama_cpp import load
from export.errors import ExportError
from export.formats import ExportRows, RowsWanted
from export.formats._gguf_quantize import quantize_file
from export.formats.gguf import FILE_TYPES, NEEDS_IMPORTANCES, Gguf
from export.identity import identify
from export.importance import IMPORTANCE_FILE, gather
from export.readers.gguf import read_gguf, read_tensors, rows_of
from tests.export.tiny_models import build

ROWS = [np.random.default_rng(seed).integers(0, 400, 64).tolist() for seed in range(4)]


@pytest.fixture(scope="module", params=[256, 224])
def sixteen(request, tmp_path_factory):
    """The 16-bit file, and the folder, of a model whose rows divide by 256, and of one whose rows do not."""
    root = tmp_path_factory.mktemp("sixteen")
    model = build(root / "model", "qwen2", tied=False, hidden_size=request.param)
    (root / "out").mkdir()
    return Gguf(types=()).quantize("gguf-f16", model, ExportRows(), root / "out", {}.__getitem__), model


@pytest.fixture(scope="module")
def importances(sixteen):
    return gather(sixteen[1].folder, ROWS)


def made(settings: Gguf, sixteen_bit: QuantizedModel, model: ModelFolder, root: Path) -> dict[str, QuantizedModel]:
    """Every variant, made as the pipeline makes them."""
    found = {"gguf-f16": sixteen_bit}

    def make(name: str) -> QuantizedModel:
        if name not in found:
            out = root / name
            out.mkdir(parents=True)
            found[name] = settings.quantize(name, model, ExportRows(ROWS), out, make)
        return found[name]

    for name in settings.variants():
        make(name)
    return found


def weighted_error(plain, rounded, importances):
    """The squared error of each matrix's outputs, by importance."""
    stored = {tensor.name: tensor for tensor in read_tensors(rounded)}
    total = {}
    for tensor in read_tensors(plain):
        if tensor.name in importances.of:
            difference = rows_of(tensor, 0, tensor.rows) - rows_of(stored[tensor.name], 0, tensor.rows)
            total[tensor.name] = float((difference**2 @ importances.of[tensor.name].mean_squares).sum())
    return total


@pytest.mark.parametrize("file_type", ["q4_0", "iq4_nl", "q2_k"])
def test_importance_lowers_the_error_that_it_weights(sixteen, importances, tmp_path, file_type):
    source = sixteen[0].path
    quantize_file(source, file_type, tmp_path / "plain.gguf")
    quantize_file(source, file_type, tmp_path / "with.gguf", importances)
    plain = weighted_error(source, tmp_path / "plain.gguf", importances)
    weighted = weighted_error(source, tmp_path / "with.gguf", importances)
    changed = [name for name in plain if plain[name] != weighted[name]]
    assert len(changed) > len(plain) / 2
    assert sum(weighted.values()) < sum(plain.values())


def test_the_file_says_that_it_was_made_with_importance(sixteen, importances, tmp_path):
    """Under the keys of llama.cpp's own tool."""
    quantize_file(sixteen[0].path, "q4_0", tmp_path / "with.gguf", importances)
    metadata = read_gguf(tmp_path / "with.gguf").metadata
    assert metadata["quantize.imatrix.dataset"] == "4 training rows of the recipe"
    assert metadata["quantize.imatrix.entries_count"] == len(importances.of)
    assert metadata["quantize.imatrix.chunks_count"] == 4
    quantize_file(sixteen[0].path, "q4_0", tmp_path / "plain.gguf")
    assert not any(key.startswith("quantize.imatrix") for key in read_gguf(tmp_path / "plain.gguf").metadata)


@pytest.mark.parametrize("file_type", NEEDS_IMPORTANCES)
def test_types_that_need_importance_can_be_made_with_it_and_run(sixteen, tmp_path, file_type):
    result = made(Gguf(types=(file_type,), importance="domain"), *sixteen, tmp_path)[f"gguf-{file_type}"]
    engine = load(result.path, vocabulary_size=None, context_tokens=64, threads=1)
    assert np.isfinite(engine.log_probs([1, 2, 3], [1, 2])).all()
    engine.close()
    assert result.importance is not None
    # the embedding is looked up and multiplies nothing: nothing is known of its channels
    assert result.importance.without == ("token_embd.weight",)
    assert (result.importance.rows, result.importance.tokens) == (4, 256)


def test_importance_is_measured_once_and_lies_beside_each_file(sixteen, tmp_path):
    found = made(Gguf(types=("q4_0", "q5_0"), importance="domain"), *sixteen, tmp_path)
    assert set(found) == {"gguf-f16", "gguf-q4_0", "gguf-q5_0", "gguf-importance-256"}
    one = found["gguf-importance-256"].path.read_bytes()
    for name in ("gguf-q4_0", "gguf-q5_0"):
        assert (found[name].folder / IMPORTANCE_FILE).read_bytes() == one
        assert found[name].path.suffix == ".gguf"
        assert len([*found[name].folder.glob("*.gguf")]) == 1
    assert found["gguf-f16"].importance is None


def test_only_a_file_with_importance_depends_on_rows():
    settings = Gguf(types=("q4_0",), importance="domain", calibration_rows=7)
    wanted = [settings.rows_wanted(v) for v in (*settings.variants(), settings.importance_variant)]
    assert wanted == [RowsWanted(), RowsWanted(7), RowsWanted(7)]
    assert Gguf(types=("q4_0",)).rows_wanted("gguf-q4_0") == RowsWanted()
    assert settings.settings_for("gguf-f16") == Gguf().settings_for("gguf-f16") == {"file_type": "f16"}
    assert settings.settings_for("gguf-q4_0") != Gguf(types=("q4_0",)).settings_for("gguf-q4_0")


@pytest.mark.parametrize(("rows", "ok"), [(ROWS[2:3], False), ([[1, 2, 3]], True)])
def test_held_out_rows_among_those_importance_was_measured_on_are_found(sixteen, tmp_path, rows, ok):
    from export.checks import Item, Items

    result = made(Gguf(types=("q4_0",), importance="domain"), *sixteen, tmp_path)["gguf-q4_0"]
    items = Items(
        items=tuple(Item(ids=tuple(ids), scored=(1,), prompt=tuple(ids[:1]), answer="") for ids in rows),
        vocabulary_size=400,
        max_new_tokens=1,
    )
    found = identify("q4_0", result.path, "llama_cpp", sixteen[1].folder, items, compare_weights=False)
    (finding,) = [f for f in found if f.what == "calibration rows"]
    assert finding.ok is ok
    assert finding.found == f"{int(not ok)} of the 1 held-out rows among the 4 that importance was measured on"


# --- types of their own


def test_each_tensor_is_stored_in_the_type_it_is_given(sixteen, tmp_path):
    types = {
        "blk.0.attn_q.weight": "q8_0",
        "blk.1.attn_q.weight": "q5_1",
        "blk.1.ffn_down.weight": "q3_k",  # its rows of 512 divide by 256 in both models
        "token_embd.weight": "iq4_nl",
        "output.weight": "q5_0",
    }
    quantize_file(sixteen[0].path, "q4_0", tmp_path / "mix.gguf", None, types)
    stored = {tensor.name: tensor.stored_as for tensor in read_tensors(tmp_path / "mix.gguf")}
    assert {name: stored[name] for name in types} == types
    others = {kind for name, kind in stored.items() if name not in types}
    assert others == {"q4_0", "f32"}


def test_a_name_means_that_tensor_alone(sixteen, tmp_path):
    """Patterns are searched for by llama.cpp, and a dot would stand for any character."""
    quantize_file(sixteen[0].path, "q4_0", tmp_path / "mix.gguf", None, {"blk.0.ffn_up.weight": "q8_0"})
    eight = [tensor.name for tensor in read_tensors(tmp_path / "mix.gguf") if tensor.stored_as == "q8_0"]
    assert [name for name in eight if name != "output.weight"] == ["blk.0.ffn_up.weight"]


def test_what_was_asked_is_the_type_that_was_given(sixteen, tmp_path):
    """q6_k is asked for two tensors: where their rows do not divide by 256 the account says so."""
    types = {"blk.0.attn_q.weight": "q6_k", "output.weight": "q8_0"}
    fallbacks = quantize_file(sixteen[0].path, "q4_0", tmp_path / "mix.gguf", None, types)
    row = next(t.row for t in read_tensors(sixteen[0].path) if t.name == "blk.0.attn_q.weight")
    if row % 256 == 0:
        assert fallbacks == ()
    else:
        (fallback,) = fallbacks
        assert (fallback.asked, fallback.used) == ("q6_k", "q8_0")
        assert "blk.0.attn_q.weight" in fallback.what


@pytest.mark.parametrize("name", ["blk.9.ffn_up.weight", "output_norm.weight"])
def test_a_type_for_what_is_not_quantized_is_an_error(sixteen, tmp_path, name):
    with pytest.raises(ExportError, match=name):
        quantize_file(sixteen[0].path, "q4_0", tmp_path / "mix.gguf", None, {name: "q8_0"})


def test_every_file_type_is_listed_once():
    assert not {*FILE_TYPES} & {*NEEDS_IMPORTANCES}
