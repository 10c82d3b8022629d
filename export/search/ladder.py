"""llama.cpp's own file types as mixes to start from: what each would store every tensor in, by its dry run."""

from collections.abc import Sequence
from pathlib import Path

from export.device.sizes import planned_file
from export.frozen import Frozen
from export.readers.gguf import read_gguf
from export.search.type_files import TypeFiles


class Rung(Frozen):
    """A file type as types by tensor; `size_bytes` is what it would take here."""

    file_type: str
    size_bytes: int
    types: dict[str, str]


def quantized_tensors(source: Path) -> tuple[str, ...]:
    """The tensors of the 16-bit file that llama.cpp quantizes."""
    content = read_gguf(source)
    plain = {tensor.name: tensor.stored_as for tensor in content.tensors}
    return tuple(t.name for t in planned_file(source, content, "q8_0").tensors if t.stored_as != plain[t.name])


def ladder(source: Path, files: TypeFiles, file_types: Sequence[str], budget_bytes: int, most: int) -> tuple[Rung, ...]:
    """The `most` largest of the file types that fit the budget, the largest first."""
    rungs = []
    for file_type in file_types:
        planned = planned_file(source, files.content, file_type)
        types = {tensor.name: tensor.stored_as for tensor in planned.tensors if tensor.name in files.names}
        rungs.append(Rung(file_type=file_type, size_bytes=files.size_bytes(types), types=types))
    fitting = [rung for rung in rungs if rung.size_bytes <= budget_bytes]
    return tuple(sorted(fitting, key=lambda rung: -rung.size_bytes)[:most])
