"""GPTQ folders: what is stored, what loads, what is refused, and that nothing goes otherwise than asked unrecorded.

The arithmetic is checked against an unpacking written here, from the format's layout, and against plain rounding.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export import loading
from export.artifacts import ModelFolder, QuantizedModel, read_model_config
from export.engines import Subject, hf
from export.errors import ExportError
from export.formats import ExportRows, gptq
from export.formats._gptq_plan import LinearLayer, Plan, check_blocks_take_the_same, plan_for
from export.formats.gptq import Gptq
from export.quantization_record import QuantizationRecord, row_sha256
from export.readers.folder import open_tensors
from tests.export import predictions, tiny_models

ROWS = [[int(i) for i in np.random.default_rng(row).integers(0, 400, 60)] for row in range(40)]
UNSEEN = [int(i) for i in np.random.default_rng(99).integers(0, 400, 200)]


class Case(NamedTuple):
    architecture: tiny_models.Architecture
    bits: Any
    hidden_size: int
    tied: bool
    settings: Mapping[str, Any] = MappingProxyType({})


CASES = (
    Case("qwen2", 4, 256, True),
    Case("qwen2", 8, 224, False),
    Case("qwen3", 8, 256, True),
    Case("qwen3", 4, 224, False),
    Case("qwen3_5", 8, 256, True),
    Case("qwen2", 8, 256, True, {"desc_act": True, "symmetric": False}),
)


class Exported(NamedTuple):
    case: Case
    source: ModelFolder
    result: QuantizedModel


def never(variant: str) -> QuantizedModel:
    raise AssertionError(variant)


def export(case: Case, folder: Path, rows: list[list[int]] = ROWS) -> Exported:
    source = tiny_models.build(
        folder / "source", case.architecture, tied=case.tied, hidden_size=case.hidden_size, seed=1
    )
    settings = {"calibration_tokens": 128, "calibration_rows": 40, **case.settings}
    step = Gptq(bits=case.bits, **settings)
    (folder / "out").mkdir()
    return Exported(case, source, step.quantize(step.variants()[0], source, ExportRows(rows), folder / "out", never))


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c.architecture}-{c.bits}bit-{c.hidden_size}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(request.param, tmp_path_factory.mktemp("gptq"))


def plain_load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with hf.quiet_gptqmodel():
        return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        yield


def log_probs(folder: Path) -> NDArray[np.float32]:
    return predictions.log_probs(folder, UNSEEN)


def mean_kl(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float((np.exp(reference) * (reference - other)).sum(-1).mean())


def test_the_folder_is_close_to_the_dense_model(exported: Exported) -> None:
    # 4 bits of random weights lose much; half of that would already need the right zero points
    limit = 0.005 if exported.case.bits == 8 else 0.4
    assert 0 < mean_kl(log_probs(exported.source.folder), log_probs(exported.result.path)) < limit


def test_the_folder_loads_plainly_with_its_template_and_stop_token(exported: Exported) -> None:
    from transformers import AutoTokenizer

    model = plain_load(exported.result.path)
    tokenizer = AutoTokenizer.from_pretrained(exported.result.path)
    assert tokenizer.chat_template == tiny_models.CHAT_TEMPLATE
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert model(input_ids=torch.tensor([UNSEEN])).logits.isfinite().all()
    heads = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (heads[0].data_ptr() == heads[1].data_ptr()) is exported.case.tied


def test_other_files_are_copied_byte_for_byte(exported: Exported) -> None:
    names = {p.name for p in exported.source.folder.iterdir()} - {"config.json", "model.safetensors"}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= names
    for name in names:
        assert (exported.result.path / name).read_bytes() == (exported.source.folder / name).read_bytes()


def test_the_folder_does_not_publish_the_calibration_rows(exported: Exported) -> None:
    config = read_model_config(exported.result.path)["quantization_config"]
    assert config["dataset"] is None
    assert json.loads((exported.result.path / "quantize_config.json").read_text()) == config


def test_what_is_reported_is_what_is_stored(exported: Exported) -> None:
    stored = load_stored(exported.result.path)
    packed = [name for name in stored if name.endswith(".qweight")]
    dense = plain_dense(exported.source.folder)
    file = exported.result.path / "model.safetensors"
    weights = sum(p.numel() for p in dense.parameters())
    # the file's header is all that is not weights
    assert exported.result.bits_per_weight == pytest.approx(file.stat().st_size * 8 / weights, rel=0.06)
    assert exported.result.bits_per_weight * weights / 8 < file.stat().st_size
    group = 128 if exported.case.hidden_size == 256 else 32
    assert exported.result.tensor_types[f"int{exported.case.bits} (group {group})"] == len(packed)
    assert exported.result.size_bytes == file.stat().st_size
    tiny_models.assert_described_alike(exported.result)
    record = QuantizationRecord.model_validate_json((exported.result.path / gptq.RECORD).read_text())
    assert {f"{module.name}.qweight" for module in record.modules} == set(packed)
    assert all(module.method == "gptq" and module.samples == 18 * 128 for module in record.modules)
    assert record.calibration.tokens == 18 * 128
    assert record.calibration.rows_sha256 == tuple(map(row_sha256, ROWS))


def test_a_layer_computes_what_its_codes_say(exported: Exported) -> None:
    model = plain_load(exported.result.path)
    stored = load_stored(exported.result.path)
    name = "model.layers.0.mlp.down_proj"
    expected = dequantized(stored, name, exported.case.bits, v1=exported.case.settings.get("symmetric", True))
    layer = model.get_submodule(name)
    computed = layer(torch.eye(expected.shape[0], dtype=torch.bfloat16)).float().numpy()
    # bfloat16 keeps 8 bits: codes times scales are rounded by up to one part in 256, twice in the 4-bit kernel
    assert np.abs(computed - expected).max() <= np.abs(expected).max() / 100
    dense = plain_dense(exported.source.folder).get_submodule(name).weight.float().numpy().T
    step = np.abs(dense).max() / 2 ** (exported.case.bits - 1)
    assert np.abs(expected - dense).mean() < step


def test_the_layers_are_read_as_gptqmodel_reads_them(exported: Exported) -> None:
    """The weights by which it is told how much of a fine-tune is left."""
    model = plain_load(exported.result.path)
    with open_tensors(exported.result.path) as tensors:
        names = [name for name in tensors.names if name.endswith(".qweight")]
        for name in names:
            dense = name.replace(".qweight", ".weight")
            expected = model.get_submodule(name.removesuffix(".qweight")).dequantize_weight().T.float().numpy()
            found = tensors.unpacked_columns(dense, 0, expected.shape[1])
            assert np.abs(found - expected).max() <= np.abs(expected).max() / 256
    assert len(names) >= 14


def test_gptq_loses_less_on_its_calibration_rows_than_rounding(tmp_path: Path) -> None:
    exported = export(Case("qwen2", 4, 256, True), tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    dense = plain_dense(exported.source.folder)
    inputs: list[torch.Tensor] = []
    dense.get_submodule(name).register_forward_pre_hook(lambda _, given: inputs.append(given[0][0].float()))
    ids = [i for row in ROWS for i in row]
    dense(input_ids=torch.tensor([ids[start : start + 128] for start in range(0, 18 * 128, 128)][:1]))
    for start in range(128, 18 * 128, 128):
        dense(input_ids=torch.tensor([ids[start : start + 128]]))
    x = torch.cat(inputs).numpy()
    weight = dense.get_submodule(name).weight.float().numpy().T
    ours = dequantized(load_stored(exported.result.path), name, 4, v1=True)

    def lost(other: NDArray[np.float32]) -> float:
        return float(np.square(x @ (weight - other)).sum())

    assert lost(ours) < 0.9 * lost(rounded(weight, 4, 128))


def test_more_than_the_codes_is_not_shifted_by_the_format(exported: Exported) -> None:
    # optimum's own config.json names the version the weights were converted from
    config = read_model_config(exported.result.path)["quantization_config"]
    assert config["format"] == ("gptq" if exported.case.settings.get("symmetric", True) else "gptq_v2")


def test_hybrid_blocks_keep_their_small_gates(tmp_path: Path) -> None:
    config = read_model_config(tiny_models.build(tmp_path / "m", "qwen3_5", tied=True, hidden_size=256).folder)
    plan = plan_for(json.dumps(config))
    assert set(plan.kept) == {"linear_attn.in_proj_a", "linear_attn.in_proj_b"}
    assert plan.blocks_differ


def test_group_size_that_does_not_divide(tmp_path: Path) -> None:
    config = read_model_config(tiny_models.build(tmp_path / "m", "qwen2", tied=True, hidden_size=224).folder)
    with pytest.raises(ExportError, match=r"224 inputs, which 128 does not divide.*fit this model: 32;"):
        Gptq(group_size=128).check_model(config)
    Gptq(group_size=32).check_model(config)
    used, fallbacks = Gptq()._group_size(plan_for(json.dumps(config)))
    assert used == 32
    assert [(f.what, f.asked, f.used) for f in fallbacks] == [("group size", "128", "32")]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM.*linear layers"),
        ({"model_type": "gpt_sw3_unknown"}, "gpt_sw3_unknown.*no such language model"),
        ({"model_type": "qwen2", "quantization_config": {}}, "quantized already"),
    ],
)
def test_models_it_cannot_carry_are_refused_by_name(config: dict[str, object], reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        Gptq().check_model(config)


def test_a_layer_without_data_is_a_recorded_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    monkeypatch.setattr(Qwen2MLP, "forward", lambda self, x: self.down_proj(self.up_proj(x)))
    exported = export(Case("qwen2", 4, 256, True), tmp_path)
    found = {fallback.what: fallback for fallback in exported.result.fallbacks}
    assert set(found) == {"model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj"}
    assert all(f.used == "plain rounding" and "no calibration token" in f.reason for f in found.values())


def test_dead_inputs_and_raised_damping_are_recorded(tmp_path: Path) -> None:
    source = tiny_models.build(tmp_path / "source", "qwen2", tied=True, hidden_size=256)
    weights = {k: v.clone() for k, v in load_torch(source.folder).items()}
    weights["model.layers.0.input_layernorm.weight"][:3] = 0
    save_torch(weights, source.folder)
    (tmp_path / "out").mkdir()
    step = Gptq(calibration_rows=40)
    result = step.quantize("gptq-4bit", source, ExportRows(ROWS), tmp_path / "out", never)
    assert {f.what for f in result.fallbacks} == {f"model.layers.0.self_attn.{n}_proj" for n in "qkv"}
    assert all(f.used == "3 of 256 input columns set to zero" for f in result.fallbacks)


def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    source = tiny_models.build(tmp_path / "source", "qwen2", tied=True, hidden_size=256)
    weights = {k: v.clone() for k, v in load_torch(source.folder).items()}
    weights["model.layers.1.input_layernorm.weight"][0] = float("inf")
    save_torch(weights, source.folder)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"layers\.1\.self_attn\.q_proj are not finite"):
        Gptq().quantize("gptq-4bit", source, ExportRows(ROWS), tmp_path / "out", never)


def plan_of(inputs: int) -> Plan:
    layer = LinearLayer(name="mlp.down_proj", inputs=inputs, outputs=64)
    return Plan(layers=(layer,), passes=(("mlp.down_proj",),), kept={}, blocks_differ=False, attention_differs=False)


def test_rows_are_packed_end_to_end_without_padding() -> None:
    rows = [[1] * 40, [2] * 50, [3] * 10, [], [4] * 99]
    sequences, used, fallbacks = Gptq(calibration_tokens=32, calibration_rows=4)._calibration(
        ExportRows(rows), plan_of(64)
    )
    assert sequences == [(1,) * 32, (1,) * 8 + (2,) * 24, (2,) * 26 + (3,) * 6]
    assert (used.rows, used.tokens, used.sequences) == (3, 96, 3)
    assert used.rows_sha256 == tuple(row_sha256(row) for row in rows[:3])
    assert len(set(used.rows_sha256)) == 3
    assert [(f.what, f.asked, f.used) for f in fallbacks] == [("calibration rows", "4", "3")]


def test_general_rows_are_part_of_the_rows_asked_for_and_counted() -> None:
    step = Gptq(calibration_rows=4, calibration_tokens=32, general_share=0.5)
    given = ExportRows([[1] * 40, [2] * 40, [3] * 40], [[4] * 40, [5] * 40])
    sequences, used, fallbacks = step._calibration(given, plan_of(64))
    assert {token for sequence in sequences for token in sequence} == {1, 2, 4, 5}
    assert (used.rows, used.general_rows, fallbacks) == (4, 2, ())
    _, used, fallbacks = step._calibration(given._replace(general=[[4] * 40]), plan_of(64))
    assert (used.rows, used.general_rows) == (4, 1)
    assert [(f.what, f.asked, f.used) for f in fallbacks] == [("general calibration rows", "2", "1")]


def test_too_few_tokens_are_recorded_and_none_refused() -> None:
    step = Gptq(calibration_rows=1)
    _, _, fallbacks = step._calibration(ExportRows([[1] * 100]), plan_of(128))
    assert [(f.what, f.used) for f in fallbacks] == [("calibration tokens", "100")]
    with pytest.raises(ExportError, match="1 calibration rows with 5 tokens"):
        step._calibration(ExportRows([[1] * 5]), plan_of(128))


def test_blocks_called_differently_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_models.build(tmp_path / "m", "qwen3_5", tied=True, hidden_size=256)
    model = plain_dense(source.folder)
    check_blocks_take_the_same(model, tuple(UNSEEN))
    # eager attention needs a causal mask, which linear-attention blocks are not given
    model.config._attn_implementation = "eager"
    with pytest.raises(ExportError, match="different attention_mask"):
        check_blocks_take_the_same(model, tuple(UNSEEN))


def test_settings_read_one_width_or_several() -> None:
    assert Gptq.model_validate({"bits": 8}).variants() == ("gptq-8bit",)
    assert Gptq.model_validate({"bits": [4, 8, 4]}).variants() == ("gptq-4bit", "gptq-8bit")


def load_stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_torch(folder)


def load_torch(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file as load_tensors

    return load_tensors(folder / "model.safetensors")


def save_torch(weights: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def plain_dense(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def unpacked(words: NDArray[np.uint32], bits: int) -> NDArray[np.int64]:
    """Codes along a new last axis: the lowest bits of a 32-bit word come first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return ((words[..., None] >> shifts) & (2**bits - 1)).astype(np.int64)


def dequantized(stored: dict[str, torch.Tensor], name: str, bits: int, *, v1: bool) -> NDArray[np.float32]:
    """(in, out): scale times (code minus zero point) by group; the first version stores zero points less one."""
    words, zero_words, groups = (stored[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros", "g_idx"))
    scales = stored[f"{name}.scales"].float().numpy()
    codes = unpacked(words.view(np.uint32), bits).transpose(0, 2, 1).reshape(-1, words.shape[1])
    zeros = unpacked(zero_words.view(np.uint32), bits).reshape(scales.shape)
    zeros = (zeros + 1) % 2**bits if v1 else zeros
    return np.asarray(scales[groups] * (codes - zeros[groups]), dtype=np.float32)


def rounded(weight: NDArray[np.float32], bits: int, group_size: int) -> NDArray[np.float32]:
    """(in, out): every weight to the nearest point of its group's symmetric grid."""
    out = np.empty_like(weight)
    for start in range(0, weight.shape[0], group_size):
        group = weight[start : start + group_size]
        scale = 2 * np.abs(group).max(axis=0) / (2**bits - 1)
        zero = 2 ** (bits - 1)
        out[start : start + group_size] = scale * (np.clip(np.round(group / scale) + zero, 0, 2**bits - 1) - zero)
    return out


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
def test_on_a_gpu_the_kernel_is_the_one_that_takes_every_width(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_its_own = log_probs(exported.result.folder)
    dense = log_probs(exported.source.folder)
    monkeypatch.setattr(loading, "torch_device", lambda: "cuda:0")
    engine = hf.load_hf(Subject(name="x", engine="hf", path=exported.result.folder), vocabulary_size=None, threads=1)
    assert engine.kernel == "TorchLinear"
    seen = engine.log_probs(UNSEEN, range(1, len(UNSEEN)))
    # a processor's own kernel for 4 bits rounds what it is given
    assert predictions.divergence(seen, with_its_own) < 1e-3
    assert np.array_equal(log_probs(exported.source.folder), dense)
