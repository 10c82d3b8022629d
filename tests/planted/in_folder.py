"""Defects of a model folder, dense or GPTQ: of its files, its settings and its packed weights."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from export.artifacts import QuantizedModel
from export.formats import ExportRows
from export.formats.gptq import Gptq
from tests.export.artifact_edits import Weights, change_json, change_weights
from tests.planted.training import ROWS, Trained

CALIBRATION_ROWS = 24


# --- what its files say


def stop_id_changed(made: Trained, target: Path) -> Path:
    """The base's generation config is copied over the trained one: `<|endoftext|>` alone ends an answer (trl 3091)."""
    _copied(_gptq(made), target)
    pad = made.base.config["pad_token_id"]
    change_json(target / "generation_config.json", lambda values: values.update(eos_token_id=pad))
    return target


def template_in_config_changed(made: Trained, target: Path) -> Path:
    """Another template in tokenizer_config.json, where older runtimes look, and no chat_template.jinja."""
    _copied(made.merged.folder, target)
    path = target / "chat_template.jinja"
    changed = path.read_text(encoding="utf-8").replace("message['role']", "message['role'] | upper")
    path.unlink()
    change_json(target / "tokenizer_config.json", lambda values: values.update(chat_template=changed))
    return target


def shard_missing(made: Trained, target: Path) -> Path:
    """One of several files did not arrive."""
    _copied(made.merged.folder, target)
    path = target / "model.safetensors"
    tensors = load_file(path)
    files = {name: f"model-{1 + (i % 2):05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    first = {name: tensors[name] for name, file in files.items() if file.startswith("model-00001")}
    save_file(first, target / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    path.unlink()
    index = {"metadata": {}, "weight_map": files}
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return target


def tensor_missing(made: Trained, target: Path) -> Path:
    """A save that skips a tensor, which transformers fills with random numbers."""
    _copied(made.merged.folder, target)
    change_weights(target, lambda weights: weights.pop("model.layers.3.mlp.up_proj.weight"))
    return target


def cut_short(made: Trained, target: Path) -> Path:
    """A download that broke off: the last kilobyte of the weights is missing."""
    _copied(made.merged.folder, target)
    path = target / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1024])
    return target


# --- packed weights


def scales_wrong(made: Trained, target: Path) -> Path:
    """One module was packed with the scales of another pass: they are half as large again."""

    def scale(weights: Weights) -> None:
        weights["model.layers.3.mlp.down_proj.scales"] *= 1.5

    change_weights(_copied(_gptq(made), target), scale)
    return target


def zero_points_shifted(made: Trained, target: Path) -> Path:
    """The config names the second version of the format and the weights are in the first: as optimum writes them."""
    _copied(_gptq(made), target)
    second = {"checkpoint_format": "gptq_v2"}
    change_json(target / "config.json", lambda values: values["quantization_config"].update(second))
    change_json(target / "quantize_config.json", lambda values: values.update(second))
    return target


def calibrated_on_held_out(made: Trained, target: Path) -> Path:
    """The rows that a folder is judged on were among those it was calibrated on: its figures flatter it."""
    rows = tuple(item.ids for item in made.items(ROWS).items[:CALIBRATION_ROWS])
    target.mkdir()

    def made_before(variant: str) -> QuantizedModel:
        raise AssertionError(f"GPTQ is made from the merged model, and not from {variant}")

    Gptq(calibration_rows=len(rows)).quantize("gptq-4bit", made.merged, ExportRows(rows), target, made_before)
    return target


def _gptq(made: Trained) -> Path:
    return made.exports["gptq/4bit"].path


def _copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))
