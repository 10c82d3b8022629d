"""The reference model's predictions, stored once and compared with every other subject's.

Per scored token the K most probable next tokens are kept, and what probability is left beyond them. The divergence of
a candidate is computed over those K tokens plus one bin for the tail, which by the data-processing inequality is never
larger than the full KL divergence and, with K in the hundreds, differs little (EvoPress, arXiv 2410.14649, uses top-K
KL too). With a vocabulary no larger than K nothing is left out and the divergence is exact.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP_K = 1024

# What is read or averaged at a time: 8 kB a token, so that memory does not grow with the number of rows.
_TOKENS_AT_ONCE = 1024


class Divergence(NamedTuple):
    """Per scored token: KL(reference, candidate) in nats, and whether both put the same token first."""

    kl: "NDArray[np.float64]"
    same_top: "NDArray[np.bool_]"


class ReferenceWriter:
    """Appends the reference's predictions to a file, block by block; `writing_reference` opens and closes it."""

    def __init__(self, file: BinaryIO, kept: int) -> None:
        self._file = file
        self._kept = kept
        self.tokens = 0

    def add(self, log_probs: "NDArray[np.float32]") -> None:
        """Takes the next scored tokens' log-probabilities, shape (scored tokens, vocabulary)."""
        import numpy as np

        ids = np.sort(np.argpartition(log_probs, -self._kept, axis=1)[:, -self._kept :], axis=1)  # of equals, the least
        order = np.argsort(-np.take_along_axis(log_probs, ids, axis=1), axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
        rows = np.empty(len(ids), dtype=_record(self._kept))
        rows["ids"] = ids
        rows["log_probs"] = np.take_along_axis(log_probs, ids, axis=1)
        rows["tail"] = _tail_mass(rows["log_probs"])
        self._file.write(rows.tobytes())
        self.tokens += len(rows)


@contextmanager
def writing_reference(path: Path, *, tokens: int, vocabulary_size: int) -> Iterator[ReferenceWriter]:
    """A writer of the predictions of `tokens` scored tokens: one numpy file, one record a token.

    Raises ValueError at the end when another number of them was given: the file would not be what its head says.
    """
    import numpy as np

    kept = min(TOP_K, vocabulary_size)
    with path.open("wb") as file:
        described = np.lib.format.dtype_to_descr(_record(kept))  # type: ignore[no-untyped-call]
        head = {"descr": described, "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(file, head)  # type: ignore[no-untyped-call]
        writer = ReferenceWriter(file, kept)
        yield writer
    if writer.tokens != tokens:
        raise ValueError(f"{writer.tokens} scored tokens were given for a reference of {tokens}")


def _record(kept: int) -> "np.dtype[np.void]":
    """What is stored of one scored token: its most probable next tokens, best first, and the mass beyond them."""
    import numpy as np

    return np.dtype([("ids", "<i4", (kept,)), ("log_probs", "<f4", (kept,)), ("tail", "<f8")])


class Reference:
    """A stored reference, read from its file a block at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        stored = self._open()
        self.tokens = len(stored)
        self.top_k = int(stored.dtype["ids"].shape[0])

    def tail_mass(self) -> float:
        """The mean probability beyond the kept tokens."""
        total = 0.0
        for start in range(0, self.tokens, _TOKENS_AT_ONCE):
            total += float(self._open()[start : start + _TOKENS_AT_ONCE]["tail"].sum())
        return total / self.tokens

    def _open(self) -> "NDArray[np.void]":
        """The file, mapped afresh: pages of an earlier mapping would stay and count as this process's memory."""
        import numpy as np

        stored: NDArray[np.void] = np.load(self._path, mmap_mode="r")
        return stored

    def compare(self, first: int, log_probs: "NDArray[np.float32]") -> Divergence:
        """The divergence of a candidate on the scored tokens from index `first` on, counted over all rows.

        `log_probs` are the candidate's, shape (scored tokens, vocabulary). A broken model's give a divergence that is
        not finite.
        """
        import numpy as np

        stored = self._open()[first : first + len(log_probs)]
        ids, p_log = stored["ids"], stored["log_probs"].astype(np.float64)
        q_log = np.take_along_axis(log_probs, ids.astype(np.int64), axis=1).astype(np.float64)
        p = np.exp(p_log)
        with np.errstate(invalid="ignore"):
            # a token that the reference gives no probability at all adds nothing; 0 log 0 would be NaN
            divergence = np.sum(np.where(p == 0, 0.0, p * (p_log - q_log)), axis=1)
        if ids.shape[1] < log_probs.shape[1]:
            divergence += _tail_term(stored["tail"], _tail_mass(q_log))
        # rounding in float32 can leave a divergence of -1e-8 where nothing differs
        return Divergence(np.maximum(divergence, 0.0), np.argmax(log_probs, axis=1) == ids[:, 0])


def _tail_mass(top_log_probs: "NDArray[np.floating]") -> "NDArray[np.float64]":
    """Probability beyond the kept tokens, per row; never negative."""
    import numpy as np

    return np.asarray(np.maximum(0.0, 1.0 - np.exp(top_log_probs.astype(np.float64)).sum(axis=1)))


def _tail_term(p: "NDArray[np.float64]", q: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """The tail bin's p log(p/q); a tail below float32's resolution counts as that resolution."""
    import numpy as np

    smallest = float(np.finfo(np.float32).eps)
    p_safe, q_safe = np.maximum(p, smallest), np.maximum(q, smallest)
    return np.asarray(p * np.log(p_safe / q_safe), dtype=np.float64)
