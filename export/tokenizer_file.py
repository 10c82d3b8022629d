"""A folder's tokenizer.json as the `tokenizers` library reads it, without transformers and torch.

What is measured in llama.cpp stays free of them this way. Chat templates and turn ends are `export.chat_tokenizer`'s.
"""

from collections.abc import Sequence
from pathlib import Path


class TokenizerFile:
    """Text to ids and back. Special tokens are shown, so that a leaked one is seen."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added around it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
