"""Whether an artifact's weights are stored as its name and its metadata say, and its head is its embedding where it
should be. What the weights are worth is measured by running them.
"""

import math
import re
from typing import TYPE_CHECKING, Any

from export.errors import ModelError
from export.identity._reading import Reference
from export.identity.finding import Finding
from export.promises import Promise, promised
from export.readers.folder import DENSE, PACKED, FolderTensors, PackedSettings, open_tensors
from export.readers.gguf import GgufContent, StoredTensor, row_spans, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

TYPES, TIED = "tensor types", "tied embeddings"
HEAD, EMBEDDING = "output.weight", "token_embd.weight"

# Honest mixes hold a few tensors in fewer bits than the type they are named for.
SHARE_BELOW_ALLOWED = 0.1
# What llama.cpp's recipes go down to, where that is not the type in the recipe's name.
_LOWEST_TYPES = {
    "iq2_s": "iq2_xs",
    "iq2_m": "iq2_s",
    "iq3_xxs": "iq2_s",
    "iq3_xs": "iq3_xxs",
    "iq3_m": "iq3_s",
    "mxfp4_moe": "mxfp4",
}
# Rounding a weight to b bits moves it by about 2^(1-b) of the matrix's size (a test compares llama.cpp's own types);
# 16-bit types have fewer digits than bits.
_SIXTEEN_BIT_ERROR = 2.0**-8
_ROUNDING_ALLOWED = 2.0
_LARGEST_ALLOWED = 0.9


# --- GGUF


def gguf_types_finding(subject: str, content: GgufContent, promise: Promise) -> Finding:
    """Whether the file's metadata and its tensors are of the type, or at least of the bits, that were promised.

    Without a promise the metadata's own is taken. Fewer bits than the promise fail, more are only said.
    """
    declared = content.declared_type
    problems = []
    if declared is not None and not _fits(declared, promise):
        problems.append(f"its metadata say {declared}")
    matrices = [tensor for tensor in content.tensors if tensor.rows > 1]
    file_type = promise.file_type if promise.bits is not None else declared
    lowest = float(promise.bits) if promise.bits is not None and file_type is None else None
    if file_type is not None:
        lowest = _lowest_bits(file_type)
    asked = file_type or (f"{promise.bits} bits" if promise.bits else None)
    if lowest is not None and (fewer := _fewer_bits(matrices, lowest)):
        problems.append(fewer)
    bits = sum(t.size_bytes for t in matrices) * 8 / sum(t.weights for t in matrices)
    stored = f"{bits:.2f} bits per weight in {len(matrices)} matrices ({_shares(matrices)})"
    source = "the name" if promise.bits else "the metadata"
    return Finding(
        what=TYPES,
        subject=subject,
        ok=not problems,
        found="; ".join([*problems, stored]),
        expected="a type named somewhere" if asked is None else f"{asked}, by {source}: {_at_least(lowest)}",
        note="neither the name nor the metadata name a type" if asked is None else "",
    )


def _fits(declared: str, promise: Promise) -> bool:
    """Whether a file of the declared type is of the promised one or, in a mix that has no name, of as many bits."""
    if promise.file_type is None:
        return promise.bits is None or promised(declared).bits in (None, promise.bits)
    # where float16 cannot hold a weight, the 16-bit file is in bfloat16
    return promise.file_type == declared or {promise.file_type, declared} == {"f16", "bf16"}


def _lowest_bits(file_type: str) -> float | None:
    """Bits per weight of the smallest type that a file of this type should hold; None for a type that is not known."""
    import gguf

    names = (_LOWEST_TYPES.get(file_type, file_type), re.sub(r"_[sml]$", "", file_type))
    known = {kind.name.lower(): bytes_ * 8 / block for kind, (block, bytes_) in gguf.GGML_QUANT_SIZES.items()}
    return next((known[name] for name in names if name in known), None)


def _fewer_bits(matrices: list[StoredTensor], lowest: float) -> str:
    """What is wrong with the bits of the matrices, in words; empty where nothing is."""
    weights = sum(tensor.weights for tensor in matrices)
    below = [tensor for tensor in matrices if tensor.bits_per_weight < lowest]
    share = sum(tensor.weights for tensor in below) / weights
    average = sum(tensor.size_bytes for tensor in matrices) * 8 / weights
    if share <= SHARE_BELOW_ALLOWED and average >= lowest:
        return ""
    return f"{share:.0%} of its weights are stored in fewer bits ({_shares(below)})"


def _at_least(lowest: float | None) -> str:
    return "a type whose bits are not known" if lowest is None else f"{lowest:g} bits per weight or more"


def _shares(tensors: list[StoredTensor]) -> str:
    """The types that tensors are stored in, with the weights in each, the most of them first."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[tensor.stored_as] = weights.get(tensor.stored_as, 0) + tensor.weights
    total = sum(weights.values())
    ordered = sorted(weights.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count / total:.0%}" for name, count in ordered)


# --- folders


def folder_types_finding(subject: str, tensors: FolderTensors, reference: Reference, bits: int | None) -> Finding:
    """Whether packed layers have the bits that the config says, and the promised ones, and none is missing."""
    try:
        settings = tensors.settings
    except ModelError as error:
        note = "its packing is not looked into"
        return Finding(
            what=TYPES, subject=subject, ok=True, found=str(error), expected="a type by its config", note=note
        )
    if settings is None:
        kinds = sorted({tensors.stored_as(name) for name in tensors.names})
        expected = "16 or 32 bits" if bits is None else f"{bits} bits, by the name"
        found = f"{len(tensors.names)} tensors in {', '.join(kinds)}"
        # fewer than 16 would be packed
        ok = bits is None or 16 <= bits <= _dense_bits(tensors)
        return Finding(what=TYPES, subject=subject, ok=ok, found=found, expected=expected)
    packed = [name for name in tensors.names if name.endswith(PACKED)]
    problems = [] if packed else ["no layer is packed"]
    if bits is not None and bits != settings.bits:
        problems.append(f"its config says {settings.bits} bits")
    shapes, note = _reference_shapes(reference)
    wrong = [words for name in packed if (words := _wrong_packing(name, tensors, settings, shapes))]
    if wrong:
        problems.append(f"{len(wrong)} layers: {wrong[0]}")
    return Finding(
        what=TYPES,
        subject=subject,
        ok=not problems,
        found="; ".join(problems) or f"{len(packed)} layers in {settings.bits} bits, groups of {settings.group_size}",
        expected=f"{bits or settings.bits} bits, by the {'name' if bits else 'config'}, in every packed layer",
        note=note,
    )


def _dense_bits(tensors: FolderTensors) -> float:
    """Bits per weight of the matrices."""
    weights = {name: math.prod(shape) for name in tensors.names if len(shape := tensors.shape(name)) > 1}
    sizes = {name: re.search(r"[0-9]+", tensors.stored_as(name)) for name in weights}
    stored = sum(int(size[0]) * weights[name] for name, size in sizes.items() if size is not None)
    return stored / max(1, sum(weights.values()))


def _reference_shapes(reference: Reference) -> tuple[dict[str, tuple[int, ...]], str]:
    """The dense matrices' shapes, where the reference's folder holds weights."""
    try:
        with open_tensors(reference.folder) as tensors:
            return {name: tensors.shape(name) for name in tensors.names}, ""
    except ModelError:
        return {}, "the reference's folder has no weights whose shapes could be compared"


def _wrong_packing(
    name: str, tensors: FolderTensors, settings: PackedSettings, shapes: dict[str, tuple[int, ...]]
) -> str:
    """How a packed layer's parts do not fit its bits and groups; empty where they do."""
    layer = name.removesuffix(PACKED)
    words, outputs = tensors.shape(name)
    inputs = words * 32 // settings.bits
    expected = {name: (words, outputs)}
    if f"{layer}{DENSE}" in shapes:
        outputs, inputs = shapes[f"{layer}{DENSE}"]
        expected[name] = (inputs * settings.bits // 32, outputs)
    groups = 1 if settings.group_size <= 0 else -(-inputs // settings.group_size)
    expected[f"{layer}.scales"] = (groups, outputs)
    expected[f"{layer}.qzeros"] = (groups, outputs * settings.bits // 32)
    for part, shape in expected.items():
        found = tensors.shape(part) if part in tensors else None
        if found != shape:
            return f"{part} is {found} and not {shape}, as {settings.bits} bits need"
    return ""


# --- the head and the embedding


def gguf_tied_finding(subject: str, content: GgufContent, reference: Reference) -> Finding:
    """Whether the file has one matrix for embedding and head where the reference has one, and two where it has two.

    llama.cpp uses the embedding where no head is stored. Some publish tied models with the matrix stored twice, in
    two types (Qwen's own Qwen2.5-0.5B files do): that is the same model as long as the two differ by rounding alone.
    """
    head, embedding = content.tensor(HEAD), content.tensor(EMBEDDING)
    tied = _is_tied(reference)
    if tied is None or embedding is None:
        return _tied(subject, True, "not compared", "the reference's", "the reference's folder does not say")
    if head is None:
        return _without_head(subject, tied, reference, f"the file has no {HEAD}")
    if not tied:
        return _tied(subject, True, "a head of its own", "a head of its own")
    spans = list(row_spans(min(head.rows, embedding.rows), head.row))
    if head.row != embedding.row:
        return _tied(subject, False, f"rows of {head.row} and {embedding.row} weights", "one matrix")
    pairs = ((rows_of(head, *span), rows_of(embedding, *span)) for span in spans)
    try:
        difference = relative_difference(pairs)
    except ModelError as error:
        return _tied(subject, True, "not compared", "one matrix", str(error))
    stored = (head.bits_per_weight, embedding.bits_per_weight)
    return _compared(subject, difference, stored, f"{HEAD} ({head.stored_as})")


def folder_tied_finding(subject: str, tensors: FolderTensors, config: dict[str, Any], reference: Reference) -> Finding:
    """The same of a folder: by its config, and by the weights where it stores a head."""
    tied = _is_tied(reference)
    head = _named(tensors, "lm_head")
    embedding = next((name for name in tensors.names if name.endswith("embed_tokens.weight")), None)
    if tied is None or embedding is None:
        return _tied(subject, True, "not compared", "the reference's", "the reference's folder does not say")
    if _tie_setting(config) and not tied:
        return _without_head(subject, tied, reference, "its config ties them")
    if head is None:
        return _without_head(subject, tied, reference, "it stores one matrix")
    if not tied:
        return _tied(subject, True, "a head of its own", "a head of its own")
    shape = tensors.shape(embedding)
    if head not in tensors and not _can_unpack(tensors):
        return _tied(subject, True, "not compared", "one matrix", "its head is packed in a way that is not looked into")
    bits = float(tensors.settings.bits) if tensors.settings is not None and head not in tensors else 16.0
    pairs = _head_and_embedding(tensors, head, embedding, shape)
    return _compared(subject, relative_difference(pairs), (bits, 16.0), head)


def _head_and_embedding(
    tensors: FolderTensors, head: str, embedding: str, shape: tuple[int, ...]
) -> "Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]":
    if head not in tensors:
        yield tensors.unpacked_columns(head, 0, shape[1]), tensors.rows(embedding, 0, shape[0])
        return
    for begin, end in row_spans(min(shape[0], tensors.shape(head)[0]), shape[1]):
        yield tensors.rows(head, begin, end), tensors.rows(embedding, begin, end)


def _can_unpack(tensors: FolderTensors) -> bool:
    try:
        return tensors.settings is not None
    except ModelError:
        return False


def _named(tensors: FolderTensors, layer: str) -> str | None:
    """The dense name of a layer that is stored, packed or not."""
    found = [name for name in tensors.names if name.endswith((f"{layer}{DENSE}", f"{layer}{PACKED}"))]
    return found[0].removesuffix(PACKED).removesuffix(DENSE) + DENSE if found else None


def _without_head(subject: str, tied: bool, reference: Reference, found: str) -> Finding:
    """An artifact that uses the embedding as its head: right where the reference does so, or could."""
    if tied:
        return _tied(subject, True, "one matrix", "one matrix")
    with open_tensors(reference.folder) as tensors:
        head, embedding = _named(tensors, "lm_head"), _named(tensors, "embed_tokens")
        if head is None or embedding is None:
            return _tied(
                subject, True, found, "the reference's", "the reference's folder stores no head to compare with"
            )
        pairs = _head_and_embedding(tensors, head, embedding, tensors.shape(embedding))
        difference = relative_difference(pairs)
    note = f"the reference's head and embedding differ by {difference:.2%}"
    return _tied(
        subject, difference <= _SIXTEEN_BIT_ERROR, f"{found}: the embedding is used", "a head of its own", note
    )


def _compared(subject: str, difference: float, bits: tuple[float, float], head: str) -> Finding:
    allowed = math.hypot(*map(allowed_by_rounding, bits))
    found = f"a head of its own, {head}, which differs from the embedding by {difference:.2%} of its size"
    expected = f"one matrix, as in the reference, or two that differ by rounding alone (at most {allowed:.2%})"
    return _tied(subject, difference <= allowed, found, expected, "the shared matrix is stored a second time")


def allowed_by_rounding(bits: float, factor: float = 1.0) -> float:
    """How far rounding to that many bits may move a tensor, as a share of its size: less than zeroing it would."""
    return min(_LARGEST_ALLOWED, factor * _ROUNDING_ALLOWED * float(max(_SIXTEEN_BIT_ERROR, 2.0 ** (1 - bits))))


def _tied(subject: str, ok: bool, found: str, expected: str, note: str = "") -> Finding:
    return Finding(what=TIED, subject=subject, ok=ok, found=found, expected=expected, note=note)


def relative_difference(pairs: "Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]") -> float:
    """|a - b| / |b| over matrices that come in pieces; infinite where b alone is zero, NaN for one that is broken."""
    import numpy as np

    difference, size = 0.0, 0.0
    for left, right in pairs:
        apart, known = (array.astype(np.float64).ravel() for array in (left - right, right))
        difference += float(np.vdot(apart, apart))
        size += float(np.vdot(known, known))
    if size == 0:
        return difference * math.inf if difference else 0.0
    return math.sqrt(difference / size)


def _is_tied(reference: Reference) -> bool | None:
    """Whether the reference has one matrix for both: by its config, else by whether a head is stored."""
    if reference.config is None:
        return None
    setting = _tie_setting(reference.config)
    if setting is not None:
        return setting
    try:
        with open_tensors(reference.folder) as tensors:
            return _named(tensors, "lm_head") is None
    except ModelError:
        return None


def _tie_setting(config: dict[str, Any]) -> bool | None:
    for part in (config, config.get("text_config") or {}):
        if part.get("tie_word_embeddings") is not None:
            return bool(part["tie_word_embeddings"])
    return None
