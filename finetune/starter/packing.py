"""Turns the document stream into training batches: windows of 256 token ids.

A window starts at the start of a document and its last document is cut where the window ends; since documents cost
nothing to make, no window carries padding and none begins in the middle of a task. Each batch is drawn from a seed of
its own, so a resumed run continues with exactly the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from finetune.starter.corpus import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WINDOW_TOKENS = 256


def fill_windows(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, count: int, skipped: Collection[str] = ()
) -> list[list[int]]:
    """Pack ``count`` windows; documents in ``skipped`` (the held-out ones) are left out."""
    separator = tokenizer.pad_token_id
    windows: list[list[int]] = []
    window: list[int] = []
    while len(windows) < count:
        text = next(texts)
        if text in skipped:
            continue
        window += [*tokenizer(text).input_ids, separator]
        if len(window) >= WINDOW_TOKENS:
            windows.append(window[:WINDOW_TOKENS])
            window = []
    return windows


def training_windows(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int, count: int, skipped: Collection[str]
) -> list[list[int]]:
    """The ``count`` windows of one training step."""
    return fill_windows(documents(f"{seed}:{step}"), tokenizer, count, skipped)


def first_documents(seed: str, count: int) -> list[str]:
    """The first ``count`` documents of a stream."""
    return [text for _, text in zip(range(count), documents(seed), strict=False)]
