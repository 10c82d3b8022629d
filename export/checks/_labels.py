"""Reads which of a few labels an answer gives, as one that has written `**答案：（Ｂ）**` has said B."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from export.checks._words import plain

# What may stand around a label without being part of it: quotes, brackets, Markdown, the end of a sentence.
_AROUND = " \t\r\n\"'`*_#~<>()[]{}$.,:;!?-“”‘’「」『』《》〈〉【】〔〕。、·…—"
_OPENED = r"[\s\"'`*_(\[{<$“‘「『《【]*"
# Behind these an answer says its label; the last of them counts, since an answer may think before it ends.
_CUE = re.compile(
    rf"(?:answer|label|option|choice)\s*(?:is|are|should be|would be|:|=)\s*:?{_OPENED}"
    rf"(?:(?:option|choice)\s+)?{_OPENED}"
    rf"|(?:答案|选项|标签|结论)\s*(?:应该|应当|应)?\s*(?:是|为|选)?\s*[::]?{_OPENED}"
    rf"|(?:故选|应选|选择|选)\s*[::]?{_OPENED}"
    r"|\\boxed\s*\{(?:\\text\s*\{)?\s*",
    re.IGNORECASE,
)
_BETWEEN = r"(?:[\s,、;/&+和与及()\[\]\"'`*]|\band\b)+"
# Behind a label that opens an answer, what tells `B. 水` and `yes, because` from the words `A cat` and `no one`.
_ENDS_A_LABEL = re.compile(r"\s*(?:\Z|\n|[.,:;!?)\]}、。\"'`*_”’」』】—-])")


class Reader(NamedTuple):
    """A set of labels made ready to be looked for: each by the form that it is compared in, and patterns of them."""

    by_form: Mapping[str, str]
    folds_case: bool
    one: re.Pattern[str]
    several: re.Pattern[str]
    opening: re.Pattern[str]

    def named(self, text: str) -> str | None:
        """The label that a text spells; in any case, unless case is all that tells two labels apart."""
        return self.by_form.get(text.casefold() if self.folds_case else text)


@lru_cache(maxsize=8)
def reader(labels: tuple[str, ...]) -> Reader:
    """What reads these labels."""
    forms = {plain(label).strip(): label for label in labels}
    folded = {form.casefold(): label for form, label in forms.items()}
    folds_case = len(folded) == len(labels)
    # the longest first, so that BC is not read as B
    one = "|".join(_bounded(form) for form in sorted(forms, key=len, reverse=True))
    flags = re.IGNORECASE if folds_case else re.NOFLAG
    return Reader(
        by_form=folded if folds_case else forms,
        folds_case=folds_case,
        one=re.compile(one, flags),
        several=re.compile(rf"(?:{one})(?:{_BETWEEN}(?:{one}))+", flags),
        opening=re.compile(rf"{_OPENED}({one})", flags),
    )


def label_in(answer: str, labels: tuple[str, ...]) -> str | None:
    """The label that an answer gives; None where it gives none, or more than one.

    It may be the whole answer but for quotes, brackets, Markdown and punctuation, stand behind words such as "the
    answer is" or 答案 (the last of them), or open the answer with punctuation or a line's end behind it. Labels that
    are listed, as B and C are in "B、C", are one label where it is spelled by all of them together; a label that is
    said again and again is said once.
    """
    known = reader(labels)
    text = plain(answer).strip(_AROUND)
    if (whole := known.named(text)) is not None:
        return whole
    if all(known.named(character) for character in text):
        return _together(known, text)  # letters without anything between them
    if known.several.fullmatch(text):
        return _together(known, known.one.findall(text))
    for cue in reversed(list(_CUE.finditer(text))):
        if (found := _behind(known, text, cue.end())) is not None:
            return found
    opened = known.opening.match(text)
    return known.named(opened.group(1)) if opened and _ENDS_A_LABEL.match(text, opened.end()) else None


def _bounded(form: str) -> str:
    """A pattern of a label that is not the beginning of a longer word; Chinese goes on behind a letter."""
    return re.escape(form) + (r"(?![A-Za-z0-9])" if form[-1].isascii() else r"(?!\w)")


def _behind(known: Reader, text: str, place: int) -> str | None:
    """The label, or the listed labels, that begin at a place of the text.

    A letter in another case than the label's may be an article: behind "the answer is", `a cat` is no A.
    """
    if several := known.several.match(text, place):
        return _together(known, known.one.findall(several.group()))
    found = known.one.match(text, place)
    if found is None:
        return None
    label = known.named(found.group())
    is_word = len(found.group()) == 1 and found.group() != label and not _ENDS_A_LABEL.match(text, found.end())
    return None if is_word else label


def _together(known: Reader, listed: Iterable[str]) -> str | None:
    """The one label that several amount to."""
    parts = list(dict.fromkeys(label for part in listed if (label := known.named(part)) is not None))
    if len(parts) == 1:
        return parts[0]
    return known.named("".join(parts)) or known.named("".join(sorted(parts)))
