"""How much of what fine-tuning changed is still in the file that ships.

Rounding to few bits can undo a fine-tune whose changes are smaller than a step of the grid: the file then answers as
the base model did, and no measure of the rounding alone shows it. Per tensor, with W0 the base's weights, W the
fine-tuned and Wq the artifact's, the share is (Wq-W0).(W-W0) / |W-W0|^2: 1 where the change is whole, 0 where the
artifact is the base, and 1 on average for rounding that is not drawn to the base, whatever its size.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from export.artifacts import QuantizedModel, StageResult
from export.errors import ExportError, ModelError
from export.formats.gguf import SIXTEEN_BIT
from export.frozen import Frozen
from export.readers.folder import CODES, FolderTensors, open_tensors
from export.readers.gguf import WEIGHTS_AT_ONCE, StoredTensor, read_tensors, row_spans, rows_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOWEST_SHOWN = 5
# The embedding that stands in for a head that is not stored, by its name in a GGUF file and in a folder.
_TIED = {"output.weight": "token_embd.weight", "lm_head.weight": "model.embed_tokens.weight"}


class Retained(Frozen):
    """The share of the fine-tuning change that an artifact kept, over every weight that fine-tuning changed.

    `share` is that of the whole model: the sum of (Wq-W0).(W-W0) over all changed tensors, by the sum of |W-W0|^2; NaN
    where nothing was changed. `quartiles` are over tensors, `lowest` the five that kept least; `tensors` and `weights`
    count what was changed. Every weight is read, none is sampled: the number has no sampling error.
    """

    subject: str
    share: float
    quartiles: tuple[float, float, float]
    lowest: tuple[tuple[str, float], ...]
    tensors: int
    weights: int
    note: str = ""


class RetainedShares(StageResult):
    """The shares of every artifact of a run."""

    subjects: tuple[Retained, ...]


class _Kept(NamedTuple):
    """One tensor's (Wq-W0).(W-W0) and |W-W0|^2."""

    name: str
    dot: float
    square: float
    weights: int

    @property
    def share(self) -> float:
        return self.dot / self.square


_Chunk = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.float32]"]


def retained_in(
    artifacts: Sequence[QuantizedModel], merged_folder: Path, base_folder: Path, scratch: Path
) -> tuple[Retained, ...]:
    """How much each artifact of a run kept, in their order; of one that cannot be read, why that is not known.

    Their 16-bit GGUF file, where there are GGUF files, is among them: the others are compared with it. `scratch` is
    where the base is written as GGUF for a while: as many bytes as that file has.
    """
    sixteen_bit = next((model for model in artifacts if model.subject == f"gguf/{SIXTEEN_BIT}"), None)

    def of(model: QuantizedModel, base_gguf: Path | None) -> Retained:
        try:
            if model.engine == "llama_cpp" and sixteen_bit is not None and base_gguf is not None:
                return retained_in_gguf(model.subject, model.path, sixteen_bit.path, base_gguf)
            return retained_in_folder(model.subject, model.path, merged_folder, base_folder)
        except (ExportError, ModelError) as error:
            return _unknown(model.subject, str(error))

    if sixteen_bit is None:
        return tuple(of(model, None) for model in artifacts)
    try:
        with base_as_gguf(base_folder, sixteen_bit.path, scratch) as base_gguf:
            return tuple(of(model, base_gguf) for model in artifacts)
    except (ExportError, ModelError) as error:
        return tuple(_unknown(model.subject, str(error)) for model in artifacts)


def _unknown(subject: str, why: str) -> Retained:
    nan = float("nan")
    return Retained(subject=subject, share=nan, quartiles=(nan,) * 3, lowest=(), tensors=0, weights=0, note=why)


def retained_in_gguf(subject: str, artifact: Path, merged_gguf: Path, base_gguf: Path) -> Retained:
    """How much of the change from `base_gguf` to `merged_gguf` (16-bit files) is in the GGUF file `artifact`.

    All three hold the same architecture, so that tensors match by name (`base_as_gguf` makes the base's). Memory is
    bounded by a few million weights. Tensors in a type that gguf cannot de-quantize (q1_0, q2_0) are left out, and
    counted in the note. Raises ExportError when the files' tensors do not match, ModelError when a file cannot be read.
    """
    files = [{tensor.name: tensor for tensor in read_tensors(path)} for path in (artifact, merged_gguf, base_gguf)]
    kept, left_out = [], set()
    for name, merged in files[1].items():
        found = [_of_gguf(name, file) for file in (files[0], files[2])]
        if not _is_readable(found[0]):
            left_out.add(found[0].stored_as)
            continue
        _same_shape(name, merged.row, *(tensor.row for tensor in found))
        rows = min(merged.rows, *(tensor.rows for tensor in found))
        kept.append(_add_up(name, _gguf_chunks(found[0], merged, found[1], rows)))
    summary = _summary(subject, kept)
    if not left_out:
        return summary
    note = f"{len(files[1]) - len(kept)} tensors in {', '.join(sorted(left_out))} cannot be read and are left out"
    return summary.model_copy(update={"note": f"{note}; {summary.note}"})


def retained_in_folder(subject: str, artifact: Path, merged_folder: Path, base_folder: Path) -> Retained:
    """How much of the change from `base_folder` to `merged_folder` is in `artifact`, a GPTQ folder or a dense one.

    Packed layers are de-quantized, one at a time. Raises ExportError when the folders' tensors do not match, ModelError
    when one cannot be read or is quantized in another way.
    """
    with open_tensors(artifact) as found, open_tensors(merged_folder) as merged, open_tensors(base_folder) as base:
        names = [name for name in merged.names if merged.is_floating_point(name)]
        return _summary(subject, [_add_up(name, _folder_chunks(name, found, merged, base)) for name in names])


@contextmanager
def base_as_gguf(base_folder: Path, merged_gguf: Path, scratch: Path | None = None) -> Iterator[Path]:
    """The base as a 16-bit GGUF file in a temporary place, in the 16-bit type of `merged_gguf`.

    Made by the converter that made the merged file, so that its tensors have the same names and the same order of
    rows; in the same type, so that a weight that was not changed is not rounded differently.
    """
    from export.converter import convert

    types = {tensor.stored_as for tensor in read_tensors(merged_gguf)}
    with tempfile.TemporaryDirectory(prefix="fieldtune-", dir=scratch) as folder:
        path, _ = convert(base_folder, "base", Path(folder), file_type="bf16" if "bf16" in types else "f16")
        yield path


def _is_readable(tensor: StoredTensor) -> bool:
    try:
        rows_of(tensor, 0, 1)
    except ModelError:
        return False
    return True


def _of_gguf(name: str, tensors: dict[str, StoredTensor]) -> StoredTensor:
    """The tensor of that name; for a head that is not stored, the embedding that stands in for it."""
    for known in (name, _TIED.get(name, name)):
        if known in tensors:
            return tensors[known]
    raise ExportError(_does_not_match(name, "it is not in all three files"))


def _same_shape(name: str, *lengths: object) -> None:
    if len(set(lengths)) > 1:
        raise ExportError(_does_not_match(name, f"its shapes are {', '.join(map(str, lengths))}"))


def _does_not_match(name: str, reason: str) -> str:
    return (
        f"the tensor {name} cannot be compared: {reason}. The artifact, the merged model and the base must be of one "
        "architecture and size."
    )


def _gguf_chunks(artifact: StoredTensor, merged: StoredTensor, base: StoredTensor, rows: int) -> Iterator[_Chunk]:
    for begin, end in row_spans(rows, merged.row):
        yield rows_of(artifact, begin, end), rows_of(merged, begin, end), rows_of(base, begin, end)


def _folder_chunks(name: str, artifact: FolderTensors, merged: FolderTensors, base: FolderTensors) -> Iterator[_Chunk]:
    """The tensor's rows, a few at a time; of a packed matrix all rows of a few columns."""
    shape = merged.shape(name)
    base_name = _of_folder(name, base)
    if artifact.is_packed(name):
        _same_shape(name, shape, base.shape(base_name))
        of_merged, of_base = merged.rows(name, 0, shape[0]), base.rows(base_name, 0, shape[0])
        step = max(1, WEIGHTS_AT_ONCE // shape[0] // CODES) * CODES
        for begin in range(0, shape[1], step):
            end = min(shape[1], begin + step)
            unpacked = artifact.unpacked_columns(name, begin, end)
            _same_shape(name, unpacked.shape, (shape[0], end - begin))
            yield unpacked, of_merged[:, begin:end], of_base[:, begin:end]
        return
    own_name = _of_folder(name, artifact)
    _same_shape(name, shape[1:], base.shape(base_name)[1:], artifact.shape(own_name)[1:])
    rows = min(shape[0], base.shape(base_name)[0], artifact.shape(own_name)[0])
    for begin, end in row_spans(rows, math.prod(shape[1:])):
        yield artifact.rows(own_name, begin, end), merged.rows(name, begin, end), base.rows(base_name, begin, end)


def _of_folder(name: str, tensors: FolderTensors) -> str:
    for known in (name, _TIED.get(name, name)):
        if known in tensors:
            return known
    raise ExportError(_does_not_match(name, f"it is not in {tensors.folder}"))


def _add_up(name: str, chunks: Iterable[_Chunk]) -> _Kept:
    """Sums in float64; the weights of one tensor come chunk by chunk."""
    import numpy as np

    dot, square, weights = 0.0, 0.0, 0
    for artifact, merged, base in chunks:
        change = (merged - base).astype(np.float64)
        square += float(np.vdot(change, change))
        dot += float(np.vdot((artifact - base).astype(np.float64), change))
        weights += change.size
    return _Kept(name, dot, square, weights)


def _summary(subject: str, kept: list[_Kept]) -> Retained:
    import numpy as np

    changed = [tensor for tensor in kept if tensor.square != 0]
    if not changed:
        said = f"no weight of the {len(kept)} tensors that were read differs between the base and the merged model"
        return _unknown(subject, said)
    square, dot = sum(tensor.square for tensor in changed), sum(tensor.dot for tensor in changed)
    shares = [tensor.share for tensor in changed]
    quartiles = np.quantile(shares, (0.25, 0.5, 0.75)).tolist()
    lowest = sorted(changed, key=lambda tensor: (not math.isnan(tensor.share), tensor.share))[:LOWEST_SHOWN]
    return Retained(
        subject=subject,
        share=dot / square,
        quartiles=(quartiles[0], quartiles[1], quartiles[2]),
        lowest=tuple((tensor.name, tensor.share) for tensor in lowest),
        tensors=len(changed),
        weights=sum(tensor.weights for tensor in changed),
        note=_note(kept, changed),
    )


def _note(kept: list[_Kept], changed: list[_Kept]) -> str:
    """How much was read, and whether a number in it was none."""
    broken = [tensor.name for tensor in changed if not math.isfinite(tensor.share)]
    read = f"every weight of {len(changed)} changed tensors of {len(kept)} was read: no sampling error"
    return f"{read}; not finite: {', '.join(broken[:LOWEST_SHOWN])}" if broken else read
