"""Tuned rounding for a GPTQ folder: which way each weight is rounded is learned from what its block puts out.

AutoRound does it, by signed gradient descent (Cheng et al. 2023, arXiv 2309.05516), and writes the codes in GPTQ's
form: whoever loads such a folder sees no difference. It runs as a process of its own, since it changes transformers
while it is imported. What is in the folder is checked by `gptq`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from export.errors import ExportError, MachineError, MissingDependencyError
from export.formats._gptq_plan import Plan
from export.frozen import Frozen
from export.hardware import SHARES_CORES
from export.quantization_record import ModuleRecord

_BATCH_SEQUENCES = 8
_LAST_CHARACTERS = 600


class Tuning(Frozen):
    """What is asked of the process: the folder `source` as codes in `out`. `kept` are layers that stay in 16 bits."""

    source: Path
    out: Path
    bits: int
    group_size: int
    symmetric: bool
    steps: int
    sequences: tuple[tuple[int, ...], ...]
    kept: tuple[str, ...]
    computed_in: Literal["float32", "bfloat16"]


def require_tuning() -> None:
    """Raises MissingDependencyError where AutoRound is not installed; imports nothing."""
    if find_spec("auto_round") is None:
        raise MissingDependencyError("auto-round", "tuned rounding", "pip install 'fieldtune[tuned]'")


def tune(tuning: Tuning, plan: Plan) -> tuple[ModuleRecord, ...]:
    """Writes weights and config.json to the folder `out`; the layers' records.

    Raises ExportError, with what AutoRound said last, where it does not come to its end, and MachineError where it was
    killed.
    """
    with tempfile.TemporaryDirectory(prefix=".tuned-", dir=tuning.out.parent) as made:
        asked = Path(made) / "request.json"
        asked.write_text(tuning.model_copy(update={"out": Path(made) / "model"}).model_dump_json(), encoding="utf-8")
        # -P: a folder called export in the working directory is the user's, not this package
        command = [sys.executable, "-P", "-m", "export.formats._gptq_tuned", str(asked)]
        # all it needs is on this machine
        environment = {**SHARES_CORES, **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
        said = (done.stderr or done.stdout).strip()[-_LAST_CHARACTERS:]
        if done.returncode < 0:
            raise MachineError(f"AutoRound was killed by signal {-done.returncode} (out of memory, or a crash): {said}")
        configs = list((Path(made) / "model").rglob("config.json"))
        if done.returncode != 0 or len(configs) != 1:
            raise ExportError(f"AutoRound did not come to its end (status {done.returncode}); it last said:\n{said}")
        for path in configs[0].parent.iterdir():
            if path.suffix == ".safetensors":
                _store_in_16_bits(path)
            if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
                shutil.move(path, tuning.out / path.name)
        _write_configs(configs[0], tuning.out)
    tokens = sum(map(len, tuning.sequences))
    widths = {layer.name: layer.inputs for layer in plan.layers}
    return tuple(
        ModuleRecord(
            name=name,
            method="tuned rounding",
            samples=tokens,
            inputs=next(width for layer, width in widths.items() if name.endswith(f".{layer}")),
            loss=None,
            damp=0.0,
            unused_inputs=0,
            diagonal_raised=False,
        )
        for name in _packed_layers(tuning.out)
    )


def _store_in_16_bits(path: Path) -> None:
    """Stores what is not packed in bfloat16, as in every folder of ours; AutoRound leaves it as it was computed in."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    stored = {name: t.to(torch.bfloat16) if t.dtype == torch.float32 else t for name, t in tensors.items()}
    save_file(stored, path, metadata={"format": "pt"})


def _write_configs(source: Path, out: Path) -> None:
    """AutoRound's config.json, corrected: it says float16 of weights in bfloat16, and a damping it never used."""
    config = json.loads(source.read_text(encoding="utf-8"))
    del config["quantization_config"]["damp_percent"]
    config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": "bfloat16"}
    for name, content in (("config.json", config), ("quantize_config.json", config["quantization_config"])):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _packed_layers(folder: Path) -> Sequence[str]:
    """The names of the layers that are stored as codes."""
    from safetensors import safe_open

    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names += [key.removesuffix(".qweight") for key in file.keys() if key.endswith(".qweight")]  # noqa: SIM118
    return sorted(names)


def _tune_here(asked: Tuning) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    from export.hardware import torch_device
    from export.loading import open_model

    model = open_model(asked.source, dtype=getattr(torch, asked.computed_in)).model
    data = [
        {"input_ids": torch.tensor([list(ids)]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        for ids in asked.sequences
    ]
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(asked.source),
        bits=asked.bits,
        group_size=asked.group_size,
        sym=asked.symmetric,
        iters=asked.steps,
        nsamples=len(data),
        seqlen=len(asked.sequences[0]),
        batch_size=min(_BATCH_SEQUENCES, len(data)),
        dataset=data,
        layer_config={
            name: {"bits": 16}
            for name, _ in model.named_modules()
            if any(name.endswith(f".{kept}") for kept in asked.kept)
        },
        device_map=str(torch_device()),
        enable_torch_compile=False,
        amp=asked.computed_in == "bfloat16",  # its default, whatever the model was opened in
    )
    rounding.quantize_and_save(output_dir=str(asked.out), format="auto_gptq")


if __name__ == "__main__":
    _tune_here(Tuning.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
