"""Quantizes a 16-bit GGUF file with llama.cpp's own quantizer, and accounts for what became of each tensor.

A file type ("q4_k_m") is a recipe that gives tensors different types by design. What it asked for and could not have,
because a row of weights does not divide into that type's blocks, is a `Fallback`. Importance data weights the errors of
rounding (`export.importance`), and single tensors can be given types of their own (`export.search`).
"""

import ctypes
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.artifacts import Fallback
from export.engines.llama_library import captured_log
from export.errors import ExportError
from export.importance import Importances
from export.readers.gguf import StoredTensor, read_tensors

SIXTEEN_BITS_OR_MORE = frozenset({"f32", "f16", "bf16"})
NAMES_SHOWN = 3

# What llama.cpp prints for each tensor it stores otherwise than the recipe asks, and the count it closes with.
_SUBSTITUTED = re.compile(
    r"warning: (?P<tensor>\S+)\s+- ncols\s+(?P<row>\d+) not divisible by\s+(?P<block>\d+) "
    r"\(required for type\s+(?P<asked>\w+)\) *-> falling back to\s+(?P<used>\w+)"
)
_SUBSTITUTED_COUNT = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback")


def quantize_file(
    source: Path,
    file_type: str,
    target: Path,
    importances: Importances | None = None,
    types: Mapping[str, str] | None = None,
) -> tuple[Fallback, ...]:
    """Writes `target` in the llama.cpp file type `file_type` (lower case) from the 16-bit file `source`.

    `importances` weight the errors of rounding; `types` gives tensors, by their names, ggml types ("q4_k") in place of
    the file type's own choice.

    Returns one `Fallback` per pair of asked and used types, checked against the types in the new file. Raises
    ExportError with llama.cpp's reason when it fails, when a tensor was not stored in the type it was given and nothing
    was said, and when `source` is itself quantized: rounding twice loses more than either rounding alone.
    """
    import llama_cpp

    _refuse_quantized(source)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")
    # llama.cpp reads these while it runs: the names keep them alive until then
    data, notes, overrides = _imatrix(importances), _notes(importances), _overrides(types or {})
    if importances is not None:
        parameters.imatrix, parameters.kv_overrides = data, notes
    if types:
        parameters.tt_overrides = overrides
    with captured_log() as log:
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if status != 0:
        raise ExportError(f"llama.cpp could not make {target.name} from {source.name}: {log.reason()}")
    tensors = read_tensors(target)
    fallbacks = _fallbacks(tensors, log.text, file_type, types or {})
    _require_types(tensors, log.text, types or {})
    return fallbacks


def _imatrix(importances: Importances | None) -> Any:
    """llama.cpp's array of importance data, ended by one without a name."""
    import llama_cpp

    entries = [] if importances is None else list(importances.of.items())
    array = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
    for slot, (name, entry) in zip(array, entries, strict=False):
        values = (ctypes.c_float * len(entry.mean_squares)).from_buffer_copy(entry.mean_squares.tobytes())
        slot.name, slot.data, slot.size = name.encode(), values, len(values)
    return array


def _notes(importances: Importances | None) -> Any:
    """What llama.cpp's own tool writes into a file that was made with importance data (its tools/quantize)."""
    import llama_cpp

    array = (llama_cpp.llama_model_kv_override * 4)()
    if importances is None:
        return array
    rows = len(importances.rows_sha256)
    array[0].key, array[0].tag = b"quantize.imatrix.dataset", llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
    array[0].value.val_str = f"{rows} training rows of the recipe".encode()
    array[1].key, array[1].tag = b"quantize.imatrix.entries_count", llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
    array[1].value.val_i64 = len(importances.of)
    array[2].key, array[2].tag = b"quantize.imatrix.chunks_count", llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
    array[2].value.val_i64 = rows
    return array  # the last has no key: the end


def _overrides(types: Mapping[str, str]) -> Any:
    """llama.cpp's array of patterns and types, one for each tensor, ended by one without a pattern."""
    import gguf
    import llama_cpp

    array = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
    for slot, (name, stored_as) in zip(array, types.items(), strict=False):
        slot.pattern = f"^{name.replace('.', '[.]')}$".encode()
        slot.type = int(gguf.GGMLQuantizationType[stored_as.upper()])
    return array


def _require_types(tensors: tuple[StoredTensor, ...], said: str, types: Mapping[str, str]) -> None:
    """Raises ExportError for a tensor that is in another type than it was given, unless llama.cpp said so."""
    stored = {tensor.name: tensor.stored_as for tensor in tensors}
    told = {match["tensor"] for match in _SUBSTITUTED.finditer(said)}
    wrong = [name for name, asked in types.items() if stored.get(name) != asked and name not in told]
    if wrong:
        raise ExportError(
            f"{wrong[0]} was to be stored as {types[wrong[0]]} and is {stored.get(wrong[0], 'not in the file')}: "
            "llama.cpp does not quantize it, or there is no such tensor. Leave it out of the types."
        )


def _refuse_quantized(source: Path) -> None:
    found = sorted({tensor.stored_as for tensor in read_tensors(source)} - SIXTEEN_BITS_OR_MORE)
    if found:
        raise ExportError(
            f"{source} is already quantized (it holds {', '.join(found)}); rounding it again would lose more than "
            "rounding once. Quantize from the 16-bit file."
        )


def _fallbacks(
    tensors: tuple[StoredTensor, ...], said: str, file_type: str, types: Mapping[str, str]
) -> tuple[Fallback, ...]:
    """One entry per (asked, used, row length), with the number of tensors and the first of their names."""
    stored = {tensor.name: tensor for tensor in tensors}
    groups: dict[tuple[str, str, int, int], list[str]] = defaultdict(list)
    for name, asked, block in _substituted(tensors, said, file_type, types):
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


def _substituted(
    tensors: tuple[StoredTensor, ...], said: str, file_type: str, types: Mapping[str, str]
) -> list[tuple[str, str, int]]:
    """Name, asked type and its block size for every tensor that was stored in another type than was asked for it."""
    found = [(m["tensor"], m["asked"].lower(), m["used"].lower(), int(m["block"])) for m in _SUBSTITUTED.finditer(said)]
    count = _SUBSTITUTED_COUNT.search(said)
    stored = {tensor.name: tensor.stored_as for tensor in tensors}
    if len(found) != (int(count[1]) if count else 0) or any(stored[name] != used for name, _, used, _ in found):
        raise ExportError(
            "llama.cpp's account of the types it substituted could not be read: this version of llama-cpp-python "
            "words it differently. Install the version in constraints.txt."
        )
    logged = {*types, *(name for name, *_ in found)}  # a type of its own is what was asked
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
