"""Defects of training and merging: a model whose weights are whole, and not the ones that were meant.

Each is merged, converted and quantized as an honest one is.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from export.artifacts import ModelFolder
from export.converter import convert
from export.formats._gguf_quantize import quantize_file
from finetune.base_model import BaseModelSource
from finetune.merge import merge
from tests.export.artifact_edits import Weights
from tests.planted.training import Trained


def adapter_not_merged(made: Trained, target: Path) -> Path:
    """The base is converted in place of the merged folder, which lies beside it."""
    return _shipped(made.base.path, target)


def adapter_merged_twice(made: Trained, target: Path) -> Path:
    """The adapter is merged onto a folder that it was merged into before."""
    return _merged(made, target, onto=made.merged.folder)


def wrong_base(made: Trained, target: Path) -> Path:
    """The adapter is merged onto another release of the base: of the same shapes, a tenth of each matrix is other."""

    def edit(weights: Weights) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, matrix in weights.items():
            if matrix.ndim > 1:
                noise = torch.randn(matrix.shape, generator=generator) * matrix.float().std()
                weights[name] = (matrix.float() + 0.1 * noise).to(matrix.dtype)

    with TemporaryDirectory() as place:
        return _merged(made, target, onto=_edited(made.base.path, Path(place) / "base", edit))


def earlier_step(share: float) -> Callable[[Trained, Path], Path]:
    """A checkpoint from before the end of training is merged; `share` says which."""

    def build(made: Trained, target: Path) -> Path:
        steps = made.adapter.steps
        step = min(made.checkpoints, key=lambda step: abs(step - share * steps))
        return _merged(made, target, adapter=made.checkpoints[step])

    return build


def scale_forgotten(made: Trained, target: Path) -> Path:
    """A merge of one's own forgets that the update is multiplied by alpha over rank, which is 2 here."""

    def edit(weights: Weights) -> None:
        for name in [name for name in weights if "lora_B" in name]:
            weights[name] /= 2

    return _with_other_adapter(made, target, edit)


def one_layer_left_out(made: Trained, target: Path) -> Path:
    """Names that do not match: the update of one layer of six is not merged."""

    def edit(weights: Weights) -> None:
        for name in [name for name in weights if ".layers.3." in name and "lora_B" in name]:
            weights[name] *= 0

    return _with_other_adapter(made, target, edit)


def one_matrix_left_out(made: Trained, target: Path) -> Path:
    """Names that do not match: the update of one matrix of 42 is not merged."""

    def edit(weights: Weights) -> None:
        for name in [name for name in weights if ".layers.3.mlp.down_proj.lora_B" in name]:
            weights[name] *= 0

    return _with_other_adapter(made, target, edit)


def _with_other_adapter(made: Trained, target: Path, edit: Callable[[Weights], None]) -> Path:
    with TemporaryDirectory() as place:
        adapter = _edited(made.adapter.folder, Path(place) / "adapter", edit)
        return _merged(made, target, adapter=adapter)


def _merged(made: Trained, target: Path, *, onto: Path | None = None, adapter: Path | None = None) -> Path:
    """`adapter` merged onto the base at `onto`; each is the run's own unless it is named."""
    base: BaseModelSource = made.base.model_copy(update={"path": onto or made.base.path})
    used = made.adapter.model_copy(update={"folder": adapter or made.adapter.folder})
    with TemporaryDirectory() as place:
        merged: ModelFolder = merge(used, base, Path(place), onto="16bit", dtype="bfloat16")
        return _shipped(merged.folder, target)


def _shipped(folder: Path, target: Path) -> Path:
    """The model folder as a file in Q4_K_M."""
    with TemporaryDirectory() as place:
        sixteen, _ = convert(folder, "starter", Path(place))
        quantize_file(sixteen, "q4_k_m", target)
    return target


def _edited(folder: Path, target: Path, edit: Callable[[Weights], None]) -> Path:
    """A copy of a folder whose weights were edited."""
    shutil.copytree(folder, target)
    (path,) = target.glob("*.safetensors")
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})
    return target
