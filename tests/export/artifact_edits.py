"""Makes broken artifacts of whole ones: GGUF files with other metadata or tensors, and GPTQ folders rounded plainly.

Written with the gguf package's writer and with packing of its own, so that nothing under test is used.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

Metadata = dict[str, Any]
Weights = dict[str, Any]


def rewrite_gguf(
    source: Path,
    target: Path,
    metadata: Callable[[Metadata], None] = lambda _: None,
    tensors: Callable[[Weights], None] = lambda _: None,
) -> Path:
    """A copy of a GGUF file after `metadata` and `tensors` have changed what they are given, in place.

    Metadata are plain values; a new key gets the type of its value. Tensors are arrays as they are stored; a new one is
    stored in float32.
    """
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    values = {name: field.contents() for name, field in fields.items()}
    stored = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    metadata(values)
    tensors(stored)
    writer = gguf.GGUFWriter(target, values.pop("general.architecture"))
    for name, value in values.items():
        known = fields[name].types if name in fields else [_type_of(value)]
        inner = known[-1] if known[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, known[0], inner)
    for name, array in stored.items():
        kind = types.get(name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(name, array, raw_shape=array.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _type_of(value: Any) -> gguf.GGUFValueType:
    # ids and counts: llama.cpp refuses signed ones
    return gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites a JSON file after `change` has changed its content in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[Weights], None]) -> None:
    """Rewrites a folder's model.safetensors after `change` has changed the tensors in place."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def pack_folder(source: Path, target: Path, *, bits: int = 4, group_size: int = 64) -> Path:
    """A GPTQ folder whose layers are rounded plainly to a grid that is symmetric around zero."""
    shutil.copytree(source, target)

    def pack(tensors: Weights) -> None:
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            for part, tensor in packed(tensors.pop(name).float().numpy(), bits, group_size).items():
                tensors[f"{name.removesuffix('.weight')}.{part}"] = torch.from_numpy(np.ascontiguousarray(tensor))

    change_weights(target, pack)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": True, "desc_act": False}
    change_json(target / "config.json", lambda config: config.update(quantization_config=settings))
    return target


def packed(weight: np.ndarray, bits: int, group_size: int) -> dict[str, np.ndarray]:
    """A matrix (outputs, inputs) in the first version of the GPTQ format, in which zero points are stored less one."""
    groups = weight.T.reshape(-1, group_size, weight.shape[0])
    middle = 1 << (bits - 1)
    scales = (np.abs(groups).max(1) / (middle - 1)).astype(np.float16)
    codes = np.clip(np.round(groups / scales.astype(np.float32)[:, None]) + middle, 0, 2 * middle - 1)
    inputs = weight.shape[1]
    return {
        "qweight": _words(codes.reshape(inputs, -1).astype(np.uint8), bits),
        "qzeros": _words(np.full_like(scales, middle - 1, dtype=np.uint8).T, bits).T,
        "scales": scales,
        "g_idx": (np.arange(inputs) // group_size).astype(np.int32),
    }


def _words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the first axis as one stream of bits, the lowest first, in 32-bit words: (n, m) to (n*bits/32, m)."""
    stream = np.unpackbits(codes[:, None, :], axis=1, bitorder="little")[:, :bits].reshape(-1, 32, codes.shape[1])
    as_bytes = np.packbits(stream, axis=1, bitorder="little").transpose(0, 2, 1)
    return np.ascontiguousarray(as_bytes).view(np.int32)[..., 0]
