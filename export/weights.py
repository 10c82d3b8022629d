"""What the weights of a model folder or a GGUF file really are, read from headers: no weight is loaded.

Every artifact is described from here, whether it was just made or lies at a path, so that one file has one size, one
number of bits per weight and one spelling of its types.
"""

import json
import struct
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from export.artifacts import read_model_config
from export.errors import ModelError
from export.frozen import Frozen
from export.promises import promised

# GPTQ packs weights into 32-bit words; the tensors with these endings say how to unpack them.
_WORD_BITS = 32
_UNPACKS = (".qzeros", ".scales", ".g_idx")


class WeightFacts(Frozen):
    """What a device must hold of a model, what its tensors take of that, and how many are stored in each type.

    `size_bytes` is the GGUF file (all its parts), or the weight files of a folder: without tokenizer and notes, which
    a folder may hold any number of. `weight_bytes` are the tensors' own bytes, without header and vocabulary: bits per
    weight are counted from them, or a small model with a large vocabulary would seem to have more bits than it stores.
    """

    size_bytes: int
    weight_bytes: int
    weights: int
    tensor_types: dict[str, int]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over stored weights; 0 where no weights could be read."""
        return self.weight_bytes * 8 / self.weights if self.weights else 0.0


def gguf_facts(path: Path) -> WeightFacts:
    """The facts of the GGUF file at `path`, with all parts of a split one. Raises ModelError when it cannot be read."""
    from export.readers.gguf import read_tensors

    try:
        tensors = read_tensors(path)
    except (ValueError, IndexError, OSError, KeyError) as error:
        raise ModelError(f"{path} cannot be read as GGUF: {error}. Copy or make the file again.") from error
    types = Counter(tensor.stored_as for tensor in tensors)
    return WeightFacts(
        size_bytes=sum(part.stat().st_size for part in {path, *(tensor.path for tensor in tensors)}),
        weight_bytes=sum(tensor.size_bytes for tensor in tensors),
        weights=sum(tensor.weights for tensor in tensors),
        tensor_types=dict(sorted(types.items())),
    )


def declared_bits(path: Path) -> int | None:
    """The nominal bits per weight that an artifact says it has: by its file type, or by how its layers are packed.

    None for a dense folder, and for what says nothing or cannot be read. A small model's 16-bit embeddings make a
    folder of 4-bit layers one of 12 bits per weight: what is to be asked of it goes by what its layers are.
    """
    from export.readers.gguf import read_gguf

    try:
        if path.is_dir():
            return _packing(path)[0]
        declared = read_gguf(path).declared_type
    except (ModelError, ValueError, IndexError, OSError, KeyError):
        return None
    return None if declared is None else promised(declared).bits


def weight_facts(folder: Path, pattern: str = "*.safetensors") -> WeightFacts:
    """Reads the headers of all safetensors files in `folder`. Raises ModelError when there are none, or one is cut.

    In a GPTQ folder a packed tensor counts as the weights in it, and what unpacks it (scales, zero points, order) as
    bytes alone.
    """
    size_bytes, weight_bytes, weights, types = 0, 0, 0, Counter[str]()
    files = sorted(folder.glob(pattern))
    if not files:
        raise ModelError(f"{folder} holds no safetensors weights ({pattern}).")
    bits, packed_type = _packing(folder)
    for path in files:
        size_bytes += path.stat().st_size
        for name, tensor in _header(path).items():
            begin, end = tensor["data_offsets"]
            weight_bytes += end - begin
            if name.endswith(_UNPACKS):
                continue
            packed = bits is not None and name.endswith(".qweight")
            count = prod(tensor["shape"])
            weights += count * _WORD_BITS // bits if packed and bits else count
            types[packed_type if packed else tensor["dtype"].lower()] += 1
    return WeightFacts(
        size_bytes=size_bytes, weight_bytes=weight_bytes, weights=weights, tensor_types=dict(sorted(types.items()))
    )


def _packing(folder: Path) -> tuple[int | None, str]:
    """Bits per packed weight of a GPTQ folder, and how its packed tensors are called; None for a dense folder."""
    path = folder / "config.json"
    settings = read_model_config(folder).get("quantization_config") if path.is_file() else None
    if not isinstance(settings, dict) or settings.get("quant_method") != "gptq":
        return None, ""
    bits = settings.get("bits")
    if bits not in (2, 3, 4, 8):
        raise ModelError(f"{path} says that its weights have {bits!r} bits; GPTQ packs 2, 3, 4 or 8.")
    return bits, f"int{bits} (group {settings.get('group_size')})"


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors a file declares. Layout: an 8-byte little-endian length, that many bytes of JSON, then the data."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
        header.pop("__metadata__", None)
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    # what is no header at all: an error page that was saved under the name, a few bytes
    except (struct.error, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}. Copy it again.") from None
    if path.stat().st_size != end:
        raise ModelError(f"{path} is cut short: it has {path.stat().st_size:,} bytes of {end:,}. Copy it again.")
    return dict(header)
