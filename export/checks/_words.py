"""Text as words, in which a Chinese character is a word: what answers in free text are compared by."""

import re
import unicodedata

# Han, kana and the marks that repeat them: written without spaces, so that each character counts as a word (as in the
# scoring of XQuAD, Artetxe et al. 2020, and of CMRC 2018, Cui et al. 2019).
_WITHOUT_SPACES = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
# One such character, or a run of anything else that is a letter, a digit or a mark on one.
_WORD = re.compile(f"[{_WITHOUT_SPACES}]|[^\\W_{_WITHOUT_SPACES}]+")


def plain(text: str) -> str:
    """Text in the form in which full-width and half-width characters are the same (Unicode's NFKC)."""
    return unicodedata.normalize("NFKC", text)


def without_punctuation(text: str) -> str:
    """The text without its punctuation: Unicode's, and the symbols that ASCII's is taken to hold (`$+<=>^`|~`)."""
    return "".join(c for c in text if not (unicodedata.category(c).startswith("P") or c in "$+<=>^`|~"))


def words(text: str) -> list[str]:
    """Words in lower case, punctuation left out."""
    return _WORD.findall(plain(text).lower())


def split_han(text: str) -> list[str]:
    """Words parted by white space, a Chinese character always apart; what stands in them is kept."""
    return re.sub(f"([{_WITHOUT_SPACES}])", r" \1 ", text).split()
