"""GGUF files whose header is whole and whose weights are a hole: they take no disk, and no time to make.

llama.cpp tells from a header what a quantization would make of each tensor, and how much memory a context takes. A hole
reads as zeros, which every tensor type de-quantizes to 0.0: such a file also runs, and as fast as any other.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """A tensor that a skeleton declares: its type in lower case, and its dimensions, the rows' number first."""

    name: str
    stored_as: str
    dimensions: tuple[int, ...]


def write(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Sequence[Shape]) -> None:
    """Writes a skeleton of these tensors; `metadata` holds whole numbers, fractions, texts, truth values and lists.

    A model folder's own skeleton is written by `export.converter.convert_header`.
    """
    import gguf
    import numpy as np

    from export.converter import write_with_hole

    writer = gguf.GGUFWriter(None, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.stored_as.upper()]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size_bytes = prod(tensor.dimensions) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.dimensions, np.dtype(np.float16), size_bytes, raw_dtype=kind)
    write_with_hole(writer, path)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
