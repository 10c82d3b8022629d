"""What a name promises about the weights: the type of a GGUF file, and the bits per weight.

A name is what somebody goes by who downloads a file: limits are chosen by it, and the file is held to it.
"""

import re
from functools import cache
from typing import NamedTuple

# What a model is called besides is no promise: neither Qwen2.5-0.5B nor v1.5-2024-12-16.
_PROMISE = re.compile(
    r"(?<![a-z0-9])(?:(?:i?q|tq)(?P<q>[1-6]|8)(?![0-9])"  # llama.cpp's: q4_k_m, iq2_xs, tq1_0
    r"|(?:bf(?P<bf>16)|fp?(?P<f>16|32)|fp(?P<fp>[468])|(?:mxfp|nvfp)(?P<x>[468])|int(?P<int>[2348]))(?![a-z0-9])"
    r"|w(?P<w>[2-8]|16)(?=a[0-9])"  # w4a16
    r"|(?P<bit>16|32|[1-6]|8)[-_ ]?bits?(?![a-z0-9]))",
    re.IGNORECASE,
)


class Promise(NamedTuple):
    """One of llama.cpp's file types, in lower case, and nominal bits per weight; None for what is not promised.

    A name may promise bits and no type that is known: a mix of somebody's own (Q4_K_L, UD-Q4_K_XL), or a GPTQ folder.
    """

    file_type: str | None
    bits: int | None


def promised(name: str) -> Promise:
    """What a subject's, a file's or a folder's name promises; of several promises the last (from-bf16-to-q5_1)."""
    found = [*_PROMISE.finditer(name)]
    if not found:
        return Promise(None, None)
    word = re.match(r"[a-z0-9_]+", name[found[-1].start() :].lower())
    known = word is not None and word[0] in file_types()
    return Promise(word[0] if known and word else None, int(found[-1][found[-1].lastgroup or 0]))


@cache
def file_types() -> tuple[str, ...]:
    """llama.cpp's names of its file types, in lower case, in the order of their numbers."""
    import gguf

    return tuple(name.removeprefix("MOSTLY_").removeprefix("ALL_").lower() for name in gguf.LlamaFileType.__members__)
