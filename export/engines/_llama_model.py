"""Opens a GGUF file with llama.cpp and reads its vocabulary: token ids of a text, stop ids, the chat template.

The vocabulary and the template are the file's own, so that they can be compared with those of the folder the file was
made from. Running the model is left to `export.engines.llama_cpp`.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.engines._llama_log import captured_log
from export.errors import EngineError


class Vocabulary:
    """The tokenizer inside a GGUF file, as llama.cpp runs it; valid while its model is open."""

    def __init__(self, model: Any) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._model = model
        self._pointer = llama_cpp.llama_model_get_vocab(model)

    @property
    def pointer(self) -> Any:
        """llama.cpp's own pointer to the vocabulary, for what it builds upon one."""
        return self._pointer

    def __len__(self) -> int:
        """Rows of the logits, padding included."""
        return int(self._library.llama_vocab_n_tokens(self._pointer))

    def tokenize(self, text: str, *, parse_special: bool = True, add_around: bool = False) -> list[int]:
        """Token ids of `text`, with nothing added around it unless `add_around` asks for what the file names.

        `parse_special` reads `<|im_start|>` and its like as the tokens they name, as a rendered conversation needs.
        """
        data = text.encode()
        # no token is shorter than one byte; one may be added at each end
        ids = (ctypes.c_int32 * (len(data) + 2))()
        count = self._library.llama_tokenize(self._pointer, data, len(data), ids, len(ids), add_around, parse_special)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(data)} bytes.")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out. Bytes that are not UTF-8 (a cut character) show as U+FFFD."""
        return b"".join(self._bytes_of(token) for token in ids).decode(errors="replace")

    def _bytes_of(self, token: int) -> bytes:
        """A token's bytes. A first call with too small a buffer answers with the size needed, negated."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = int(self._library.llama_token_to_piece(self._pointer, token, buffer, room, 0, False))
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def is_stop(self, token: int) -> bool:
        """Whether `token` ends a generation by the file's own account."""
        return bool(self._library.llama_vocab_is_eog(self._pointer, token))

    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generation by the file's own account: llama.cpp's end-of-generation set."""
        return tuple(token for token in range(len(self)) if self.is_stop(token))

    def end_of_turn_ids(self) -> tuple[int, int]:
        """The ids the file names as end of sequence and end of turn, -1 for one it does not name."""
        return (
            int(self._library.llama_vocab_eos(self._pointer)),
            int(self._library.llama_vocab_eot(self._pointer)),
        )

    def chat_template(self) -> str | None:
        """The Jinja source of the file's default chat template, or None when it has none."""
        template = self._library.llama_model_chat_template(self._model, None)
        return None if template is None else str(template.decode())


@contextmanager
def open_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """The vocabulary of the GGUF file at `path`, read without its weights. Raises EngineError as `load_model` does."""
    import llama_cpp

    model = load_model(path, vocabulary_only=True)
    try:
        yield Vocabulary(model)
    finally:
        with captured_log():
            llama_cpp.llama_model_free(model)


def model_parameters() -> Any:
    """llama.cpp's defaults for opening a model, without kernels that end the process where they are used.

    GCC drops the tiles' configuration from a build for AMX, so that the first product of a quantized matrix is an
    illegal instruction (seen with GCC 12; llama.cpp's pull request 26954). Such a build does without AMX, and without
    weights packed anew, which go by the same switch; `export.hardware` names it with the processor.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info()
    return parameters


def load_model(path: Path, *, vocabulary_only: bool = False) -> Any:
    """llama.cpp's model pointer for the GGUF file at `path`; the caller frees it.

    Raises EngineError with llama.cpp's own reason when the file is missing, cut short or of an unknown architecture.
    """
    import llama_cpp

    if not path.is_file():
        raise EngineError(f"{path} is not a file; llama.cpp runs GGUF files.")
    with captured_log() as log:
        llama_cpp.llama_backend_init()
        parameters = model_parameters()
        parameters.vocab_only = vocabulary_only
        # a mapped file would be in memory a second time where llama.cpp packs its weights anew for the processor
        parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise EngineError(f"llama.cpp could not load {path}: {log.reason()}. Make the file again if it is incomplete.")
    return model
