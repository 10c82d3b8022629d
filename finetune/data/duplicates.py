"""Near copies and shared word sequences between conversations.

Two texts are near copies if the Jaccard similarity of their sets of character 5-grams is 0.8 or more. Characters serve
English and Chinese alike, where words would need a segmenter; before comparing, texts are normalised (NFKC, casefold,
white space collapsed). Candidates come from MinHash and banding, which miss fewer than 1 in 100 pairs of similarity
0.8 and fewer of more similar ones; each is then compared exactly, so what is reported is true (the numbers and their
sources stand in `finetune.data._copy_index`).

A shared sequence of words finds what similarity does not: a held-out question quoted within a long training text.

Both see only what they are given: a long instruction that stands in every text makes all of them similar, so texts are
best given without what they have in common by design.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What a near copy is: the Jaccard similarity of sets of this many characters in a row.
SIMILARITY, SHINGLE_CHARACTERS = 0.8, 5
# Brown et al. 2020 ("Language Models are Few-Shot Learners", GPT-3), appendix C: overlaps of 13 words.
SHARED_WORDS = 13
# Words in a row that stand in more than this share of the texts, and in more than this many, are a shared instruction
# or a disclaimer and give nothing away about one text. Both are a choice of this project.
BOILERPLATE_SHARE, BOILERPLATE_TEXTS = 0.3, 10


def near_copies(texts: Iterable[str]) -> "NDArray[np.int64]":
    """For each text the index of the first earlier one it is a near copy of, -1 for none, [texts].

    "Earlier ones" are those that are themselves no near copy of an earlier one (that have -1), for two reasons. What is
    left when all texts with an index are dropped then has no two near copies in it, and each dropped text has its near
    copy among what is left; if A~B~C but not A~C, C stays, since B, which it resembles, goes. And a cluster of
    thousands of mutual near copies costs as many comparisons, not their square.

    The normalised texts stay in memory while it runs, with about 1 KB each. Time grows with the number of texts, and
    besides with the pairs that are similar (0.6 to 0.8) and yet no near copies.
    """
    from finetune.data import _copy_index

    return _copy_index.near_copies(texts)


def near_copies_among(candidates: Iterable[str], of: Iterable[str]) -> "NDArray[np.int64]":
    """For each candidate the index of a text in `of` that it is a near copy of, -1 for none, [candidates].

    All of `of` is looked at, near copies of each other too; which of several is named is not promised. `of` is read
    first, then the candidates.
    """
    from finetune.data import _copy_index

    return _copy_index.near_copies_among(candidates, of)


def shared_ngrams(candidates: Iterable[str], of: Iterable[str]) -> "NDArray[np.int64]":
    """For each candidate the index of the first text in `of` with which it shares 13 words in a row, -1 for none.

    What counts as a word is told in `finetune.data._text_hashes.word_grams`; texts of fewer than 13 words share
    nothing. Words in a row that stand in more than `BOILERPLATE_SHARE` of the texts of `of` and in more than
    `BOILERPLATE_TEXTS` of them are not counted; so a text that is copied that often in `of` hides itself, and near
    copies are to be dropped from `of` first. Words in a row are compared by a 64-bit hash alone.

    Memory grows with the candidates (about 50 bytes a word while it runs), not with `of`, which is streamed; the
    candidates are read first.

    Returns:
        [candidates], the least index where a candidate shares words with several texts.
    """
    from finetune.data import _shared_words

    return _shared_words.shared_ngrams(candidates, of)
