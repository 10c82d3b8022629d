"""Reads which of a few labels an answer gives, as one that has written `**答案：（Ｂ）**` has said B."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from export.checks._words import plain

# What may stand around a label without being part of it: quotes, brackets, Markdown, the end of a sentence.
_AROUND = " \t\r\n\"'`*_#~<>()[]{}$.,:;!?-“”‘’「」『』《》〈〉【】〔〕。、·…—"
# LaTeX's fonts and the brackets of its formulas say nothing: \mathrm{B} is B, and \(B\) is (B).
_FORMULA = re.compile(r"\\([()\[\]])")
_FONT = re.compile(r"\\(?:text|math|operatorname)(?:bf|rm|sf|tt|it|up|md|normal|bb|cal)?\s*\{([^{}]*)\}")
_OPENED = r"[\s\"'`*_(\[{<$“‘「『《【]*"
_CLOSED = r"[\s\"'`*_)\]}>$”’」』》】]*"
# Behind these an answer says its label, and the last of them counts, since an answer may think before it ends. What
# is called the answer goes first, then what is concluded, then an option; an explanation names several of these.
_ANSWER = re.compile(
    rf"\b(?:answer|ans|label)[\"'`*>]*\s*(?:is|are|should be|would be|[:=])?\s*:?{_OPENED}"
    rf"(?:(?:option|choice)\s+)?{_OPENED}"
    rf"|(?:答案|标签|结论)\s*(?:应该|应当|应)?\s*(?:是|为|选)?\s*[::]?{_OPENED}(?:选项\s*)?"
    rf"|(?:故选|应选|选择|选)\s*[::]?{_OPENED}|正确的(?:选项)?\s*(?:是|为)\s*[::]?{_OPENED}"
    rf"|\\boxed\s*\{{{_OPENED}",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(rf"(?:\b(?:therefore|thus|hence|so)\b|因此|所以)\s*[,,::]?{_OPENED}", re.IGNORECASE)
_OPTION = re.compile(
    rf"\b(?:option|choice)\s*(?:is|are|should be|would be|[:=])?\s*:?{_OPENED}"
    rf"|选项\s*(?:应该|应当|应)?\s*(?:是|为)?\s*[::]?{_OPENED}",
    re.IGNORECASE,
)
# A cue behind one of these says what the answer is not: 不选A, the wrong answer is B.
_NOT_BEFORE = re.compile(
    r"(?:不(?:应该|应当|可以|可能|[能要该应可宜会必])?|[别勿非]|排除了?|错误的?|不正确的?|\b(?:wrong|incorrect|false|not(?:\s+the)?)\s)\s*\Z",
    re.IGNORECASE,
)
# Behind a label, what says that it is wrong, or right.
_WRONG = re.compile(
    rf"{_CLOSED}(?:选项|项)?\s*[::]?\s*(?:全部|全|[都均也就])?\s*(?:[是为])?\s*"
    # "B不选A" is of A
    r"(?:错|不正确|不对|不符|不(?:能|要|该|应该|可以?)?选(?![\s\"'(]*[A-Za-z0-9])|有误"
    r"|(?:(?:is|are)\s+)?(?:all\s+|both\s+)?(?:wrong|incorrect|false)\b|(?:is|are|can|could)\s*(?:not|n't|'t)\b)",
    re.IGNORECASE,
)
_RIGHT = r"(?:选项|项)?\s*(?:是)?(?:正确|对的)|\s+is\s+(?:the\s+)?(?:correct|right)\b"
# 对 alone is "right" only where an answer does nothing but judge labels, as B对,A错: A对B不敏感 says something else.
_JUDGEMENT = r"\s*(?:选项|项)?\s*(?:是)?(?:(?P<right>正确|对)|错误?|不对|不正确)的?\s*"
_BETWEEN_JUDGEMENTS = r"[\s,;。!.]*"
_EITHER = r"(?:还是|或者?|\bor\b)"
_BETWEEN = r"(?:[\s,、;/&+和与及()\[\]\"'`*]|\band\b)+"
# Behind a label that opens an answer, what tells `B. 水` and `yes, because` from the words `A cat` and `no one`.
_ENDS_A_LABEL = re.compile(r"\s*(?:\Z|\n|[.,:;!?)\]}、。\"'`*_”’」』】—-])|[ \t]+(?=[\u4e00-\u9fff])")


class Reader(NamedTuple):
    """A set of labels made ready to be looked for: each by the form that it is compared in, and patterns of them."""

    by_form: Mapping[str, str]
    folds_case: bool
    one: re.Pattern[str]
    several: re.Pattern[str]
    either: re.Pattern[str]
    right: re.Pattern[str]
    judged: re.Pattern[str]

    def named(self, text: str) -> str | None:
        """The label that a text spells; in any case, unless case is all that tells two labels apart."""
        spaced = " ".join(text.replace("_", " ").split())
        return self.by_form.get(spaced.casefold() if self.folds_case else spaced)


@lru_cache(maxsize=8)
def reader(labels: tuple[str, ...]) -> Reader:
    """What reads these labels."""
    forms = {plain(label).replace("_", " ").strip(): label for label in labels}
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
        either=re.compile(rf"{_CLOSED}{_EITHER}{_OPENED}(?:{one})", flags),
        right=re.compile(rf"(?P<label>{one}){_CLOSED}(?:{_RIGHT})", flags),
        judged=re.compile(rf"(?P<labels>(?:{one})(?:{_BETWEEN}(?:{one}))*){_JUDGEMENT}{_BETWEEN_JUDGEMENTS}", flags),
    )


def label_in(answer: str, labels: tuple[str, ...]) -> str | None:
    """The label that an answer gives; None where it gives none, or more than one.

    It may be the whole answer but for quotes, brackets, Markdown and punctuation, stand behind words such as "the
    answer is" or 答案 (the last of them), be the one that is said to be right, or open the answer with punctuation or a
    line's end behind it. One that is said to be wrong (不选A, "D is wrong") or one of two (A还是B) is not given.
    Labels that are listed, as B and C are in "B、C", are one label where it is spelled by all of them together; a label
    that is said again and again is said once.
    """
    known = reader(labels)
    text = _stripped(_without_latex(plain(answer)))
    if (whole := known.named(text)) is not None:
        return whole
    if all(known.named(character) for character in text):
        return _together(known, text)  # letters without anything between them
    if known.several.fullmatch(text):
        return _together(known, known.one.findall(text))
    for cues in (_ANSWER, _CONCLUSION):
        if (last := next(_behind(known, text, cues), None)) is not None:
            return last
    if "?" not in plain(answer) and (judged_right := _judged_right(known, text)) is not None:
        return judged_right
    praised = {known.named(found["label"]) for found in known.right.finditer(text)}
    for said in (praised, set(_behind(known, text, _OPTION))):
        if len(said) == 1:
            return said.pop()
    return _given(known, text, len(text) - len(text.lstrip(_AROUND)), opens=True)


def _judged_right(known: Reader, text: str) -> str | None:
    """The one label that is right by a text which says of labels whether they are, and nothing else."""
    place, right = 0, []
    while place < len(text):
        found = known.judged.match(text, place)
        if found is None:
            return None
        right += known.one.findall(found["labels"]) if found["right"] else []
        place = found.end()
    return _together(known, right) if len(set(right)) == 1 else None


def _without_latex(text: str) -> str:
    """The text with what LaTeX's fonts and formulas hold in their place."""
    found = _FORMULA.sub(r"\1", text)
    while (inner := _FONT.sub(r"\1", found)) != found:
        found = inner
    return found


def _stripped(text: str) -> str:
    """The text without what may stand around a label; but the sign or the point of a number is part of it."""
    found = text.strip(_AROUND)
    before = text[: text.find(found)] if found else ""
    return before[-1] + found if found[:1].isdigit() and before.endswith(("-", ".")) else found


def _bounded(form: str) -> str:
    """A pattern of a label that is no part of a longer word or number; Chinese goes on beside a letter.

    A space within it may be an underscore.
    """
    inner = re.escape(form).replace(r"\ ", r"[ _]")
    if not form[0].isascii() or not form[-1].isascii():
        return inner + (r"(?![A-Za-z0-9])" if form[-1].isascii() else r"(?!\w)")
    left = r"(?<![A-Za-z0-9])" + (r"(?<![-.])" if form[0].isdigit() else "")
    return left + inner + r"(?![A-Za-z0-9])" + (r"(?!\s*(?:[-./~到至]|to\b)\s*\d|%)" if form[-1].isdigit() else "")


def _behind(known: Reader, text: str, cues: re.Pattern[str]) -> Iterator[str]:
    """The labels that are given behind cues, the last first."""
    for cue in reversed(list(cues.finditer(text))):
        is_denied = _NOT_BEFORE.search(text[max(0, cue.start() - 20) : cue.start()])
        if not is_denied and (found := _given(known, text, cue.end())) is not None:
            yield found


def _given(known: Reader, text: str, place: int, *, opens: bool = False) -> str | None:
    """The label, or the listed labels, that begin at a place of the text and are not said to be wrong, or one of two.

    A letter in another case than the label's may be an article: behind "the answer is", `a cat` is no A. What `opens`
    an answer must end there as a label does.
    """
    several = known.several.match(text, place)
    found = several or known.one.match(text, place)
    if found is None or _WRONG.match(text, found.end()) or known.either.match(text, found.end()):
        return None
    ends = _ENDS_A_LABEL.match(text, found.end())
    if several:
        return _together(known, known.one.findall(several.group())) if ends or not opens else None
    label = known.named(found.group())
    is_word = len(found.group()) == 1 and found.group() != label
    return None if (opens or is_word) and not ends else label


def _together(known: Reader, listed: Iterable[str]) -> str | None:
    """The one label that several amount to."""
    parts = list(dict.fromkeys(label for part in listed if (label := known.named(part)) is not None))
    if len(parts) == 1:
        return parts[0]
    return known.named("".join(parts)) or known.named("".join(sorted(parts)))
