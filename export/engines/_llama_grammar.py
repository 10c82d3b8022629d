"""Walks a GBNF grammar with llama.cpp's own sampler: which tokens may come next, and what a token leads to.

It is the very code that a device runs while it generates. Where a grammar comes from is the caller's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from export.engines._llama_log import captured_log
from export.engines._llama_model import Vocabulary
from export.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROOT = b"root"


class GrammarWalk:
    """A grammar over a file's vocabulary, at the place behind the tokens that were accepted; `close` frees it.

    Raises EngineError with llama.cpp's reason for a text that is no grammar.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: str) -> None:
        import ctypes

        import llama_cpp
        import numpy as np

        self._library = llama_cpp
        with captured_log() as log:
            self._sampler: Any = llama_cpp.llama_sampler_init_grammar(vocabulary.pointer, grammar.encode(), _ROOT)
        if not self._sampler:
            raise EngineError(
                f"llama.cpp reads no grammar in this text: {log.reason()}. Make it from the schema again."
            )
        # llama_token_data: int32 id, float logit, float p
        self._tokens = np.zeros(len(vocabulary), dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._tokens["id"] = np.arange(len(vocabulary), dtype=np.int32)
        self._array = llama_cpp.llama_token_data_array(
            self._tokens.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data)), len(vocabulary), -1, False
        )

    def allowed(self) -> "NDArray[np.bool_]":
        """Which tokens may come next, shape (vocabulary,); those that end a generation only where the text may end."""
        import ctypes

        import numpy as np

        self._tokens["logit"] = 0.0
        self._library.llama_sampler_apply(self._sampler, ctypes.byref(self._array))
        allowed: NDArray[np.bool_] = self._tokens["logit"] == 0.0
        return allowed

    def accept(self, token: int) -> None:
        """Goes on behind a token, which must be one that is `allowed`: any other ends the process."""
        self._library.llama_sampler_accept(self._sampler, token)

    def first_rejected(self, ids: Sequence[int]) -> int | None:
        """The index of the first of `ids` that may not come where it stands; None where all may. Starts anew."""
        self.restart()
        for index, token in enumerate(ids):
            if not self.allowed()[token]:
                return index
            self.accept(token)
        return None

    def restart(self) -> None:
        """Goes back to the grammar's beginning."""
        self._library.llama_sampler_reset(self._sampler)

    def close(self) -> None:
        """Frees the grammar; it cannot be walked afterwards. Closing twice does nothing."""
        if self._sampler is not None:
            self._library.llama_sampler_free(self._sampler)
        self._sampler = None
