"""Tuned rounding: a folder that loads as any GPTQ folder, loses less than plain rounding and says how it was made."""

import json
import sys

import numpy as np
import pytest
import torch

from export.errors import ExportError, MachineError, MissingDependencyError
from export.formats import ExportRows, _gptq_tuned, gptq
from export.formats.gptq import Gptq
from export.quantization_record import RECORD, QuantizationRecord
from tests.export import predictions, tiny_models

ROWS = [[int(i) for i in np.random.default_rng(row).integers(0, 400, 60)] for row in range(40)]
SEEN = [token for row in ROWS[:4] for token in row]


def never(variant):
    raise AssertionError(variant)


def quantized(source, variant, out):
    step = Gptq(
        bits=4, when_failing="tuned", tuning_steps=20, calibration_tokens=64, calibration_rows=40, group_size=32
    )
    out.mkdir()
    return step.quantize(variant, source, ExportRows(ROWS), out, never)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("source"), "qwen2", tied=True, hidden_size=64, seed=1)


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    return quantized(source, "gptq-4bit-tuned", tmp_path_factory.mktemp("tuned") / "out")


@pytest.fixture(autouse=True)
def no_compiler():
    with torch.compiler.set_stance("force_eager"):
        yield


def _divergence(source, folder):
    dense, rounded = (predictions.log_probs(path, SEEN).astype(np.float64) for path in (source.folder, folder))
    return float((np.exp(dense) * (dense - rounded)).sum(1).mean())


def _rounded_plainly(source, out):
    """The same grid by nearest rounding, worked out here: groups of 32, symmetric, the largest value at its end."""
    from safetensors.torch import load_file, save_file

    weights = {name: tensor.clone() for name, tensor in load_file(source.folder / "model.safetensors").items()}
    for name, tensor in weights.items():
        if ".layers." in name and tensor.ndim == 2:
            groups = tensor.float().reshape(tensor.shape[0], -1, 32)
            scale = groups.abs().amax(-1, keepdim=True) / 7.5
            weights[name] = ((groups / scale).round().clamp(-8, 7) * scale).reshape(tensor.shape).to(tensor.dtype)
    for path in source.folder.iterdir():
        if path.suffix == ".json" or path.suffix == ".jinja":
            (out / path.name).write_bytes(path.read_bytes())
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def test_it_loses_less_on_its_calibration_rows_than_rounding(source, tuned, tmp_path):
    _rounded_plainly(source, tmp_path)
    assert 0 < _divergence(source, tuned.path) < 0.6 * _divergence(source, tmp_path)  # 0.43; without tuning 0.74


def test_its_name_promises_its_bits_and_its_record_says_how(source, tuned):
    from export.promises import promised

    assert tuned.subject == "gptq/4bit-tuned"
    assert promised(tuned.subject).bits == 4
    record = QuantizationRecord.model_validate_json((tuned.path / RECORD).read_text(encoding="utf-8"))
    assert (record.bits, record.group_size, record.tuning_steps, record.damp) == (4, 32, 20, 0.0)
    assert {module.method for module in record.modules} == {"tuned rounding"}
    assert len(record.modules) == 7 * 2  # every linear layer of both blocks
    assert record.calibration.rows == 40
    assert tuned.fallbacks == ()
    assert tuned.tools["auto-round"]
    config = json.loads((tuned.path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert (config["quant_method"], config["bits"], config["group_size"], config["sym"]) == ("gptq", 4, 32, True)
    assert "damp_percent" not in config  # AutoRound names one and uses none
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tuned.path / name).read_bytes() == (source.folder / name).read_bytes()


def test_it_is_computed_in_what_the_record_says_and_stored_in_what_the_config_says(
    source, tuned, tmp_path, monkeypatch
):
    """Both ways: as this machine computes, and as another does."""
    from safetensors.torch import load_file

    here = gptq.compute_dtype()
    other = "float32" if here == "bfloat16" else "bfloat16"
    monkeypatch.setattr(gptq, "compute_dtype", lambda: other)
    for made, computed_in in ((tuned, here), (quantized(source, "gptq-4bit-tuned", tmp_path / "out"), other)):
        record = QuantizationRecord.model_validate_json((made.path / RECORD).read_text(encoding="utf-8"))
        config = json.loads((made.path / "config.json").read_text(encoding="utf-8"))
        assert record.computed_in == computed_in
        # AutoRound's own account, which it writes where it is not its default
        assert config["quantization_config"].get("amp", True) == (computed_in == "bfloat16")
        assert config["dtype"] == "bfloat16" and "torch_dtype" not in config
        stored = load_file(made.path / "model.safetensors")
        assert {t.dtype for name, t in stored.items() if name.endswith(".weight")} == {torch.bfloat16}


def test_layers_that_fill_no_words_stay_in_16_bits_and_are_told(tmp_path):
    from safetensors.torch import load_file

    source = tiny_models.build(
        tmp_path / "source", "qwen2", tied=True, hidden_size=64, seed=1, intermediate_size=16 * 3
    )
    made = quantized(source, "gptq-4bit-tuned", tmp_path / "out")
    kept = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert {fallback.what for fallback in made.fallbacks} == kept
    names = load_file(made.path / "model.safetensors").keys()
    for layer in range(2):
        for name in kept:
            assert f"model.layers.{layer}.{name}.weight" in names
        assert f"model.layers.{layer}.self_attn.q_proj.qweight" in names


@pytest.mark.parametrize("architecture", [a for a in tiny_models.ARCHITECTURES if a != "qwen2"])
def test_an_architecture_is_tuned_or_refused_before_anything_is_trained(tmp_path, architecture):
    """Besides the one that all the others here are of."""
    source = tiny_models.build(tmp_path / "source", architecture, tied=True, hidden_size=64, seed=1)
    step = Gptq(when_failing=("tuned", 8))
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    if architecture == "qwen3_5":  # AutoRound gives all blocks the first one's mask
        with pytest.raises(ExportError, match="'tuned' cannot be used for qwen3_5"):
            step.check_model(config)
        Gptq(when_failing=8).check_model(config)
    else:
        step.check_model(config)
        assert quantized(source, "gptq-4bit-tuned", tmp_path / "out").subject == "gptq/4bit-tuned"


def test_blocks_that_look_back_differently_are_refused_though_their_layers_are_alike(tmp_path):
    source = tiny_models.build(tmp_path / "source", "qwen3", tied=True, hidden_size=64)
    config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    windowed = {**config, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    windowed["layer_types"] = ["full_attention", "sliding_attention"]
    with pytest.raises(ExportError, match="'tuned' cannot be used for qwen3"):
        Gptq(when_failing="tuned").check_model(windowed)
    Gptq(when_failing=8).check_model(windowed)


def test_what_tuning_cannot_write_is_refused():
    with pytest.raises(ValueError, match="no code for a zero point of 0"):
        Gptq(when_failing="tuned", symmetric=False)


def test_a_folder_called_export_where_it_is_run_is_the_users(source, tmp_path, monkeypatch):
    """And what cannot be done as asked is told: tuned rounding knows no order of columns, and inverts no Hessian."""
    (tmp_path / "export.py").write_text("raise SystemExit('the user's own')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    step = Gptq(
        bits=4,
        when_failing="tuned",
        tuning_steps=1,
        calibration_tokens=64,
        calibration_rows=40,
        desc_act=True,
        damp=0.3,
    )
    (tmp_path / "out").mkdir()
    made = step.quantize("gptq-4bit-tuned", source, ExportRows(ROWS), tmp_path / "out", never)
    told = [(f.what, f.asked, f.used) for f in made.fallbacks if f.what != "group size"]
    assert told == [("desc_act", "true", "false"), ("damp", "0.3", "none")]


def test_a_process_that_is_killed_is_not_the_models_fault(source, tmp_path, monkeypatch):
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(MachineError, match="killed by signal 9"):
        quantized(source, "gptq-4bit-tuned", tmp_path / "out")


def test_it_is_tried_after_the_bits_that_failed_and_depends_on_its_steps_alone():
    step = Gptq(bits=(4, 3), when_failing=("tuned", 8))
    assert (step.variants(), step.further()) == (("gptq-4bit", "gptq-3bit"), ("gptq-4bit-tuned", "gptq-8bit"))
    more = step.model_copy(update={"tuning_steps": 500})
    assert more.settings_for("gptq-4bit") == step.settings_for("gptq-4bit")
    assert more.settings_for("gptq-4bit-tuned") != step.settings_for("gptq-4bit-tuned")
    # a folder of GPTQ's own is not made again because AutoRound was replaced
    assert "auto-round" not in step.tool_versions()
    assert step.settings_for("gptq-4bit-tuned")["tuned by"]


def test_without_the_package_it_is_refused_before_anything_is_trained(monkeypatch):
    plain = _gptq_tuned.find_spec
    monkeypatch.setattr(_gptq_tuned, "find_spec", lambda name: None if name == "auto_round" else plain(name))
    Gptq().check_installed()
    with pytest.raises(MissingDependencyError, match=r"fieldtune\[tuned\]"):
        Gptq(when_failing="tuned").check_installed()


def test_what_stops_it_is_told_and_leaves_nothing(source, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ExportError, match="AutoRound did not come to its end"):
        quantized(source, "gptq-4bit-tuned", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".safetensors"]
