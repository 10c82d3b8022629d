"""Texts as arrays of 64-bit hashes: of characters in a row, and of words in a row.

All of it is numpy over code points, in blocks of texts, so that neither a set nor a list of Python strings is made per
text. Everything is fixed (no seed, no `hash()`), so the same texts give the same arrays in every process.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from finetune.data.duplicates import SHINGLE_CHARACTERS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]

# Two arrays of this many 32-bit numbers stay in a core's second-level cache, which halves the time of MinHash.
BLOCK_CHARACTERS = 1 << 16
# Fills up texts that are shorter than a shingle. A noncharacter (Unicode 16, section 23.7), so no text should have it.
_FILLER = "\uffff"

_SEPARATOR, _RUN, _WORD_OF_ITS_OWN = 0, 1, 2
# Scripts whose words stand without spaces: Han (with its marks and numerals), kana, bopomofo. Hangul has spaces.
_NO_SPACES = ((0x3005, 0x3007), (0x3021, 0x3029), (0x3041, 0x30FF), (0x3105, 0x312F), (0x31A0, 0x31BF),
              (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))  # fmt: skip
# No letter or digit is assigned above plane 3 (Unicode 16).
_LETTERS_END = 0x40000
_VARIATION_SELECTORS = (0xFE00, 0xFE0F)


class Counted:
    """Texts that are counted while they are read."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._unread = texts
        self.texts = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._unread:
            self.texts += 1
            yield text


def normalised(text: str) -> str:
    """The text as it is compared: NFKC, casefold, every run of white space one space, none at the ends."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The normalised texts in lists of about `BLOCK_CHARACTERS`; a longer text is a list of its own or ends one."""
    block: list[str] = []
    characters = 0
    for text in map(normalised, texts):
        block.append(text)
        characters += len(text)
        if characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def mixed(numbers: "Hashes") -> "Hashes":
    """A bijection of 64 bits in which every bit of the input turns about half of the output's.

    The finalizer of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", variant 13).
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def constants(count: int, purpose: int) -> "Hashes":
    """`count` fixed numbers that look random, [count]: SplitMix64's stream from a start that depends on `purpose`."""
    steps = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(purpose << 32)
    return mixed(steps * np.uint64(0x9E3779B97F4A7C15))


def _code_points(text: str) -> "NDArray[np.uint32]":
    """[characters]; half a surrogate pair, as JSON may hold it, is a code point like any other."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _in_a_row(numbers: "Hashes", length: int, purpose: int) -> "Hashes":
    """Hashes of every `length` numbers in a row, [len(numbers) - length + 1].

    A sum of the numbers, each times an odd constant of its place, mod 2^64, mixed. Two different rows meet with a
    probability near 2^-64: a million of them hold such a pair once in 10^7 times.
    """
    factors = constants(length, purpose) | np.uint64(1)
    count = len(numbers) - length + 1
    total = numbers[:count] * factors[0]
    for place in range(1, length):
        total += numbers[place : place + count] * factors[place]
    return mixed(total)


def shingles(block: Sequence[str]) -> "tuple[Hashes, NDArray[np.int64]]":
    """The hashed shingles of normalised texts, with repetitions, and how many each text has.

    A text of fewer than `SHINGLE_CHARACTERS` characters, the empty one too, is one shingle: all of it.

    Returns:
        [shingles of all texts, in order], [texts], the latter at least 1 each.
    """
    filled = [text.ljust(SHINGLE_CHARACTERS, _FILLER) for text in block]
    lengths = np.fromiter(map(len, filled), dtype=np.int64, count=len(filled))
    hashes = _in_a_row(_code_points("".join(filled)).astype(np.uint64), SHINGLE_CHARACTERS, purpose=1)
    across = (np.cumsum(lengths)[:-1, None] - np.arange(1, SHINGLE_CHARACTERS)).ravel()
    within = np.ones(len(hashes), dtype=np.bool_)
    within[across] = False
    return hashes[within], lengths - (SHINGLE_CHARACTERS - 1)


@lru_cache(maxsize=1)
def _kinds() -> "NDArray[np.uint8]":
    """What each code point is to a word, [0x110000]: a separator, part of a run, or a word of its own."""
    categories = map(unicodedata.category, map(chr, range(_LETTERS_END)))
    kinds = np.zeros(0x110000, dtype=np.uint8)
    # Marks belong to the run they stand in: without them, the words of most Indic scripts would fall to pieces.
    kinds[:_LETTERS_END] = np.fromiter((category[0] in "LNM" for category in categories), np.uint8, _LETTERS_END)
    for first, last in _NO_SPACES:
        kinds[first : last + 1] *= _WORD_OF_ITS_OWN
    kinds[_VARIATION_SELECTORS[0] : _VARIATION_SELECTORS[1] + 1] = _SEPARATOR
    return kinds


def _words(block: Sequence[str]) -> "tuple[Hashes, NDArray[np.int64]]":
    """The hashed words of normalised texts and the text in `block` that each stands in: [words], [words]."""
    codes = _code_points("\n".join(block))
    kinds = _kinds()[codes]
    before = np.concatenate(([_SEPARATOR], kinds[:-1])) if len(kinds) else kinds
    starts = np.flatnonzero((kinds == _WORD_OF_ITS_OWN) | ((kinds == _RUN) & (before != _RUN)))
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    inside = np.flatnonzero(kinds != _SEPARATOR)
    first = np.searchsorted(inside, starts)
    place = inside - np.repeat(starts, np.diff(first, append=len(inside)))
    powers = np.cumprod(np.full(place.max() + 1, constants(1, purpose=2)[0] | np.uint64(1), dtype=np.uint64))
    words = mixed(np.add.reduceat(mixed(codes[inside].astype(np.uint64)) * powers[place], first))
    lengths = np.fromiter(map(len, block), dtype=np.int64, count=len(block))
    return words, np.searchsorted(np.cumsum(lengths + 1), starts, side="right")


def word_grams(block: Sequence[str], length: int) -> "tuple[Hashes, NDArray[np.int64]]":
    """The hashes of every `length` words in a row of normalised texts, and the text in `block` that each stands in.

    A word is a run of letters, digits and their marks in a script that has spaces; each Han character, kana and
    bopomofo letter counts as a word. (Thai, Lao, Khmer and Burmese have no spaces either, but a character of theirs is
    far less than a word, so what stands between two spaces counts as one there.)

    Returns:
        [n-grams], [n-grams]; a text of fewer words has none.
    """
    words, owners = _words(block)
    if len(words) < length:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    grams = _in_a_row(words, length, purpose=3)
    within = owners[: len(grams)] == owners[length - 1 :]
    return grams[within], owners[: len(grams)][within]
