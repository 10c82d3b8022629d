"""Does the model answer in the text's own words? Extractive question answering, scored as SQuAD is.

Exact match and F1 are those of Rajpurkar et al. 2016 ("SQuAD: 100,000+ Questions for Machine Comprehension of Text",
section 6.1; the normalisation is its evaluate-v1.1.py's: lower case, no punctuation, no articles, single spaces). What
is added: full-width characters are made half-width, a Chinese character is a word of its own (as in the scoring of
XQuAD and CMRC 2018), and a number keeps its sign, its point and what parts it from another, so that 3.5 mg is not 35 mg
and 10-20 not 1020. F1 is SQuAD's, over bags of words; CMRC's longest common substring is not used.
"""

import json
import re
from collections import Counter
from typing import ClassVar

from export.checks._base import Check, Items, Measurement, Observation, share
from export.checks._words import plain, split_han, without_punctuation

# A letter or digit of Latin, Greek or Cyrillic script: Chinese, Japanese, Korean and Thai part words by no space, or
# add to them.
_SPACED = r"[^\W_\u0590-\U0010ffff]"
# Behind a word or a number a dash is no sign (pre-1945, 737-800), and a point no decimal's.
_SIGN_BEFORE = re.compile(r"(?<![\w)\]])[-−]\Z")
_TERM_BEFORE = re.compile(rf"(?:{_SPACED}|[)\]])\Z")
_BARE_POINT_BEFORE = re.compile(r"(?<![\w.)\]])\.\Z")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
# Punctuation that says what a number is. A private character stands for each while the rest is taken out.
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_OF_NUMBERS = tuple(
    (re.compile(pattern), before + chr(0xE000 + number))
    for number, (pattern, before) in enumerate(
        (
            (r"(?<=\d)\.(?=\d)", ""),
            (r"(?<=\d)(?:,(?!\d{3}(?!\d))|、)(?=\d)", ""),  # 1,000 is 1000; 3,5 is not 35
            (r"(?<=\d)\s*[-–~/:]\s*(?=\d)", ""),
            (r"(?<=\d)\s*\^\s*(?=[-\d])", ""),
            (r"(?<=\d)\s*\+\s*(?=\d)", ""),
            (r"(?<=\d)\s*[×*]\s*(?=\d)", ""),
            (r"(?<=\d)\s*‰", ""),
            (r"(?<![\w)\]])[-−](?=[\d.$€£¥])", ""),
            *((rf"{bound}\s*(?=[$€£¥\ue000-\ue0ff\d])", " ") for bound in "<≤>≥"),
        )
    )
)


class Span(Check):
    """SQuAD's exact match and F1, by character in Chinese, and whether the answer stands verbatim in the prompt."""

    on_by_default: ClassVar[bool] = False
    right_or_wrong: ClassVar[bool] = True
    needs_context: ClassVar[bool] = True

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One value per row: the best against any of the row's right answers, of which a JSON list holds several."""
        given = work.given(seen)
        golds = [(answer, right_answers(gold)) for answer, gold in zip(given, work.expected(), strict=True)]
        quotes = [float(is_quote(answer, item.context)) for answer, item in zip(given, work.items, strict=True)]
        quoted = "the answer's very words in what the user said, whatever the white space"
        return (
            share("span_match", seen, [max(float(_same(answer, gold)) for gold in among) for answer, among in golds]),
            share("span_f1", seen, [max(f1(answer, gold) for gold in among) for answer, among in golds]),
            share("quote_in_context", seen, quotes, note=quoted),
        )


def right_answers(reference: str) -> tuple[str, ...]:
    """A reference's right answers: the texts of a JSON list, else the reference itself."""
    try:
        found = json.loads(reference)
    except (ValueError, RecursionError):
        return (reference,)
    if isinstance(found, list) and found and all(isinstance(text, str) for text in found):
        return tuple(found)
    return (reference,)


def normalised(text: str) -> list[str]:
    """The text's words by SQuAD's rules, in order, with numbers as they are."""
    text = _BARE_POINT.sub("0.", plain(text).replace("<=", "≤").replace(">=", "≥"))
    for mark, kept in _OF_NUMBERS:
        text = mark.sub(kept, text)
    return split_han(_ARTICLE.sub(" ", without_punctuation(text.lower())))


def f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall of the answer's words, each counted as often as it stands.

    Of two texts without words 1, of one such text 0, as for SQuAD 2.0's questions without an answer.
    """
    said, right = normalised(answer), normalised(gold)
    if not said or not right:
        return float(said == right)
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))


def is_quote(answer: str, context: str) -> bool:
    """Whether an answer that says something stands in the context, letter by letter; runs of white space are one.

    It is no part of a longer word or number there: neither "heap" of "cheaper" nor 5 of 15, 0.5 or -5.
    """
    said = " ".join(answer.split())
    if not said:
        return False
    left = rf"(?<!{_SPACED})(?<!\d[.,])" if re.match(_SPACED, said) else ""
    right = rf"(?!{_SPACED}|[.,]\d)" if re.match(_SPACED, said[-1]) else ""
    text = " ".join(context.split())
    found = re.finditer(left + re.escape(said) + right, text)
    return any(not _is_within_a_number(text[: one.start()], said) for one in found)


def _is_within_a_number(before: str, said: str) -> bool:
    """Whether a quote leaves out a number's sign or its point, or takes a range's dash for a sign.

    Behind a word of Chinese a dash may be either, as in 气温-5℃ and 歼-20: both are let pass.
    """
    if re.match(r"[-−]\d", said):
        return _TERM_BEFORE.search(before) is not None
    return said[0].isdigit() and (_SIGN_BEFORE.search(before) or _BARE_POINT_BEFORE.search(before)) is not None


def _same(answer: str, gold: str) -> bool:
    return normalised(answer) == normalised(gold)


step = Span
