"""Finds hashed sequences of words of some texts in others; what the public function promises is told there."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from finetune.data._text_hashes import Counted, blocks, word_grams
from finetune.data.duplicates import BOILERPLATE_SHARE, BOILERPLATE_TEXTS, SHARED_WORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray


def shared_ngrams(candidates: Iterable[str], of: Iterable[str]) -> "NDArray[np.int64]":
    """`finetune.data.duplicates.shared_ngrams`."""
    counted = Counted(candidates)
    grams, owners = _grams_of(counted)
    found = np.full(counted.texts, np.iinfo(np.int64).max, dtype=np.int64)
    known, which = np.unique(grams, return_inverse=True)
    holders, first, of_texts = _seen(known, of)
    boilerplate = holders > max(BOILERPLATE_TEXTS, BOILERPLATE_SHARE * of_texts)
    first[boilerplate] = np.iinfo(np.int64).max
    np.minimum.at(found, owners, first[which])
    found[found == np.iinfo(np.int64).max] = -1
    return found


def _grams_of(texts: Iterable[str]) -> "tuple[NDArray[np.uint64], NDArray[np.int64]]":
    """All hashed sequences of words of the texts, and the text of each: [n-grams], [n-grams]."""
    grams: list[NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
    owners: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    done = 0
    for block in blocks(texts):
        found, local = word_grams(block, SHARED_WORDS)
        grams.append(found)
        owners.append(local + done)
        done += len(block)
    return np.concatenate(grams), np.concatenate(owners)


def _seen(known: "NDArray[np.uint64]", texts: Iterable[str]) -> "tuple[NDArray[np.int64], NDArray[np.int64], int]":
    """Where the n-grams `known` (rising, each once) stand in the texts, which are read once.

    Returns:
        [known], in how many texts; [known], the first of them (the largest number for none); how many texts were read.
    """
    holders = np.zeros(len(known), dtype=np.int64)
    first = np.full(len(known), np.iinfo(np.int64).max, dtype=np.int64)
    done = 0
    for block in blocks(texts):
        grams, local = word_grams(block, SHARED_WORDS)
        if len(known) and len(grams):
            place = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            hit = known[place] == grams
            # A sequence that a text repeats counts once for it.
            pairs = np.unique(place[hit] * len(block) + local[hit])
            np.add.at(holders, pairs // len(block), 1)
            np.minimum.at(first, pairs // len(block), pairs % len(block) + done)
        done += len(block)
    return holders, first, done
