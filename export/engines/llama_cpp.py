"""Runs a GGUF file with llama.cpp, through llama-cpp-python's bindings of its C interface.

The file's own weights, kernels and stop tokens are used, as on a device. Token ids go in and log-probabilities or ids
come out; text is made elsewhere. There is one context and one sequence.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.engines._base import Engine, Generation, require_beginning, require_positions
from export.engines._llama_log import LlamaLog, captured_log
from export.engines._llama_model import Vocabulary, load_model
from export.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH_TOKENS = 128
# llama.cpp holds the logits of a batch twice: of Qwen's 151,936 in float32 this many rows are 10 MB. A batch that more
# are wanted of is made shorter.
BATCH_LOGITS = 16
# Of keys and values while a file is measured: llama.cpp's default on a device too.
CACHE_TYPE = "f16"


class LlamaCppEngine(Engine):
    """A GGUF file, loaded; see `export.engines._base.Engine` for what each verb promises."""

    def __init__(self, model: Any, context: Any, vocabulary_size: int | None) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._model = model
        self._context = context
        self._memory = llama_cpp.llama_get_memory(context)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._in_cache: list[int] = []
        self._shared: list[int] = []  # the beginning of the cache, where it was run by itself
        self._can_keep_prefix = not (
            llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
        )
        self.vocabulary = Vocabulary(model)
        self._row_length = len(self.vocabulary)
        self._vocabulary_size = vocabulary_size or self._row_length
        if self._vocabulary_size > self._row_length:
            raise EngineError(
                f"the file has {self._row_length} tokens, fewer than the tokenizer's {self._vocabulary_size}: "
                "it was not made from this tokenizer's model."
            )

    def log_prob_blocks(
        self, ids: Sequence[int], positions: Sequence[int], shared_tokens: int = 0
    ) -> "Iterator[NDArray[np.float32]]":
        """See `Engine.log_prob_blocks`. A block lies in llama.cpp's own buffer and is overwritten by the next.

        The whole row is run afresh, so that a result never depends on what was run before it. Rows that begin alike
        may say in how many `shared_tokens`, all before the first position: these are run by themselves, and not again
        for the next row. A result then depends on that number too, by no more than rounding.
        """
        require_positions(ids, positions)
        wanted = frozenset(position - 1 for position in positions)
        if not positions:
            yield self._no_rows()
            return
        with captured_log() as log:
            begin = self._begun(ids[: min(shared_tokens, *wanted)], log)
            behind = frozenset(index - begin for index in wanted)
            for logits in self._decode(ids[begin : max(positions)], behind, log):
                for row in logits:
                    row[:] = _log_softmax(row)
                yield logits

    def log_probs_behind(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> "Iterator[NDArray[np.float32]]":
        """See `Engine.log_probs_behind`. The prompt is run once, where the architecture lets its cache be cut back."""
        import numpy as np

        require_beginning(prompt)
        with captured_log() as log:
            self._forget(keep=0)
            first = self._last_logits(prompt, log).copy()
            for continuation in continuations:
                self._forget(keep=len(prompt))
                if missing := prompt[len(self._in_cache) :]:
                    self._last_logits(missing, log)
                every = frozenset(range(len(continuation) - 1))
                rows = [first, *(row.copy() for rows in self._decode(continuation[:-1], every, log) for row in rows)]
                yield np.stack([_log_softmax(row) for row in rows[: len(continuation)]])

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        """See `Engine.generate`. `seconds` is decoding alone: it covers one model step per id in `ids`, and neither
        the prompt nor loading. Prompts that share a beginning with the one before reuse its cache, where the
        architecture allows (not where layers are recurrent, as in Qwen3.5).
        """
        with captured_log() as log:
            return [self._generate_one(prompt, max_new_tokens, log) for prompt in prompts]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text` by the file's own vocabulary, special tokens recognised."""
        return self.vocabulary.tokenize(text)

    def close(self) -> None:
        """Frees the model's memory; the engine cannot be used afterwards. Closing twice does nothing."""
        if self._context is None:
            return
        with captured_log():
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._context)
            self._library.llama_model_free(self._model)
        self._context = self._model = None

    def _generate_one(self, prompt: Sequence[int], max_new_tokens: int, log: LlamaLog) -> Generation:
        if not prompt:
            raise EngineError("the prompt has no tokens; there is nothing to generate from.")
        # the last prompt token is always run again: its logits are needed
        self._forget(keep=min(_common_prefix(self._in_cache, prompt), len(prompt) - 1))
        logits = self._last_logits(prompt[len(self._in_cache) :], log)
        ids: list[int] = []
        started = time.perf_counter()
        while len(ids) < max_new_tokens:
            token = int(logits.argmax())
            if self.vocabulary.is_stop(token):
                return Generation(ids=tuple(ids), stopped=True, seconds=time.perf_counter() - started)
            ids.append(token)
            logits = self._last_logits([token], log)
        return Generation(ids=tuple(ids), stopped=False, seconds=time.perf_counter() - started)

    def _last_logits(self, ids: Sequence[int], log: LlamaLog) -> "NDArray[np.float32]":
        """Logits behind the last of `ids`, which are run behind what is in the cache; shape (vocabulary,)."""
        (rows,) = self._decode(ids, frozenset([len(ids) - 1]), log)
        logits: NDArray[np.float32] = rows[0]
        return logits

    def _decode(self, ids: Sequence[int], wanted: frozenset[int], log: LlamaLog) -> "Iterator[NDArray[np.float32]]":
        """Runs `ids` behind the cached tokens, batch by batch; yields the logits at the indexes in `wanted`, in order.

        Logits have shape (at most BATCH_LOGITS, vocabulary) and live in llama.cpp's buffer: they must be read before
        the next batch runs.
        """
        import numpy as np

        self._check_room(len(ids))
        for start, stop in _batches(len(ids), wanted):
            asked = self._fill_batch(ids[start:stop], start, wanted)
            status = self._library.llama_decode(self._context, self._batch)
            if status != 0:
                raise EngineError(f"llama.cpp stopped with status {status} while it ran the model: {log.reason()}.")
            self._in_cache.extend(ids[start:stop])
            if asked:
                pointer = self._library.llama_get_logits(self._context)
                yield np.ctypeslib.as_array(pointer, shape=(asked, self._row_length))[:, : self._vocabulary_size]

    def _begun(self, shared: Sequence[int], log: LlamaLog) -> int:
        """Leaves just `shared` in the cache, run in batches of its own; how many tokens that is."""
        self._forget(keep=len(shared) if self._shared == list(shared) else 0)
        if missing := shared[len(self._in_cache) :]:
            for _ in self._decode(missing, frozenset(), log):
                pass
        self._shared = list(shared)
        return len(shared)

    def _no_rows(self) -> "NDArray[np.float32]":
        import numpy as np

        return np.empty((0, self._vocabulary_size), dtype=np.float32)

    def _check_room(self, new_tokens: int) -> None:
        room = self._library.llama_n_ctx(self._context)
        if len(self._in_cache) + new_tokens > room:
            raise EngineError(
                f"{len(self._in_cache) + new_tokens} tokens do not fit the context of {room}. "
                "Shorten the text, or give it a larger context."
            )

    def _fill_batch(self, chunk: Sequence[int], start: int, wanted: frozenset[int]) -> int:
        """Writes one batch of the single sequence 0, with logits asked for only where they are wanted; how many are."""
        batch, begin = self._batch, len(self._in_cache)
        batch.n_tokens = len(chunk)
        for offset, token in enumerate(chunk):
            if not 0 <= token < self._row_length:
                raise EngineError(f"token id {token} is outside the file's vocabulary of {self._row_length}.")
            batch.token[offset] = token
            batch.pos[offset] = begin + offset
            batch.n_seq_id[offset] = 1
            batch.seq_id[offset][0] = 0
            batch.logits[offset] = start + offset in wanted
        return sum(batch.logits[offset] for offset in range(len(chunk)))

    def _forget(self, keep: int) -> None:
        """Drops everything behind the first `keep` cached tokens; all of it where the memory cannot be cut."""
        if keep == len(self._in_cache) > 0:
            return
        if not self._can_keep_prefix:
            keep = 0
        if keep == 0:
            self._library.llama_memory_clear(self._memory, True)
        elif not self._library.llama_memory_seq_rm(self._memory, 0, keep, -1):
            self._library.llama_memory_clear(self._memory, True)
            keep = 0
        del self._in_cache[keep:]
        if keep < len(self._shared):
            self._shared = []


def load(
    path: Path, *, vocabulary_size: int | None, context_tokens: int, threads: int, exact: bool = False
) -> LlamaCppEngine:
    """The GGUF file at `path`, ready to run; `close` it when done.

    `vocabulary_size` is the number of real token ids: rows of the logits beyond it are padding and are dropped.
    `context_tokens` bounds prompt plus answer, and the cache that is allocated for them. `exact` keeps the cache in
    float32 and turns flash attention off, to compare with another implementation; without it the cache is in float16
    as llama.cpp does on a device.

    Raises EngineError with llama.cpp's reason when the file is missing, cut short or cannot be run.
    """
    import llama_cpp

    model = load_model(path)
    with captured_log() as log:
        context = llama_cpp.llama_init_from_model(model, _context_parameters(context_tokens, threads, exact))
        if not context:
            llama_cpp.llama_model_free(model)
            raise EngineError(
                f"llama.cpp could not set up a context of {context_tokens} tokens for {path}: {log.reason()}."
            )
    return LlamaCppEngine(model, context, vocabulary_size)


def _context_parameters(context_tokens: int, threads: int, exact: bool) -> Any:
    import llama_cpp

    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = context_tokens
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    parameters.n_outputs_max = BATCH_LOGITS
    parameters.n_outputs_max_per_seq = 0  # as many as the batch; the default of 1 serves plain chat
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.type_k = parameters.type_v = (
        llama_cpp.GGML_TYPE_F32 if exact else getattr(llama_cpp, f"GGML_TYPE_{CACHE_TYPE.upper()}")
    )
    if exact:
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return parameters


def _batches(count: int, wanted: frozenset[int]) -> Iterator[tuple[int, int]]:
    """Cuts `count` tokens into batches (start, stop) of at most BATCH_TOKENS, and BATCH_LOGITS wanted ones."""
    start = logits = 0
    for index in range(count):
        if index - start == BATCH_TOKENS or (index in wanted and logits == BATCH_LOGITS):
            yield start, index
            start, logits = index, 0
        logits += index in wanted
    if count:
        yield start, count


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))


def _log_softmax(logits: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Natural log of the softmax over the last axis, summed in float64; NaN and infinite logits pass through."""
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):
        shifted = logits.astype(np.float64) - logits.max()
        normalised: NDArray[np.float32] = (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
    return normalised
