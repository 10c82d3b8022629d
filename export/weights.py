"""What a folder's safetensors files really hold, read from their headers: no weight is loaded."""

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from export.errors import ModelError
from export.frozen import Frozen


class WeightFacts(Frozen):
    """Bytes and number of the weights in a folder, and how many tensors are stored in each type."""

    size_bytes: int
    weights: int
    tensor_types: dict[str, int]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over stored weights."""
        return self.size_bytes * 8 / self.weights


def weight_facts(folder: Path, pattern: str = "*.safetensors") -> WeightFacts:
    """Reads the headers of all safetensors files in `folder`. Raises ModelError when there are none, or one is cut."""
    size_bytes, weights, types = 0, 0, Counter[str]()
    files = sorted(folder.glob(pattern))
    if not files:
        raise ModelError(f"{folder} holds no safetensors weights ({pattern}).")
    for path in files:
        for tensor in _header(path).values():
            begin, end = tensor["data_offsets"]
            count = 1
            for length in tensor["shape"]:
                count *= length
            size_bytes += end - begin
            weights += count
            types[tensor["dtype"].lower()] += 1
    return WeightFacts(size_bytes=size_bytes, weights=weights, tensor_types=dict(types))


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors a file declares. Layout: an 8-byte little-endian length, that many bytes of JSON, then the data."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if path.stat().st_size != end:
        raise ModelError(f"{path} is cut short: it has {path.stat().st_size:,} bytes of {end:,}. Copy it again.")
    return dict(header)
