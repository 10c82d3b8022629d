"""How much of a fine-tune an artifact kept: against sums made with gguf's own reader and gptqmodel's own unpacking, and
on cases whose answer is known: the fine-tune itself, the base in its place, and a base that lies on the grid.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest
import torch

from export.artifacts import QuantizedModel
from export.converter import convert
from export.engines import hf
from export.errors import ExportError, ModelError
from export.formats._gguf_quantize import quantize_file
from export.readers.folder import open_tensors, unpack
from export.retained import Retained, base_as_gguf, retained_in, retained_in_folder, retained_in_gguf
from tests.export import tiny_models
from tests.export.artifact_edits import change_json, change_weights, pack_folder, rewrite_gguf

CHANGED = "model.layers.1.mlp.up_proj.weight"


class Tuned(NamedTuple):
    """A base, and the same after a small change of every projection, as folders and 16-bit GGUF files."""

    base: Path
    merged: Path
    base_gguf: Path
    merged_gguf: Path


def tuned(root: Path, prepare: Callable[[Path], None] = lambda _: None, size: float = 0.01) -> Tuned:
    base = tiny_models.build(root / "base", "qwen2", tied=True, hidden_size=256).folder
    prepare(base)
    shutil.copytree(base, root / "merged")
    generator = torch.Generator().manual_seed(3)

    def train(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("_proj.weight"):
                change = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * size
                tensors[name] = (tensor.float() + change).to(torch.float32)

    change_weights(base, lambda tensors: tensors.update({n: t.float() for n, t in tensors.items()}))
    change_weights(root / "merged", train)
    files = []
    for name in ("base", "merged"):
        (root / f"{name}-gguf").mkdir()
        files.append(convert(root / name, name, root / f"{name}-gguf")[0])
    return Tuned(base, root / "merged", *files)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return tuned(tmp_path_factory.mktemp("tuned"))


def quantized(source: Path, file_type: str, folder: Path) -> Path:
    quantize_file(source, file_type, folder / f"{file_type}.gguf")
    return folder / f"{file_type}.gguf"


def expected_in_gguf(artifact: Path, merged: Path, base: Path) -> dict[str, tuple[float, float]]:
    """(Wq-W0).(W-W0) and |W-W0|^2 by gguf's reader, all of a tensor at once."""
    files = [
        {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in gguf.GGUFReader(path).tensors}
        for path in (artifact, merged, base)
    ]
    changes = {name: files[1][name] - files[2][name] for name in files[1]}
    kept = {name: files[0][name] - files[2][name] for name in files[1]}
    return {n: (float((kept[n] * d).sum()), float((d * d).sum())) for n, d in changes.items() if d.any()}


# --- GGUF


@pytest.mark.parametrize("file_type", ["q8_0", "q4_k_m", "q2_k", "iq4_xs", "q5_1"])
def test_the_share_in_a_gguf_is_the_one_computed_plainly(case: Tuned, tmp_path: Path, file_type: str) -> None:
    path = quantized(case.merged_gguf, file_type, tmp_path)
    found = retained_in_gguf("x", path, case.merged_gguf, case.base_gguf)
    expected = expected_in_gguf(path, case.merged_gguf, case.base_gguf)
    shares = {name: dot / square for name, (dot, square) in expected.items()}
    dots, squares = zip(*expected.values(), strict=True)
    assert found.share == pytest.approx(sum(dots) / sum(squares), rel=1e-6)
    assert found.quartiles == pytest.approx(tuple(np.quantile(list(shares.values()), (0.25, 0.5, 0.75))), rel=1e-6)
    assert dict(found.lowest) == pytest.approx(dict(sorted(shares.items(), key=lambda item: item[1])[:5]), rel=1e-6)
    assert found.tensors == len(shares) == 14
    assert "every weight" in found.note


def test_chunks_of_rows_give_the_same_sums(case: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = quantized(case.merged_gguf, "q4_k_m", tmp_path)
    whole = retained_in_gguf("x", path, case.merged_gguf, case.base_gguf)
    packed = pack_folder(case.merged, tmp_path / "packed")
    of_folder = retained_in_folder("x", packed, case.merged, case.base)
    monkeypatch.setattr("export.readers.gguf.WEIGHTS_AT_ONCE", 1000)
    monkeypatch.setattr("export.retained.WEIGHTS_AT_ONCE", 1000)
    assert retained_in_gguf("x", path, case.merged_gguf, case.base_gguf).share == pytest.approx(whole.share, rel=1e-9)
    assert retained_in_folder("x", packed, case.merged, case.base).share == pytest.approx(of_folder.share, rel=1e-9)


def test_the_16_bit_file_keeps_all_and_the_base_nothing(case: Tuned) -> None:
    assert retained_in_gguf("x", case.merged_gguf, case.merged_gguf, case.base_gguf).share == 1
    nothing = retained_in_gguf("x", case.base_gguf, case.merged_gguf, case.base_gguf)
    assert nothing.share == 0
    assert nothing.quartiles == (0, 0, 0)
    assert nothing.weights == 2 * (2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 512)


def test_an_adapter_that_was_merged_twice_is_in_it_twice(case: Tuned, tmp_path: Path) -> None:
    shutil.copytree(case.merged, tmp_path / "twice")
    with open_tensors(case.base) as base:
        before = {name: torch.from_numpy(base.rows(name, 0, base.shape(name)[0])) for name in base.names}
    change_weights(tmp_path / "twice", lambda t: t.update({n: 2 * w.float() - before[n] for n, w in t.items()}))
    assert retained_in_folder("x", tmp_path / "twice", case.merged, case.base).share == pytest.approx(2, rel=1e-5)


def lie_on_the_grid_of_q4_0(folder: Path) -> None:
    """Rounds the projections to 4 bits, as if the base had been made of a quantized file."""

    def round_weights(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            codes = gguf.quantize(tensors[name].float().numpy(), gguf.GGMLQuantizationType.Q4_0)
            tensors[name] = torch.from_numpy(gguf.dequantize(codes, gguf.GGMLQuantizationType.Q4_0))

    change_weights(folder, round_weights)


def test_a_base_that_was_rounded_before_draws_the_change_back(tmp_path: Path) -> None:
    """The trap: from a base on the grid, the same rounding returns to the base. Eight bits, and no grid, keep it."""
    for name in ("on", "off"):
        (tmp_path / name).mkdir()
    on_grid = tuned(tmp_path / "on", lie_on_the_grid_of_q4_0)
    off_grid = tuned(tmp_path / "off")
    shares = {
        (name, file_type): retained_in_gguf(
            "x", quantized(files.merged_gguf, file_type, tmp_path / name), files.merged_gguf, files.base_gguf
        ).share
        for name, files in (("on", on_grid), ("off", off_grid))
        for file_type in ("q4_0", "q8_0")
    }
    assert shares["on", "q4_0"] < 0.3
    assert shares["on", "q8_0"] == pytest.approx(1, abs=0.1)
    assert shares["off", "q4_0"] == pytest.approx(1, abs=0.1)
    assert shares["off", "q8_0"] == pytest.approx(1, abs=0.02)


def test_the_base_is_converted_to_the_merged_files_own_type(case: Tuned, tmp_path: Path) -> None:
    with base_as_gguf(case.base, case.merged_gguf) as path:
        assert retained_in_gguf("x", path, case.merged_gguf, case.base_gguf).share == 0
    assert not path.exists()
    bfloat, _ = convert(case.merged, "merged", tmp_path, file_type="bf16")
    with base_as_gguf(case.base, bfloat) as path:
        assert "bf16" in {tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors}


def test_nothing_that_changed_is_said_and_is_no_number(case: Tuned) -> None:
    found = retained_in_gguf("x", case.merged_gguf, case.base_gguf, case.base_gguf)
    assert math.isnan(found.share)
    assert (found.tensors, found.weights) == (0, 0)
    assert "no weight" in found.note


def test_a_weight_that_is_not_a_number_is_named(case: Tuned, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.0.attn_q.weight"][3, 5] = np.nan

    broken = rewrite_gguf(case.merged_gguf, tmp_path / "broken.gguf", tensors=spoil)
    found = retained_in_gguf("x", broken, case.merged_gguf, case.base_gguf)
    assert math.isnan(found.share)
    assert found.lowest[0][0] == "blk.0.attn_q.weight"
    assert "not finite: blk.0.attn_q.weight" in found.note


def test_files_of_other_models_are_refused(case: Tuned, tmp_path: Path) -> None:
    other = tiny_models.build(tmp_path / "other", "qwen2", tied=True, hidden_size=128)
    (tmp_path / "out").mkdir()
    path, _ = convert(other.folder, "other", tmp_path / "out")
    with pytest.raises(ExportError, match=r"cannot be compared: its shapes are 256, 128, 256"):
        retained_in_gguf("x", path, case.merged_gguf, case.base_gguf)
    with pytest.raises(ExportError, match="cannot be compared"):
        retained_in_folder("x", other.folder, case.merged, case.base)


@pytest.mark.parametrize(("file_type", "all_of_it"), [("q1_0", True), ("q2_0", True), ("tq1_0", False)])
def test_types_that_gguf_cannot_read_are_left_out_and_said(
    case: Tuned, tmp_path: Path, file_type: str, all_of_it: bool
) -> None:
    found = retained_in_gguf("x", quantized(case.merged_gguf, file_type, tmp_path), case.merged_gguf, case.base_gguf)
    assert math.isnan(found.share) is all_of_it
    assert (f"14 tensors in {file_type} cannot be read" in found.note) is all_of_it


def test_a_runs_artifacts_are_all_looked_at(case: Tuned, tmp_path: Path) -> None:
    files = {"gguf/f16": case.merged_gguf, "gguf/q8_0": quantized(case.merged_gguf, "q8_0", tmp_path)}
    made = {
        name: QuantizedModel(
            folder=path.parent if path.is_file() else path,
            subject=name,
            file_name=path.name if path.is_file() else None,
            engine="llama_cpp" if path.is_file() else "hf",
            size_bytes=1,
            bits_per_weight=1,
            sha256="",
        )
        for name, path in {**files, "gptq/8bit": pack_folder(case.merged, tmp_path / "packed", bits=8)}.items()
    }
    found = retained_in(list(made.values()), case.merged, case.base, tmp_path)
    assert [share.subject for share in found] == list(made)
    assert [share.share for share in found] == pytest.approx([1, 1, 1], abs=0.02)
    (alone,) = retained_in([made["gptq/8bit"]], case.merged, case.base, tmp_path)
    assert alone == found[2]


def test_an_artifact_that_cannot_be_read_says_why_and_stops_nothing(case: Tuned, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(case.merged_gguf.read_bytes()[:-1000])
    models = [
        QuantizedModel(
            folder=path.parent,
            subject=name,
            file_name=path.name,
            engine="llama_cpp",
            size_bytes=1,
            bits_per_weight=1,
            sha256="",
        )
        for name, path in {"gguf/f16": case.merged_gguf, "gguf/q8_0": cut}.items()
    ]
    whole, broken = retained_in(models, case.merged, case.base, tmp_path)
    assert whole.share == pytest.approx(1)
    assert math.isnan(broken.share)
    assert "cut.gguf" in broken.note


# --- folders


def test_a_dense_folder_keeps_all_or_nothing(case: Tuned) -> None:
    assert retained_in_folder("x", case.merged, case.merged, case.base).share == 1
    assert retained_in_folder("x", case.base, case.merged, case.base).share == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_folder_keeps_what_its_codes_say(case: Tuned, tmp_path: Path, bits: int) -> None:
    path = pack_folder(case.merged, tmp_path / "packed", bits=bits)
    found = retained_in_folder("x", path, case.merged, case.base)
    with open_tensors(case.base) as base, open_tensors(case.merged) as merged:
        w0, w = (tensors.rows(CHANGED, 0, 512).astype(np.float64) for tensors in (base, merged))
    groups = w.reshape(512, -1, 64)
    middle = 1 << (bits - 1)
    scales = (np.abs(groups).max(2, keepdims=True) / (middle - 1)).astype(np.float16).astype(np.float64)
    rounded = (scales * (np.clip(np.round(groups / scales) + middle, 0, 2 * middle - 1) - middle)).reshape(w.shape)
    expected = float(((rounded - w0) * (w - w0)).sum() / ((w - w0) ** 2).sum())
    assert found.tensors == 14
    shares = dict(retained_in_folder("x", path, case.merged, case.base).lowest)
    assert shares.get(CHANGED, expected) == pytest.approx(expected, rel=1e-4)
    with open_tensors(path) as tensors:
        assert tensors.unpacked_columns(CHANGED, 0, 256) == pytest.approx(rounded, abs=1e-5)
        assert tensors.unpacked_columns(CHANGED, 64, 128) == pytest.approx(rounded[:, 64:128], abs=1e-5)


def test_a_packed_folder_of_the_base_keeps_little(case: Tuned, tmp_path: Path) -> None:
    """Plain rounding of the base knows nothing of the change: what is left is the rounding's own noise."""
    path = pack_folder(case.base, tmp_path / "packed", bits=8)
    assert abs(retained_in_folder("x", path, case.merged, case.base).share) < 0.02


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_words_mean_what_gptqmodel_reads(bits: int) -> None:
    """Random words, zero points and groups, read by gptqmodel's own layer."""
    with hf.quiet_gptqmodel():
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear

        layer = TorchLinear(bits=bits, group_size=32, sym=False, desc_act=True, in_features=128, out_features=64)
        generator = torch.Generator().manual_seed(bits)
        for name in ("qweight", "qzeros"):
            shape = getattr(layer, name).shape
            words = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, generator=generator)
            setattr(layer, name, words)
        layer.scales = torch.rand(layer.scales.shape, generator=generator).half()
        layer.g_idx = torch.randint(0, 4, (128,), dtype=torch.int32, generator=generator)
        layer.post_init()
        with torch.compiler.set_stance("force_eager"), torch.inference_mode():
            expected = layer.dequantize_weight().float().numpy()
    codes = unpack(layer.qweight.numpy().view(np.uint32), bits).astype(np.int64)
    zeros = unpack(layer.qzeros.numpy().view(np.uint32).T, bits).T.astype(np.int64)
    groups = layer.g_idx.numpy()
    found = layer.scales.float().numpy()[groups] * (codes - zeros[groups])
    # gptqmodel multiplies in float16
    assert found == pytest.approx(expected, abs=float(np.abs(expected).max()) * 2**-10)


def test_another_quantization_is_refused_by_name(case: Tuned, tmp_path: Path) -> None:
    path = pack_folder(case.merged, tmp_path / "packed")
    change_json(path / "config.json", lambda config: config["quantization_config"].update(quant_method="awq"))
    with pytest.raises(ModelError, match="'awq' with 4 bits"):
        retained_in_folder("x", path, case.merged, case.base)


def test_an_untied_head_is_compared_with_the_embedding_it_was(case: Tuned, tmp_path: Path) -> None:
    """An artifact that stores a tied matrix once stands in for a merged model that stores it twice."""
    shutil.copytree(case.merged, tmp_path / "untied")
    change_json(tmp_path / "untied/config.json", lambda config: config.update(tie_word_embeddings=False))

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.5

    change_weights(tmp_path / "untied", add_head)
    found = retained_in_folder("x", case.merged, tmp_path / "untied", case.base)
    assert found.lowest[0] == ("lm_head.weight", 0)


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1.0, None),
        (0.0, "was it made from the base?"),
        (0.14, "use more bits"),
        (1.13, "its rounding goes the way of the change"),
        (2.0, "was an adapter merged twice?"),
    ],
)
def test_the_terminal_says_what_a_share_may_come_from(share, said):
    from finetune.terminal import _kept

    kept = Retained(subject="x", share=share, quartiles=(share,) * 3, lowest=(), tensors=1, weights=9)
    found = _kept(kept)
    assert found is None if said is None else said in found
