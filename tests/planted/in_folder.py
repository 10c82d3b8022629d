"""Defects of a model folder, dense or GPTQ: of its files, its settings and its packed weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from export.artifacts import QuantizedModel
from export.formats.gptq import Gptq
from tests.planted.training import ROWS, Trained

Tensors = dict[str, Any]
CALIBRATION_ROWS = 24


# --- what its files say


def stop_id_changed(made: Trained, target: Path) -> Path:
    """The base's generation config is copied over the trained one: `<|endoftext|>` alone ends an answer (trl 3091)."""
    _copied(_gptq(made), target)
    return _set(target, "generation_config.json", eos_token_id=made.base.config["pad_token_id"])


def tokenizer_end_changed(made: Trained, target: Path) -> Path:
    """A tokenizer saved by a trainer that made the padding token the end (trl 1623)."""
    _copied(made.merged.folder, target)
    return _set(target, "tokenizer_config.json", eos_token="<|endoftext|>")


def template_changed(made: Trained, target: Path) -> Path:
    """The folder is saved with a trainer's template: a line break that was trained on is not written (unsloth 976)."""
    _copied(made.merged.folder, target)
    template = target / "chat_template.jinja"
    written = template.read_text(encoding="utf-8")
    template.write_text(written.replace("<|im_end|>\\n", "<|im_end|>"), encoding="utf-8")
    return target


def template_in_config_changed(made: Trained, target: Path) -> Path:
    """Another template in tokenizer_config.json, where older runtimes look, and no chat_template.jinja."""
    _copied(made.merged.folder, target)
    path = target / "chat_template.jinja"
    changed = path.read_text(encoding="utf-8").replace("message['role']", "message['role'] | upper")
    path.unlink()
    return _set(target, "tokenizer_config.json", chat_template=changed)


def merges_cut_short(made: Trained, target: Path) -> Path:
    """Saving a tokenizer loses merges (unsloth 2667)."""
    _copied(made.merged.folder, target)
    path = target / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = content["model"]["merges"][: len(content["model"]["merges"]) // 2]
    path.write_text(json.dumps(content), encoding="utf-8")
    return target


def rope_base_changed(made: Trained, target: Path) -> Path:
    """A config written anew has the rotary base of another family (llama.cpp pull request 10698)."""
    _copied(made.merged.folder, target)
    return _set(target, "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e6})


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

    def edit(tensors: Tensors) -> None:
        del tensors["model.layers.3.mlp.up_proj.weight"]

    return _edited(made.merged.folder, target, edit)


def vocabulary_truncated(made: Trained, target: Path) -> Path:
    """Embeddings are resized to too few tokens (transformers 32526)."""
    kept = made.base.config["vocab_size"] - 64

    def edit(tensors: Tensors) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:kept].contiguous()

    _edited(made.merged.folder, target, edit)
    return _set(target, "config.json", vocab_size=kept)


def cut_short(made: Trained, target: Path) -> Path:
    """A download that broke off: the last kilobyte of the weights is missing."""
    _copied(made.merged.folder, target)
    path = target / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1024])
    return target


# --- packed weights


def scales_wrong(made: Trained, target: Path) -> Path:
    """One module was packed with the scales of another pass: they are half as large again."""

    def edit(tensors: Tensors) -> None:
        tensors["model.layers.3.mlp.down_proj.scales"] *= 1.5

    return _edited(_gptq(made), target, edit)


def zero_points_shifted(made: Trained, target: Path) -> Path:
    """The config names the second version of the format and the weights are in the first: as optimum writes them."""
    _copied(_gptq(made), target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    settings = config["quantization_config"] | {"checkpoint_format": "gptq_v2"}
    _set(target, "quantize_config.json", checkpoint_format="gptq_v2")
    return _set(target, "config.json", quantization_config=settings)


def bits_mislabelled(made: Trained, target: Path) -> Path:
    """The config says 8 bits, and the layers hold 4."""
    _copied(_gptq(made), target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    return _set(target, "config.json", quantization_config=config["quantization_config"] | {"bits": 8})


def calibrated_on_held_out(made: Trained, target: Path) -> Path:
    """The rows that a folder is judged on were among those it was calibrated on: its figures flatter it."""
    rows = tuple(item.ids for item in made.items(ROWS).items[:CALIBRATION_ROWS])
    target.mkdir()

    def made_before(variant: str) -> QuantizedModel:
        raise AssertionError(f"GPTQ is made from the merged model, and not from {variant}")

    Gptq(calibration_rows=len(rows)).quantize("gptq-4bit", made.merged, rows, target, made_before)
    return target


def _gptq(made: Trained) -> Path:
    return made.exports["gptq/4bit"].path


def _copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def _edited(folder: Path, target: Path, edit: Callable[[Tensors], None]) -> Path:
    """A copy of a folder whose tensors were edited."""
    path = _copied(folder, target) / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return target


def _set(folder: Path, file: str, **changes: Any) -> Path:
    path = folder / file
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes, indent=2), encoding="utf-8")
    return folder
