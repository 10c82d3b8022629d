"""The exact size of a GGUF file of any type, before it is made, and what each of its tensors would be stored as.

llama.cpp's own quantizer is asked, in its dry run, which type each tensor gets; its total leaves the header out and is
rounded, so the size is summed up here: the header, which quantizing does not lengthen, and each tensor padded to the
file's alignment. Files made with importance data have a few hundred bytes of notes more.
"""

import ctypes
import re
from pathlib import Path

from export.engines.llama_library import captured_log
from export.errors import ExportError
from export.frozen import Frozen
from export.readers.gguf import DEFAULT_ALIGNMENT, GgufContent, StoredTensor, block_size

# One line for each tensor; without an arrow it stays what it is.
_LINE = re.compile(r"^\[ *\d+/ *\d+\] +(?P<name>\S+) +- \[.*?type = +(?P<was>\w+),.*?(?:\((?P<becomes>\w+)\))?$", re.M)
SIXTEEN_BIT = "f16"


class PlannedTensor(Frozen):
    """A tensor as a file would store it; `row` is the number of weights in a row."""

    name: str
    stored_as: str
    weights: int
    row: int
    size_bytes: int

    @property
    def rows(self) -> int:
        """How many rows there are, over all other dimensions."""
        return self.weights // self.row


class PlannedFile(Frozen):
    """A GGUF file that could be made."""

    file_type: str
    size_bytes: int
    header_bytes: int
    tensors: tuple[PlannedTensor, ...]

    @property
    def weight_bytes(self) -> int:
        """The tensors' own bytes."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over stored weights."""
        return self.weight_bytes * 8 / sum(tensor.weights for tensor in self.tensors)


def planned_file(source: Path, content: GgufContent, file_type: str) -> PlannedFile:
    """What quantizing the 16-bit file `source`, of that content, to a llama.cpp file type would make.

    `source` may be a skeleton. `file_type` is in lower case; "f16" is the source itself. Raises ExportError with
    llama.cpp's reason where it would refuse.
    """
    types = {} if file_type == SIXTEEN_BIT else _types(source, file_type)
    if types and types.keys() != {tensor.name for tensor in content.tensors}:
        raise ExportError(
            "llama.cpp's account of a dry run could not be read: this version of llama-cpp-python words it "
            "differently. Install the version in constraints.txt."
        )
    header = min(tensor.offset for tensor in content.tensors)
    tensors = tuple(_planned(tensor, types.get(tensor.name, tensor.stored_as)) for tensor in content.tensors)
    return PlannedFile(
        file_type=file_type, size_bytes=_size(header, tensors, content), header_bytes=header, tensors=tensors
    )


def as_it_is(content: GgufContent, file_type: str) -> PlannedFile:
    """A GGUF file that is there, described like one that could be made."""
    header = min(tensor.offset for tensor in content.tensors)
    tensors = tuple(_planned(tensor, tensor.stored_as) for tensor in content.tensors)
    return PlannedFile(
        file_type=file_type, size_bytes=_size(header, tensors, content), header_bytes=header, tensors=tensors
    )


def _types(source: Path, file_type: str) -> dict[str, str]:
    """The type of each tensor by its name, as llama.cpp would store it."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")
    parameters.dry_run = True
    with captured_log() as log:
        # the target's name is asked for and not opened
        status = llama_cpp.llama_model_quantize(str(source).encode(), b"unwritten.gguf", ctypes.byref(parameters))
    if status != 0:
        raise ExportError(f"llama.cpp would not make {file_type} of {source.name}: {log.reason()}")
    return {m["name"]: (m["becomes"] or m["was"]).lower() for m in _LINE.finditer(log.text)}


def _planned(tensor: StoredTensor, stored_as: str) -> PlannedTensor:
    block, block_bytes = block_size(stored_as)
    return PlannedTensor(
        name=tensor.name,
        stored_as=stored_as,
        weights=tensor.weights,
        row=tensor.row,
        size_bytes=tensor.weights // block * block_bytes,
    )


def _size(header_bytes: int, tensors: tuple[PlannedTensor, ...], content: GgufContent) -> int:
    """The header and each tensor, padded to the file's alignment."""
    alignment: int = content.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    return header_bytes + sum(-(-tensor.size_bytes // alignment) * alignment for tensor in tensors)
