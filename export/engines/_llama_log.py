"""Keeps llama.cpp quiet, and keeps what it said, so that an error can repeat the reason.

llama.cpp logs through one process-wide callback; this module swaps it for the length of a block and puts the previous
one back. What the lines mean is left to the callers.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# enum ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 goes on with the message before
ERROR_LEVEL = 4
CONTINUATION_LEVEL = 5
LAST_LINES = 6


class LlamaLog:
    """What llama.cpp logged inside one `captured_log` block."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, str]] = []

    def add(self, level: int, piece: str) -> None:
        """Keeps one message; a continuation takes the level of the message before it."""
        if level == CONTINUATION_LEVEL and self._pieces:
            level = self._pieces[-1][0]
        self._pieces.append((level, piece))

    @property
    def text(self) -> str:
        """Everything that was logged, in order; a line may have been logged in several pieces."""
        return "".join(piece for _, piece in self._pieces)

    def reason(self) -> str:
        """The last lines that llama.cpp itself called errors, else the last lines of any kind, as one sentence."""
        errors = "".join(piece for level, piece in self._pieces if level >= ERROR_LEVEL)
        lines = [line.strip(" =") for line in (errors or self.text).splitlines()]
        return " / ".join([line for line in lines if line][-LAST_LINES:]) or "llama.cpp gave no reason"


@contextmanager
def captured_log() -> Iterator[LlamaLog]:
    """A block in which llama.cpp prints nothing; the log it yields holds what was said."""
    import llama_cpp

    log = LlamaLog()

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, piece: bytes, _user_data: int) -> None:
        log.add(level, piece.decode("utf-8", errors="replace"))

    previous, previous_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(previous), ctypes.byref(previous_data))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        yield log
    finally:
        llama_cpp.llama_log_set(previous, previous_data)
