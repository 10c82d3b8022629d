"""Is the number right? Sums and word problems, whose answer is the last number that is said.

The form is GSM8K's (Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems": the number behind `####`,
compared after thousands separators are removed), with what models write besides. Numbers are compared as exact
fractions: 0.1 is 1/10, and no tolerance lets a near miss pass.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

from export.checks._base import Check, Items, Measurement, Observation, share
from export.checks._numerals import Number, final_time, joined, numbers_in, without_times

_MARK = "####"
_BOX = "\\boxed{"


class LastNumber(Check):
    """Whether the last number of the answer is that of the reference: in digits or Chinese, compared exactly."""

    on_by_default: ClassVar[bool] = False
    reads: ClassVar[str] = "text with a number"
    right_or_wrong: ClassVar[bool] = True

    def unread(self, expected: Sequence[str], labels: tuple[str, ...]) -> tuple[str, ...]:
        """Those without a number: every answer to their rows is wrong."""
        return tuple(text for text in expected if not _says_any(text))

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One score of 0 or 1 per row; a row whose reference has no number is always wrong, and noted."""
        rows = list(zip(work.expected(), work.given(seen), strict=True))
        right = [float(is_right(text, reference)) for reference, text in rows]
        without = len(self.unread([reference for reference, _ in rows], ()))
        note = f"{without:,} of {len(rows):,} references hold no number: they count as wrong" if without else ""
        said = "answers with a number, right or not: no limit is asked of it"
        return (
            share("number_match", seen, right, note=note),
            share("number_given", seen, [float(_says_any(text)) for _, text in rows], note=said, judged=False),
        )


def _says_any(text: str) -> bool:
    return answer_in(text) is not None or final_time(_said(text)) is not None


def is_right(answer: str, reference: str) -> bool:
    """Whether an answer ends in the reference's number, or in its time of the day: 9:45 is not 8:40, one ratio though.

    A reference that has both is right by either, and so is "12 500", which may be one number or two. Where only one of
    the two has a time, and nothing else, it is a ratio: 3:10 is 3/10, and 3:00 is 3.
    """
    wanted_time, given_time = final_time(_said(reference)), final_time(_said(answer))
    if wanted_time is not None and given_time == wanted_time:
        return True
    wanted, given = _readings(reference), _readings(answer)
    if wanted_time is not None and given_time is None:
        wanted = wanted or [_ratio(wanted_time)]
    elif given_time is not None and wanted_time is None:
        given = given or [_ratio(given_time)]
    return any(one.equals(other) for one in wanted for other in given)


def _ratio(time: tuple[int, int]) -> Number:
    return Number(Fraction(time[0], time[1] or 1))


def _readings(text: str) -> list[Number]:
    """The number that a text ends in, times of the day left out; what may be thousands apart as one, and as many."""
    found = (answer_in(without_times(reading)) for reading in (text, joined(text)))
    return [number for number in found if number is not None]


def _said(text: str) -> str:
    """Of a text what holds its answer: what stands behind the last `####`, or in the last `\\boxed{}`."""
    if _MARK in text:
        return text.rpartition(_MARK)[2].strip().partition("\n")[0]
    boxed = _boxed(text)
    return text if boxed is None else boxed


def answer_in(text: str) -> Number | None:
    """The number that a text ends in; but the first behind the last `####`, and the last in the last `\\boxed{}`.

    Where such a mark is there and no number with it, the answer was cut off: there is none.
    """
    if _MARK in text:
        behind = numbers_in(text.rpartition(_MARK)[2])
        return behind[0] if behind else None
    boxed = _boxed(text)
    found = numbers_in(text if boxed is None else boxed)
    return found[-1] if found else None


def _boxed(text: str) -> str | None:
    """What the last `\\boxed{}` holds, braces within it matched; None where there is none."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOX)
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return text[begin:]


step = LastNumber
