"""Which type each tensor should have so that a file of a given size loses least: measured, not guessed.

    type_files.py   every tensor in every candidate type, quantized once each; files put together from them
    trials.py       the KL divergence of a mix on assistant tokens, each measured once and kept on disk
    sensitivity.py  what one tensor in one type is expected to cost
    knapsack.py     the best choice of types within a number of bytes
    ladder.py       llama.cpp's own mixes of about that size
    searching.py    the order of it all, and its record

A file that is put together holds the very bytes that llama.cpp's quantizer would write for the same types, so that a
trial costs a copy and a measurement. What is found is written by the quantizer itself (`export.formats`).
"""

from export.search.searching import RECORD, Search, SearchRecord, search
from export.search.trials import Trial

__all__ = ["RECORD", "Search", "SearchRecord", "Trial", "search"]
