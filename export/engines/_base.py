"""The smallest model interface that serves every check: log-probabilities of given ids, and greedy generation.

Engines are given token ids, never text, so that all of them see the same input.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from export.artifacts import EngineName
from export.errors import EngineError
from export.frozen import Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Predictions are handed on this many rows at a time: of Qwen's 151,936 float32 logits they are 39 MB, so that measuring
# takes little beside the weights however long a row is.
ROWS_AT_ONCE = 64


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
    """A loaded model. `load` functions of the engine modules return one; `close` frees it.

    `prompts_at_once` is how many prompts `generate` answers side by side: more in one call save nothing. `rounding`
    says, where it does, that it computes less precisely than its weights ask for, and why.
    """

    prompts_at_once: int = 1
    rounding: str = ""

    def log_prob_blocks(self, ids: Sequence[int], positions: Sequence[int]) -> "Iterator[NDArray[np.float32]]":
        """Log-probabilities, natural log, in blocks of shape (at most ROWS_AT_ONCE, vocabulary), in order.

        Row i of all blocks together is the distribution over the token at index positions[i], given the ids before it.
        The vocabulary's padding rows are dropped and the rest renormalised. Values may be non-finite when the model is
        broken. Raises EngineError unless `positions` rise and each has a token before it.
        """
        ...

    def log_probs(self, ids: Sequence[int], positions: Sequence[int]) -> "NDArray[np.float32]":
        """All blocks of `log_prob_blocks` as one array, shape (len(positions), vocabulary): for short sequences."""
        import numpy as np

        return np.concatenate([block.copy() for block in self.log_prob_blocks(ids, positions)])

    def log_probs_behind(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> "Iterator[NDArray[np.float32]]":
        """The log-probabilities over each token of each continuation, shape (len(continuation), vocabulary), in order.

        What `log_prob_blocks` tells of prompt and continuation as one sequence, up to rounding: engines that can run
        the prompt once for all of them do.
        """
        for continuation in continuations:
            positions = range(len(prompt), len(prompt) + len(continuation))
            yield self.log_probs((*prompt, *continuation), positions)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        """Greedy answers to prompts of token ids, in order. Stops at any stop id the artifact itself declares."""
        ...

    def close(self) -> None:
        """Frees the model's memory."""
        ...


def require_beginning(prompt: Sequence[int]) -> None:
    """Raises EngineError for a prompt of no tokens."""
    if not prompt:
        raise EngineError("the prompt has no tokens: nothing predicts the first token.")


def require_positions(ids: Sequence[int], positions: Sequence[int]) -> None:
    """Raises EngineError for positions that are out of order, or have no token before them."""
    if not all(1 <= position < len(ids) for position in positions):
        raise EngineError(f"positions must lie in 1..{len(ids) - 1}: nothing predicts the first token.")
    if any(later <= earlier for earlier, later in pairwise(positions)):
        raise EngineError("positions must rise: predictions are made in the order of the tokens.")
