"""Text files as lines, whatever they are encoded in: which encoding a file has, and its lines in flat memory.

What is not valid in its encoding is an error with its line and byte: a replaced character would be trained on.
"""

import codecs
import re
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Literal

from export.errors import DataError

Encoding = Literal["auto", "utf-8", "utf-16", "gb18030"]

# A longer line is no row that a model could be trained on; a file without line breaks would fill the memory.
LINE_LIMIT = 16 * 2**20
_BLOCK_BYTES = 2**20
_JUDGED_CHARACTERS = 10**6
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    ("\ufeff".encode("gb18030"), "gb18030"),
)
_PYTHONS_NAMES = {"utf-8": "utf-8-sig"}
_LOST = "\udcff"
codecs.register_error("fieldtune-lost", lambda error: (_LOST, getattr(error, "end", 0)))


def encoding_of(path: Path, encoding: Encoding = "auto") -> str:
    """The encoding that a text file is read in: the one given or, for auto, the one its bytes show.

    A byte order mark decides; else UTF-8 where the whole file is valid in it; else GB18030 where the whole file is
    valid in that and most of its characters outside ASCII are common Chinese ones. A file that is neither is taken for
    UTF-8, and the error of reading it tells the byte that is not. Raises DataError where it cannot be opened.
    """
    if encoding != "auto":
        return encoding
    try:
        status = path.stat()
        return _shown_by_bytes(path, status.st_size, status.st_mtime_ns)
    except PermissionError:
        raise _not_permitted(path) from None


def lines_of(path: Path, encoding: Encoding = "auto") -> Iterator[str]:
    """The lines of a text file with their line ends, without a byte order mark.

    Raises DataError for a line of more than LINE_LIMIT characters, before it is read, and for one that is not valid.
    """
    codec = encoding_of(path, encoding)
    try:
        with path.open(encoding=_PYTHONS_NAMES.get(codec, codec), newline="") as file:
            read = partial(file.readline, LINE_LIMIT)
            if not (first := read().removeprefix("\ufeff")):
                return
            for number, line in enumerate(chain([first], iter(read, "")), start=1):
                if len(line) >= LINE_LIMIT and line[-1] not in "\r\n":
                    raise DataError(_too_long(path, number))
                yield line
    except UnicodeError as error:
        raise _undecodable(path, codec, error) from None
    except PermissionError:
        raise _not_permitted(path) from None


def text_of(path: Path, encoding: Encoding = "auto") -> str:
    """The whole of a text file, with its line ends and without a byte order mark. Raises DataError as `lines_of`."""
    codec = encoding_of(path, encoding)
    try:
        with path.open(encoding=_PYTHONS_NAMES.get(codec, codec), newline="") as file:
            return file.read().removeprefix("\ufeff")
    except UnicodeError as error:
        raise _undecodable(path, codec, error) from None
    except PermissionError:
        raise _not_permitted(path) from None


# size and time are part of the key: a file that has changed is looked at again
@lru_cache(maxsize=1024)
def _shown_by_bytes(path: Path, size_bytes: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if _is_utf_8(path):
        return "utf-8"
    return "gb18030" if _is_chinese_gb18030(path) else "utf-8"


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(partial(file.read, _BLOCK_BYTES), b"")


def _is_utf_8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in _blocks(path):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _is_chinese_gb18030(path: Path) -> bool:
    """Whether a file is valid GB18030 and most of its characters outside ASCII are common Chinese ones.

    Han characters as such prove little: two bytes of nearly any other encoding decode to a rare one. The first million
    characters outside ASCII are judged. Korean in EUC-KR can pass for Chinese: it has to be saved as UTF-8.
    """
    decoder = codecs.getincrementaldecoder("gb18030")()
    outside_ascii = common = 0
    try:
        for block in chain(_blocks(path), [b""]):
            text = decoder.decode(block, final=not block)
            if outside_ascii < _JUDGED_CHARACTERS and not text.isascii():
                outside_ascii += len(_ASCII.sub("", text))
                common += sum(map(len, _common_chinese().findall(text)))
    except UnicodeDecodeError:
        return False
    return common * 2 > outside_ascii


_ASCII = re.compile("[\0-\x7f]+")


@lru_cache(maxsize=1)
def _common_chinese() -> re.Pattern[str]:
    """The punctuation and symbols of GB 2312 (rows 1 to 3) and its 3755 Han common characters (rows 16 to 55)."""
    rows = (*range(0xA1, 0xA4), *range(0xB0, 0xD8))
    pairs = (bytes([row, cell]) for row in rows for cell in range(0xA1, 0xFF))
    characters = {pair.decode("gb2312", errors="ignore") for pair in pairs}
    return re.compile("[" + re.escape("".join(sorted(characters - {""}))) + "]+")


def _too_long(path: Path, number: int) -> str:
    return (
        f"{path}, line {number}: found more than {LINE_LIMIT:,} characters without a line break; expected one row a "
        "line. Are the line breaks between the rows missing? A file that is one JSON list is named .json."
    )


def _not_permitted(path: Path) -> DataError:
    return DataError(f"{path} cannot be opened: permission denied. Give yourself the right to read it.")


def _undecodable(path: Path, codec: str, error: UnicodeError) -> DataError:
    what = f"byte {error.object[error.start]:#04x}" if isinstance(error, UnicodeDecodeError) else "its begin"
    remedy = (
        "Save the file as UTF-8: from a spreadsheet as 'CSV UTF-8'; or, where it is Chinese, with "
        "iconv -f GB18030 -t UTF-8 old > new, and where it is Western European, with "
        "iconv -f LATIN1 -t UTF-8 old > new"
        if codec == "utf-8"
        else f"It is read as {codec.upper()} because of its first bytes or data.encoding: set data.encoding to what it "
        "is, or save it as UTF-8."
    )
    return DataError(f"{path}, line {_undecodable_line(path, codec)}: {what} is not {codec.upper()}. {remedy}")


def _undecodable_line(path: Path, codec: str) -> int:
    """The first line that is not valid: a file is decoded in blocks of many lines, so the error does not know it."""
    number = 1
    with path.open(encoding=_PYTHONS_NAMES.get(codec, codec), errors="fieldtune-lost") as file:
        for piece in iter(partial(file.readline, LINE_LIMIT), ""):
            if _LOST in piece:
                break
            number += piece.endswith("\n")
    return number
