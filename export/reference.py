"""The reference model's predictions, stored once and compared with every other subject's.

Per scored token the K most probable next tokens are kept, and what probability is left beyond them. The divergence of
a candidate is computed over those K tokens plus one bin for the tail, which by the data-processing inequality is never
larger than the full KL divergence and, with K in the hundreds, differs little (EvoPress, arXiv 2410.14649, uses top-K
KL too). With a vocabulary no larger than K nothing is left out and the divergence is exact.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP_K = 1024


class ReferenceWriter:
    """Collects the reference's predictions item by item; `save` writes them as one file."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int32]] = []
        self._log_probs: list[NDArray[np.float32]] = []
        self._tails: list[NDArray[np.float64]] = []

    def add(self, log_probs: "NDArray[np.float32]") -> None:
        """Takes one item's log-probabilities, shape (scored tokens, vocabulary)."""
        import numpy as np

        kept = min(TOP_K, log_probs.shape[1])
        ids = np.argpartition(log_probs, -kept, axis=1)[:, -kept:]
        order = np.argsort(-np.take_along_axis(log_probs, ids, axis=1), axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
        top = np.take_along_axis(log_probs, ids, axis=1)
        self._ids.append(ids.astype(np.int32))
        self._log_probs.append(top.astype(np.float32))
        self._tails.append(_tail_mass(top))

    def save(self, path: Path) -> None:
        """Writes all items, concatenated over tokens, to a numpy archive."""
        import numpy as np

        np.savez(
            path,
            ids=np.concatenate(self._ids),
            log_probs=np.concatenate(self._log_probs),
            tails=np.concatenate(self._tails),
            lengths=np.array([len(ids) for ids in self._ids]),
        )


class Reference:
    """A stored reference: its top-K predictions per item, each item's arrays of shape (scored tokens, K)."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        with np.load(path) as stored:
            cuts = np.cumsum(stored["lengths"])[:-1]
            self._ids = np.split(stored["ids"], cuts)
            self._log_probs = np.split(stored["log_probs"], cuts)
            self._tails = np.split(stored["tails"], cuts)
        self.top_k = int(self._ids[0].shape[1])
        self.tail_mass = float(np.mean(np.concatenate(self._tails)))

    def compare(self, item: int, log_probs: "NDArray[np.float32]") -> "tuple[NDArray[np.float64], NDArray[np.bool_]]":
        """Per scored token: KL(reference, candidate) in nats, and whether both put the same token first.

        `log_probs` are the candidate's, shape (scored tokens, vocabulary). A broken model's give a divergence that is
        not finite.
        """
        import numpy as np

        ids, p_log = self._ids[item], self._log_probs[item].astype(np.float64)
        q_log = np.take_along_axis(log_probs, ids.astype(np.int64), axis=1).astype(np.float64)
        p = np.exp(p_log)
        with np.errstate(invalid="ignore"):
            # a token that the reference gives no probability at all adds nothing; 0 log 0 would be NaN
            divergence = np.sum(np.where(p == 0, 0.0, p * (p_log - q_log)), axis=1)
        if ids.shape[1] < log_probs.shape[1]:
            divergence += _tail_term(self._tails[item], _tail_mass(q_log))
        # rounding in float32 can leave a divergence of -1e-8 where nothing differs
        return np.maximum(divergence, 0.0), np.argmax(log_probs, axis=1) == ids[:, 0]


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
