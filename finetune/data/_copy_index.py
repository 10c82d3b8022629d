"""MinHash signatures of texts, and an index that finds the near copies of a text by them.

A signature (Broder 1997, "On the resemblance and containment of documents") holds, for each of many hash functions, the
least hash among a text's shingles; two texts agree in a place with a probability that is their Jaccard similarity s. It
is cut into b bands of r places, and texts that agree in a whole band are candidates: with probability 1-(1-s^r)^b
(Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4.2).

Candidates are looked at twice. First their signatures are compared, one byte a place, which costs some 50 ns and turns
away what is plainly less similar; what is left is compared exactly, shingle by shingle.

datasketch 2.0.0 was measured for this (256 places, texts of 300 characters, one core): 168 µs for a text's MinHash and
82 µs to insert and query it, and its MinHashLSH holds 10.8 KB a text in Python dicts and sets: 2.1 GB for 200,000
texts, where the numpy arrays here are 0.6 KB a text. That is why it is not used.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetune.data._text_hashes import Counted, blocks, constants, mixed, shingles
from finetune.data.duplicates import SIMILARITY

if TYPE_CHECKING:
    from numpy.typing import NDArray

# 1-(1-s^r)^b with r=8, b=32: 0.9972 at s=0.8, 0.99999998 at 0.9; 0.85 at 0.7, 0.42 at 0.6, 0.12 at 0.5, 0.002 at 0.3.
BAND_PLACES, BANDS = 8, 32
PLACES = BAND_PLACES * BANDS
# Of 256 places, a pair of similarity 0.8 agrees in 204.8 with a standard deviation of 6.4 (binomial): 4.5 of them below
# is 176. P(fewer | s=0.8) = 7e-6, far below what the bands miss; a pair of 0.6 reaches it with P = 0.002.
_AGREEING_PLACES = 176
# Candidates are looked at in order, in blocks that grow: usually one of the first is a copy.
_FIRST_BLOCK, _LARGEST_BLOCK = 8, 4096
_KEPT_SHINGLES_BYTES = 256 << 20


def near_copies(texts: Iterable[str]) -> "NDArray[np.int64]":
    """`finetune.data.duplicates.near_copies`."""
    sketches = sketched(texts)
    index = CopyIndex(sketches)
    copies = np.full(len(sketches.encoded), -1, dtype=np.int64)
    for text in np.flatnonzero(~index.alone).tolist():
        copies[text] = index.first_copy(text)
        if copies[text] < 0:
            index.add(text)
    return copies


def near_copies_among(candidates: Iterable[str], of: Iterable[str]) -> "NDArray[np.int64]":
    """`finetune.data.duplicates.near_copies_among`."""
    counted = Counted(of)
    sketches = sketched(counted, candidates)
    index = CopyIndex(sketches)
    copies = np.full(len(sketches.encoded), -1, dtype=np.int64)
    for text in np.flatnonzero(~index.alone).tolist():
        if text < counted.texts:
            index.add(text)
        else:
            copies[text] = index.any_copy(text)
    return copies[counted.texts :]


@dataclass(frozen=True, slots=True)
class Sketches:
    """What is kept of texts: about 0.6 KB and the normalised text itself, encoded, each."""

    band_keys: "NDArray[np.uint64]"
    """[texts, BANDS], a hash of the places of each band."""
    places: "NDArray[np.uint8]"
    """[texts, PLACES], the low byte of each place of the signature (b-bit minwise hashing, Li and König 2010)."""
    encoded: list[bytes]
    """The normalised texts in UTF-8."""


def sketched(*collections: Iterable[str]) -> Sketches:
    """The sketches of all texts of the collections, which are read once, in order."""
    keys, places, encoded = [], [], []
    for collection in collections:
        for block in blocks(collection):
            signature = _signatures(*shingles(block))
            keys.append(_band_keys(signature))
            places.append(signature.T.astype(np.uint8))
            encoded += [text.encode("utf-8", "surrogatepass") for text in block]
    if not encoded:
        return Sketches(np.zeros((0, BANDS), np.uint64), np.zeros((0, PLACES), np.uint8), [])
    return Sketches(np.concatenate(keys), np.concatenate(places), encoded)


def _signatures(hashes: "NDArray[np.uint64]", counts: "NDArray[np.int64]") -> "NDArray[np.uint32]":
    """The MinHash signatures of texts that have `counts` of the hashed shingles each, [PLACES, texts].

    The hash functions are x -> a·x + c mod 2^32 with odd a, as in datasketch (which takes a prime modulus) on a hash
    that is mixed already; that they serve as well as random ones is what the tests of recall measure.
    """
    shingle = (hashes >> np.uint64(32)).astype(np.uint32)
    starts = np.cumsum(counts) - counts
    factors = constants(PLACES, purpose=4).astype(np.uint32) | np.uint32(1)
    addends = constants(PLACES, purpose=5).astype(np.uint32)
    signature = np.empty((PLACES, len(counts)), dtype=np.uint32)
    hashed = np.empty_like(shingle)
    for place in range(PLACES):
        np.multiply(shingle, factors[place], out=hashed)
        np.add(hashed, addends[place], out=hashed)
        np.minimum.reduceat(hashed, starts, out=signature[place])
    return signature


def _band_keys(signature: "NDArray[np.uint32]") -> "NDArray[np.uint64]":
    """Of signatures [PLACES, texts], a 64-bit hash of each band: [texts, BANDS]."""
    bands = signature.reshape(BANDS, BAND_PLACES, -1)
    factors = constants(BAND_PLACES, purpose=6) | np.uint64(1)
    keys = np.zeros((BANDS, bands.shape[2]), dtype=np.uint64)
    for place in range(BAND_PLACES):
        keys += bands[:, place] * factors[place]
    return mixed(keys).T


def _numbered(band_keys: "NDArray[np.uint64]") -> "tuple[NDArray[np.int32], int]":
    """The buckets that hold two texts or more, numbered: [texts, BANDS] with -1 for a text alone, and their number."""
    buckets = np.full(band_keys.shape, -1, dtype=np.int32)
    total = 0
    for band in range(band_keys.shape[1]):
        _, inverse, counts = np.unique(band_keys[:, band], return_inverse=True, return_counts=True)
        shared = counts > 1
        numbers = np.where(shared, np.cumsum(shared) - 1 + total, -1).astype(np.int32)
        buckets[:, band] = numbers[inverse]
        total += int(shared.sum())
    return buckets, total


class CopyIndex:
    """Finds for a text, by its number in the sketches, one that was added before and that it is a near copy of.

    All texts that will be added or looked up are sketched beforehand: only buckets that two of them share exist, which
    is a small part of all where most texts are alone. A bucket's first text stands in an array; only the buckets that
    get a second one take up a Python object.
    """

    def __init__(self, sketches: Sketches) -> None:
        """An empty index for these texts."""
        self._sketches = sketches
        self._buckets, total = _numbered(sketches.band_keys)
        self.alone: NDArray[np.bool_] = np.all(self._buckets < 0, axis=1)
        """[texts], whether a text shares no bucket: there is nothing to be found for it, and no use in adding it."""
        self._heads = np.full(total, -1, dtype=np.int64)
        self._crowded = np.zeros(total, dtype=np.bool_)
        self._others: dict[int, array[int]] = {}
        self._marked = np.zeros(len(sketches.encoded), dtype=np.bool_)
        self._shingles: dict[int, NDArray[np.uint64]] = {}
        self._shingles_bytes = 0

    def add(self, text: int) -> None:
        """Adds a text to its buckets. Texts are added in rising order."""
        buckets = self._of(text)
        empty = self._heads[buckets] < 0
        self._heads[buckets[empty]] = text
        taken = buckets[~empty]
        self._crowded[taken] = True
        for bucket in taken.tolist():
            self._others.setdefault(bucket, array("q")).append(text)

    def first_copy(self, text: int) -> int:
        """The least added text that `text` is a near copy of, -1 for none."""
        buckets = self._of(text)
        crowded = buckets[self._crowded[buckets]]
        return self._first_similar(text, self._all(buckets, crowded) if len(crowded) else self._first(buckets))

    def any_copy(self, text: int) -> int:
        """An added text that `text` is a near copy of, -1 for none.

        Quicker than `first_copy` where whole clusters were added: the first text of every bucket is tried before all.
        """
        buckets = self._of(text)
        found = self._first_similar(text, self._first(buckets))
        crowded = buckets[self._crowded[buckets]]
        if found >= 0 or not len(crowded):
            return found
        return self._first_similar(text, self._all(buckets, crowded))

    def _of(self, text: int) -> "NDArray[np.int32]":
        buckets: NDArray[np.int32] = self._buckets[text]
        return np.compress(buckets >= 0, buckets)

    def _first(self, buckets: "NDArray[np.int32]") -> "NDArray[np.int64]":
        """The first text of each of the buckets, rising, each once."""
        heads = self._heads[buckets]
        return np.unique(heads[heads >= 0])

    def _all(self, buckets: "NDArray[np.int32]", crowded: "NDArray[np.int32]") -> "NDArray[np.int64]":
        """All texts of the buckets, of which `crowded` have more than one; rising, each once."""
        members = [np.frombuffer(self._others[bucket], dtype=np.int64) for bucket in crowded.tolist()]
        found = np.concatenate([self._first(buckets), *members])
        self._marked[found] = True
        texts = np.flatnonzero(self._marked)
        self._marked[texts] = False
        return texts

    def _first_similar(self, text: int, candidates: "NDArray[np.int64]") -> int:
        """The first of the candidates whose similarity to the text is `SIMILARITY` or more, -1 for none."""
        start, size = 0, _FIRST_BLOCK
        places = self._sketches.places
        while start < len(candidates):
            block = candidates[start : start + size]
            agreeing = np.count_nonzero(places[block] == places[text], axis=1)
            block = block[agreeing >= _AGREEING_PLACES]
            if len(block):
                similar = block[self._similarities(text, block.tolist()) >= SIMILARITY]
                if len(similar):
                    return int(similar[0])
            start, size = start + size, min(4 * size, _LARGEST_BLOCK)
        return -1

    def _similarities(self, text: int, others: list[int]) -> "NDArray[np.float64]":
        """The exact Jaccard similarities |A∩B| / |A∪B| of the text's shingles and those of each other one, [others]."""
        own = self._shingles_of(text)
        sets = [self._shingles_of(other) for other in others]
        sizes = np.fromiter(map(len, sets), dtype=np.int64, count=len(sets))
        joined = np.concatenate(sets)
        place = np.minimum(np.searchsorted(own, joined), len(own) - 1)
        common = np.add.reduceat((own[place] == joined).astype(np.int64), np.cumsum(sizes) - sizes)
        similarities: NDArray[np.float64] = common / (len(own) + sizes - common)
        return similarities

    def _shingles_of(self, text: int) -> "NDArray[np.uint64]":
        """The set of a text's hashed shingles, rising. Kept for the next time while all that are kept take little."""
        kept = self._shingles.get(text)
        if kept is not None:
            return kept
        made = np.unique(shingles([self._sketches.encoded[text].decode("utf-8", "surrogatepass")])[0])
        if self._shingles_bytes + made.nbytes > _KEPT_SHINGLES_BYTES:
            self._shingles.clear()
            self._shingles_bytes = 0
        self._shingles[text] = made
        self._shingles_bytes += made.nbytes
        return made
