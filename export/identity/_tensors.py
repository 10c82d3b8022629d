"""Whether an artifact's weights are its reference's, rounded: tensor by tensor, before anything is run.

A damaged tensor can cost too little on the held-out rows to be told from rounding, and some damage an engine hides:
llama.cpp drops a NaN where it rounds what a layer is given. Rounding itself moves a tensor by a share of its size that
is known from its bits, and nothing else should move it.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from export.errors import ExportError, ModelError
from export.identity._reading import Reference
from export.identity._weights import HEAD, allowed_by_rounding, relative_difference
from export.identity.finding import Finding
from export.readers.folder import CODES, FolderTensors, open_tensors
from export.readers.gguf import WEIGHTS_AT_ONCE, GgufContent, StoredTensor, row_spans, rows_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from export.converter import Converted

WHAT = "weights"
_EXPECTED = "every tensor of {}, rounded to the type that it is stored in"
_SHOWN = 3
# Rounding that follows what a layer is given moves weights further than plain rounding does: GPTQ, to make up for what
# it rounded before (up to 1.07 times what plain rounding is allowed were seen in a Qwen2.5-0.5B in 4 bits), and types
# that were chosen with an importance matrix. A matrix with few very large weights comes near it without.
_ALLOWED = 1.5


class _Compared(NamedTuple):
    """A tensor's difference from the reference's, as a share of its size, and what rounding may make it."""

    name: str
    difference: float
    allowed: float

    @property
    def ok(self) -> bool:
        """False for a difference that is not a number."""
        return self.difference <= self.allowed

    @property
    def excess(self) -> float:
        """The difference in units of what is allowed."""
        return math.inf if math.isnan(self.difference) else self.difference / self.allowed

    def words(self) -> str:
        """The tensor and its difference."""
        if math.isnan(self.difference):
            return f"{self.name} holds values that are not finite"
        if math.isinf(self.difference):
            return f"{self.name} has another shape, or parts that do not fit"
        return f"{self.name} differs by {self.difference:.2%} of its size (rounding: at most {self.allowed:.2%})"


def gguf_weights_finding(subject: str, content: GgufContent, converted: "Converted | None", why: str) -> Finding:
    """Compares each tensor that llama.cpp's converter makes of the reference with the file's.

    `converted` is None where the reference cannot be converted, and `why` says why.
    """
    if converted is None:
        return _not_compared(subject, why)
    missing, compared, unread = [], [], set()
    for name, weights in converted.tensors():
        stored = content.tensor(name)
        if stored is None and name != HEAD:  # whether a head may be left out is found elsewhere
            missing.append(name)
        elif stored is not None:
            found = _of_gguf(stored, weights)
            if found is None:
                unread.add(stored.stored_as)
            else:
                compared.append(found)
    left_out = f"tensors in {', '.join(sorted(unread))} cannot be read and are left out" if unread else ""
    return _finding(subject, compared, missing, str(converted.folder), left_out)


def _of_gguf(stored: StoredTensor, weights: "NDArray[np.float32]") -> _Compared | None:
    """None for a type that gguf cannot de-quantize."""
    rows = weights.reshape(-1, stored.row) if weights.size % stored.row == 0 else None
    allowed = allowed_by_rounding(stored.bits_per_weight, _ALLOWED)
    if rows is None or len(rows) > stored.rows:
        return _Compared(stored.name, math.inf, allowed)
    try:
        pairs = ((rows_of(stored, *span), rows[slice(*span)]) for span in row_spans(len(rows), stored.row))
        return _Compared(stored.name, relative_difference(pairs), allowed)
    except ModelError:
        return None


def folder_weights_finding(subject: str, tensors: FolderTensors, reference: Reference) -> Finding:
    """Compares each tensor of the reference's folder with the artifact's, packed or not."""
    try:
        with open_tensors(reference.folder) as known:
            missing, compared = [], []
            for name in filter(known.is_floating_point, known.names):
                if name in tensors or tensors.is_packed(name):
                    compared.append(_of_folder(name, tensors, known))
                elif not name.endswith("lm_head.weight"):
                    missing.append(name)
            return _finding(subject, compared, missing, str(reference.folder))
    except (ModelError, ExportError) as error:
        return _not_compared(subject, str(error))


def _of_folder(name: str, tensors: FolderTensors, known: FolderTensors) -> _Compared:
    shape = known.shape(name)
    if tensors.is_packed(name):
        assert tensors.settings is not None
        allowed = allowed_by_rounding(tensors.settings.bits, _ALLOWED)
        try:
            return _Compared(name, relative_difference(_columns(name, tensors, known, shape)), allowed)
        except (ValueError, LookupError):  # other shapes, or parts that are missing or do not fit each other
            return _Compared(name, math.inf, allowed)
    allowed, found_shape = allowed_by_rounding(16), tensors.shape(name)
    if found_shape[1:] != shape[1:] or found_shape[0] < shape[0]:
        return _Compared(name, math.inf, allowed)
    return _Compared(name, relative_difference(_rows(name, tensors, known, shape)), allowed)


def _columns(
    name: str, tensors: FolderTensors, known: FolderTensors, shape: tuple[int, ...]
) -> "Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]":
    """All rows of a few columns at a time: a packed matrix is made larger several times over while it is unpacked."""
    weights = known.rows(name, 0, shape[0])
    step = max(1, WEIGHTS_AT_ONCE // shape[0] // CODES) * CODES
    for begin in range(0, shape[1], step):
        end = min(shape[1], begin + step)
        yield tensors.unpacked_columns(name, begin, end), weights[:, begin:end]


def _rows(
    name: str, tensors: FolderTensors, known: FolderTensors, shape: tuple[int, ...]
) -> "Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]":
    for span in row_spans(shape[0], math.prod(shape[1:])):
        yield tensors.rows(name, *span), known.rows(name, *span)


def _finding(subject: str, compared: list[_Compared], missing: list[str], folder: str, left_out: str = "") -> Finding:
    wrong = sorted((tensor for tensor in compared if not tensor.ok), key=lambda tensor: -tensor.excess)
    problems = [f"{len(missing)} tensors are missing: {_listed(missing)}"] if missing else []
    if wrong:
        listed = "; ".join(tensor.words() for tensor in wrong[:_SHOWN])
        problems.append(f"{len(wrong)} of {len(compared)} tensors: {listed}{'; …' if len(wrong) > _SHOWN else ''}")
    nearest = max(compared, key=lambda tensor: tensor.excess, default=None)
    good = "no tensor to compare" if nearest is None else f"{len(compared)} tensors; of all of them {nearest.words()}"
    return Finding(
        what=WHAT,
        subject=subject,
        ok=not problems,
        found="; ".join(problems) or good,
        expected=_EXPECTED.format(folder),
        note=left_out or "every weight was read; scales that were moved from one tensor to another show here too",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _not_compared(subject: str, why: str) -> Finding:
    return Finding(what=WHAT, subject=subject, ok=True, found="not compared", expected="the reference's", note=why)
