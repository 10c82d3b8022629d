"""The smallest model interface that serves every check: log-probabilities of given ids, and greedy generation.

Engines are given token ids, never text, so that all of them see the same input.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from export.artifacts import EngineName
from export.frozen import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Subject(Frozen):
    """One thing to measure: a name from the report and what its engine needs to load it.

    `path` is a model folder, or a `.gguf` file. `adapter` is attached to the model at `path`, unmerged.
    `four_bit_compute` holds the base in NF4 that computes in that type, as QLoRA trained it.
    """

    name: str
    engine: EngineName
    path: Path
    adapter: Path | None = None
    four_bit_compute: Literal["float32", "bfloat16", "float16"] | None = None


class Generation(Frozen):
    """One greedy answer: its token ids (the stop token not included), and whether a stop token ended it.

    `seconds` is what the answer took. llama.cpp counts decoding alone; transformers cannot tell it from reading the
    prompt, and divides a batch's time evenly. Prompts given one per call are decoded as a single stream.
    """

    ids: tuple[int, ...]
    stopped: bool
    seconds: float


class Engine(Protocol):
    """A loaded model. `load` functions of the engine modules return one; `close` frees it."""

    def log_probs(self, ids: Sequence[int], positions: Sequence[int]) -> "NDArray[np.float32]":
        """Log-probabilities, natural log, shape (len(positions), vocabulary).

        Row i is the distribution over the token at index positions[i], given the ids before it. The vocabulary's
        padding rows are dropped and the rest renormalised. Values may be non-finite when the model is broken.
        """
        ...

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        """Greedy answers to prompts of token ids, in order. Stops at any stop id the artifact itself declares."""
        ...

    def close(self) -> None:
        """Frees the model's memory."""
        ...
