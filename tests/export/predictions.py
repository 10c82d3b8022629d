"""What a folder predicts through our engine, and how far two predictions lie apart, for tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.engines import Subject, hf


def log_probs(folder: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Log-probabilities behind every id but the last, shape (ids - 1, vocabulary)."""
    engine = hf.load(Subject(name="x", engine="hf", path=folder), vocabulary_size=None, threads=1)
    try:
        return engine.log_probs(ids, range(1, len(ids)))
    finally:
        engine.close()


def divergence(p_log: NDArray[np.float32], q_log: NDArray[np.float32]) -> float:
    """Mean KL divergence of rows of log-probabilities, shape (tokens, vocabulary), in nats."""
    p, q = p_log.astype(np.float64), q_log.astype(np.float64)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())
