"""Reads a GGUF file without a runtime: its metadata, what each tensor is stored as, and a tensor's weights row by row.

The layout is the GGUF specification's (ggml, docs/gguf.md), versions 2 and 3. gguf's own reader makes an array of
every string: ten seconds and hundreds of megabytes for a vocabulary of 150,000 tokens, and a file that is cut short
is an error about shapes. What a runtime makes of the file is asked elsewhere (`export.engines`).
"""

import mmap
import re
import struct
from collections.abc import Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.artifacts import is_git_lfs_pointer
from export.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"GGUF"
_SHOWN_BYTES = 8
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# The specification's numbers of the value types that have a fixed size, as struct writes them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TYPE_AND_OFFSET_BYTES = 4 + 8
# What llama.cpp's gguf-split calls the parts of a model: the first of them names how many there are.
_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
# Weights that are held in float32 at a time, whatever the size of the tensor.
WEIGHTS_AT_ONCE = 1 << 22


class StoredTensor(NamedTuple):
    """One tensor as a GGUF file stores it; `row` is the number of weights per row, `stored_as` a ggml type."""

    name: str
    stored_as: str
    weights: int
    row: int
    size_bytes: int
    path: Path
    offset: int

    @property
    def rows(self) -> int:
        """How many rows there are, over all other dimensions."""
        return self.weights // self.row

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over stored weights."""
        return self.size_bytes * 8 / self.weights


class GgufContent(NamedTuple):
    """The metadata of a GGUF file (of its first part) and the tensors of all its parts, in their order."""

    metadata: dict[str, Any]
    tensors: tuple[StoredTensor, ...]

    def tensor(self, name: str) -> StoredTensor | None:
        """The tensor of that name, where there is one."""
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    @property
    def declared_type(self) -> str | None:
        """The file type of the metadata, in lower case; None where there is none, or a number that is not known."""
        import gguf

        numbers = {int(kind): name for name, kind in gguf.LlamaFileType.__members__.items()}
        number = self.metadata.get("general.file_type")
        name = numbers.get(number) if isinstance(number, int) else None
        return None if name is None or name == "GUESSED" else name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()


def read_gguf(path: Path) -> GgufContent:
    """What the GGUF file at `path` declares, with the other parts of a split model.

    Raises ModelError when it is no GGUF file, is cut short, or a part is missing.
    """
    content = _read_one(path)
    others = [tensor for part in _other_parts(path, content.metadata) for tensor in _read_one(part).tensors]
    return GgufContent(content.metadata, (*content.tensors, *others))


def read_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """Every tensor of the GGUF file at `path`, in its order; types in lower case ("q4_k"). Raises as `read_gguf`."""
    return read_gguf(path).tensors


class Header(NamedTuple):
    """The bytes of a GGUF file before its first tensor's data.

    `types_at` says where each tensor's type stands in them: a number of 32 bits, with its offset, of 64, behind it.
    """

    content: bytes
    types_at: dict[str, int]
    alignment: int


def read_header(path: Path) -> Header:
    """The header of the GGUF file at `path`, which is not a part of a split model. Raises as `read_gguf`."""
    read_gguf(path)  # says what is wrong with a file that cannot be read
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        cursor.position = len(MAGIC) + 4
        tensor_count, pairs = cursor.scalar("Q"), cursor.scalar("Q")
        metadata = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(pairs)}
        types_at = {}
        for _ in range(tensor_count):
            name = _declaration(cursor)[0]
            types_at[name] = cursor.position - _TYPE_AND_OFFSET_BYTES
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        return Header(data[: padded(cursor.position, alignment)], types_at, alignment)


def padded(size: int, alignment: int) -> int:
    """A number of bytes, filled up to a multiple of the alignment."""
    return -(-size // alignment) * alignment


def rows_of(tensor: StoredTensor, begin: int, end: int) -> "NDArray[np.float32]":
    """The weights of rows `begin` to `end`, de-quantized by gguf; shape (rows, row).

    Raises ModelError for a type that gguf cannot de-quantize.
    """
    import gguf
    import numpy as np

    row_bytes = tensor.size_bytes // tensor.rows
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset + begin * row_bytes)
        raw = np.frombuffer(file.read((end - begin) * row_bytes), dtype=np.uint8).reshape(end - begin, row_bytes)
    try:
        # a broken file's scales may be infinite
        with np.errstate(all="ignore"):
            weights = gguf.dequantize(raw, gguf.GGMLQuantizationType[tensor.stored_as.upper()])
    except NotImplementedError as error:
        raise ModelError(f"gguf cannot read the weights of {tensor.name}, stored as {tensor.stored_as}.") from error
    return np.asarray(weights, dtype=np.float32)


def block_size(stored_as: str) -> tuple[int, int]:
    """The weights and the bytes of one block of a ggml type, which is named in lower case."""
    return next((block, size) for name, block, size in _ggml_types().values() if name == stored_as)


def bits_per_weight(stored_as: str) -> float:
    """What a weight takes in that type, its block's scales included."""
    weights, size_bytes = block_size(stored_as)
    return size_bytes * 8 / weights


def row_spans(rows: int, row: int) -> Iterator[tuple[int, int]]:
    """Spans of rows that hold about `WEIGHTS_AT_ONCE` weights together."""
    step = max(1, WEIGHTS_AT_ONCE // row)
    return ((begin, min(rows, begin + step)) for begin in range(0, rows, step))


def _other_parts(path: Path, metadata: dict[str, Any]) -> list[Path]:
    named = _PART.match(path.name)
    count = metadata.get("split.count", 1)
    if named is None or not isinstance(count, int) or count <= 1:
        return []
    parts = [path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelError(f"{path} is one of {count} parts, of which {', '.join(missing)} is not there. Copy it again.")
    return [part for part in parts if part != path]


def _read_one(path: Path) -> GgufContent:
    if not path.is_file() or path.stat().st_size < len(MAGIC):
        what = "not there" if not path.is_file() else "too short to be one" if path.stat().st_size else "empty"
        raise ModelError(f"{path} is not a GGUF file: it is {what}. Copy it again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != MAGIC:
            raise ModelError(_foreign(path, data[:_SHOWN_BYTES]))
        try:
            return _parse(path, _Cursor(data), len(data))
        except struct.error:
            raise ModelError(_cut_short(path, len(data), "and ends inside its header")) from None


def _foreign(path: Path, begins: bytes) -> str:
    """What is said of a file that is something else, whatever its name: with its first bytes, as text where they are.

    Most often it is a page or a pointer that was saved in the model's place.
    """
    if is_git_lfs_pointer(path):
        return f"{path} is a Git LFS pointer and not the model. Run 'git lfs pull' in {path.parent}."
    shown = f"'{begins.decode()}'" if begins.isascii() and begins.decode().isprintable() else begins.hex(" ")
    return (
        f"{path} is not a GGUF file, whatever its name: it begins with {shown}; expected 'GGUF'. Download or convert "
        "the model again."
    )


def _parse(path: Path, cursor: "_Cursor", size: int) -> GgufContent:
    cursor.position = len(MAGIC)
    version = cursor.scalar("I")
    if version not in VERSIONS:
        raise ModelError(f"{path} is GGUF version {version}; versions {VERSIONS} can be read. Convert the model again.")
    tensor_count, pairs = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(pairs)}
    declared = [_declaration(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ModelError(f"{path} aligns its tensors to {alignment!r} bytes: the file is damaged. Copy it again.")
    begin = -(-cursor.position // alignment) * alignment
    tensors = tuple(_stored(path, name, shape, kind, begin + offset) for name, shape, kind, offset in declared)
    end = max((tensor.offset + tensor.size_bytes for tensor in tensors), default=begin)
    if size < end:
        raise ModelError(_cut_short(path, size, f"of {end:,}"))
    return GgufContent(metadata, tensors)


def _cut_short(path: Path, size: int, rest: str) -> str:
    return f"{path} is cut short: it has {size:,} bytes {rest}. Copy it again."


def _declaration(cursor: "_Cursor") -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's name, its dimensions (the row first), the number of its type, and where its data begins."""
    name = cursor.string()
    shape = tuple(cursor.numbers("Q", cursor.scalar("I")))
    return name, shape, cursor.scalar("I"), cursor.scalar("Q")


def _stored(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
    types = _ggml_types()
    if kind not in types or not prod(shape):
        raise ModelError(f"{path}: the tensor {name} has the unknown type {kind}, or is empty. Convert it again.")
    stored_as, block, block_bytes = types[kind]
    weights = prod(shape)
    size_bytes = weights // block * block_bytes
    return StoredTensor(name, stored_as, weights, shape[0] if shape else 1, size_bytes, path, offset)


@cache
def _ggml_types() -> dict[int, tuple[str, int, int]]:
    """Each ggml type's name, and the weights and bytes of one of its blocks."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): (kind.name.lower(), *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


class _Cursor:
    """Reads value after value; struct.error where the file ends first."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def scalar(self, form: str) -> Any:
        """One number."""
        (value,) = self.numbers(form, 1)
        return value

    def numbers(self, form: str, count: int) -> tuple[Any, ...]:
        """`count` numbers of one type."""
        size = struct.calcsize(f"<{form}") * count
        begin = self._advance(size)
        return struct.unpack_from(f"<{count}{form}", self._data, begin)

    def string(self) -> str:
        """A length and that many bytes of UTF-8."""
        length = self.scalar("Q")
        begin = self._advance(length)
        return self._data[begin : begin + length].decode(errors="replace")

    def value(self, kind: int) -> Any:
        """A value of any type; arrays become lists."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            if inner in _SCALARS:
                return list(self.numbers(_SCALARS[inner], count))
            return [self.value(inner) for _ in range(count)]
        if kind not in _SCALARS:
            raise ModelError(
                f"the header holds a value of the unknown type {kind}: the file is damaged. Copy it again."
            )
        return self.scalar(_SCALARS[kind])

    def _advance(self, size: int) -> int:
        begin = self.position
        if begin + size > len(self._data):
            raise struct.error("the file ends here")
        self.position = begin + size
        return begin
