"""Quantizes a 16-bit GGUF file with llama.cpp's own quantizer, and accounts for what became of each tensor.

A file type ("q4_k_m") is a recipe that gives tensors different types by design. What it asked for and could not have,
because a row of weights does not divide into that type's blocks, is a `Fallback`.
"""

import ctypes
import re
from collections import defaultdict
from pathlib import Path

from export.artifacts import Fallback
from export.engines.llama_library import captured_log
from export.errors import ExportError
from export.readers.gguf import StoredTensor, read_tensors

SIXTEEN_BITS_OR_MORE = frozenset({"f32", "f16", "bf16"})
NAMES_SHOWN = 3

# What llama.cpp prints for each tensor it stores otherwise than the recipe asks, and the count it closes with.
_SUBSTITUTED = re.compile(
    r"warning: (?P<tensor>\S+)\s+- ncols\s+(?P<row>\d+) not divisible by\s+(?P<block>\d+) "
    r"\(required for type\s+(?P<asked>\w+)\) *-> falling back to\s+(?P<used>\w+)"
)
_SUBSTITUTED_COUNT = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")


def quantize_file(source: Path, file_type: str, target: Path) -> tuple[Fallback, ...]:
    """Writes `target` in the llama.cpp file type `file_type` (lower case) from the 16-bit file `source`.

    Returns one `Fallback` per pair of asked and used types, checked against the types in the new file. Raises
    ExportError with llama.cpp's reason when it fails, and when `source` is itself quantized: rounding twice loses
    more than either rounding alone.
    """
    import llama_cpp

    _refuse_quantized(source)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")
    with captured_log() as log:
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if status != 0:
        raise ExportError(f"llama.cpp could not make {target.name} from {source.name}: {log.reason()}")
    return _fallbacks(read_tensors(target), log.text, file_type)


def _refuse_quantized(source: Path) -> None:
    found = sorted({tensor.stored_as for tensor in read_tensors(source)} - SIXTEEN_BITS_OR_MORE)
    if found:
        raise ExportError(
            f"{source} is already quantized (it holds {', '.join(found)}); rounding it again would lose more than "
            "rounding once. Quantize from the 16-bit file."
        )


def _fallbacks(tensors: tuple[StoredTensor, ...], said: str, file_type: str) -> tuple[Fallback, ...]:
    """One entry per (asked, used, row length), with the number of tensors and the first of their names."""
    stored = {tensor.name: tensor for tensor in tensors}
    groups: dict[tuple[str, str, int, int], list[str]] = defaultdict(list)
    for name, asked, block in _substituted(tensors, said, file_type):
        groups[asked, stored[name].stored_as, stored[name].row, block].append(name)
    matrices = sum(tensor.stored_as != "f32" for tensor in tensors)
    return tuple(
        Fallback(
            what=_named(names, matrices),
            asked=asked,
            used=used,
            reason=f"rows of {row} weights are not a multiple of the {block} that {asked} stores together",
        )
        for (asked, used, row, block), names in sorted(groups.items())
    )


def _named(names: list[str], matrices: int) -> str:
    shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    return f"{len(names)} of {matrices} matrices: {shown}"


def _substituted(tensors: tuple[StoredTensor, ...], said: str, file_type: str) -> list[tuple[str, str, int]]:
    """Name, asked type and its block size for every tensor that was stored in another type than the recipe's."""
    found = [(m["tensor"], m["asked"].lower(), m["used"].lower(), int(m["block"])) for m in _SUBSTITUTED.finditer(said)]
    count = _SUBSTITUTED_COUNT.search(said)
    stored = {tensor.name: tensor.stored_as for tensor in tensors}
    if len(found) != (int(count[1]) if count else 0) or any(stored[name] != used for name, _, used, _ in found):
        raise ExportError(
            "llama.cpp's account of the types it substituted could not be read: this version of llama-cpp-python "
            "words it differently. Install the version in constraints.txt."
        )
    logged = {name for name, *_ in found}
    silent = [(name, "q6_k", 256) for name in _silently_substituted(tensors, file_type) if name not in logged]
    return [(name, asked, block) for name, asked, _, block in found] + silent


def _silently_substituted(tensors: tuple[StoredTensor, ...], file_type: str) -> list[str]:
    """The output matrix, when it is in Q8_0 because its rows do not divide by 256.

    llama.cpp's recipes give the output matrix (the token embedding where the two are tied) Q6_K, and Q8_0 when its
    rows do not divide by the block of the file's own type: decided before the check that prints a line.
    """
    names = {tensor.name for tensor in tensors}
    output = "output.weight" if "output.weight" in names else "token_embd.weight"
    return [
        tensor.name
        for tensor in tensors
        if tensor.name == output and tensor.stored_as == "q8_0" and tensor.row % 256 and file_type != "q8_0"
    ]
