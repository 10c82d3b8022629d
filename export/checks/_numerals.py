"""Finds the numbers of a text, in digits and in Chinese, and their exact values."""

import re
from fractions import Fraction
from typing import NamedTuple

from export.checks._words import plain

# Longer ones are no answer to anything, and exact arithmetic with them takes long.
_MOST_DIGITS = 400
_LARGEST_EXPONENT = 400

_DIGITS = {
    d: v
    for v, row in enumerate(("零〇", "一壹", "二贰两", "三叁", "四肆", "五伍", "六陆", "七柒", "八捌", "九玖"))
    for d in row
}
_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_GROUPS = {"万": 10**4, "亿": 10**8}
_HAN = "".join([*_DIGITS, *_UNITS, *_GROUPS])
# Words that are written with a numeral and count nothing.
_NO_NUMBERS = re.compile(
    "一(?:共|样|起|些|定|般|下|直|切|旦|边|方面|会儿|点儿|致|律|同|并|再|向|番)|统一|唯一|万一|第一|(?<!分)之一|一半|十分(?![之钟])|千万别|百般|万分"
)

# A minus behind a letter, a number or a bracket subtracts, and so does one that stands apart from what follows.
_SIGN = rf"(?:(?<![A-Za-z0-9_{_HAN})\]}}%])-(?=[\d.$€£¥₩₹{_HAN}])|负\s?|零下\s?|(?:minus|negative)\s+(?=\d))?"
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})(?:[$€£¥₩₹]\s?(?P<minus>-)?)?"
    rf"(?:(?P<whole>\d+)\s+(?P<part>\d+)/(?P<of>\d+)(?![\d/])"
    rf"|(?P<power>\d+)\s*\^\s*\{{?(?P<to>-?\d+)\}}?"
    rf"|百分之(?P<percent>[{_HAN}\d.点]+)"
    rf"|(?P<han_whole>[{_HAN}\d]+)又(?P<han_of>[{_HAN}\d]+)分之(?P<han_part>[{_HAN}\d]+)"
    rf"|(?P<under>[{_HAN}\d]+)分之(?P<over>[{_HAN}\d]+)"
    rf"|(?P<han>(?:\d[\d.]{{0,40}})?[{_HAN}][{_HAN}\d]*(?:点[{_HAN}]+)?)"
    rf"|(?P<top>{_PLAIN})(?:\s*/\s*|:)(?P<bottom>{_PLAIN})(?![\d/:])"
    rf"|(?P<plain>{_PLAIN})(?:[eE](?P<e>[+-]?\d+)|\s*[×*x]\s*10\s*\^\s*\{{?(?P<ten>-?\d+)\}}?"
    r"|\s*(?P<many>thousand|million|billion)\b)?)"
    r"(?P<share>\s*(?:%|percent\b|per\s+cent\b))?(?P<per_mille>\s*‰)?",
    re.IGNORECASE,
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT = re.compile(r"[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile(r"(\d?)([¼½¾⅐-⅞])")
_FRAC = re.compile(r"(\d?)\s*\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_LONG_SPACE = re.compile(r"\s{5,}")
_SPACED_THOUSANDS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
# With plain spaces only what ends in 000 is one number for certain: "97 98 99 100" are four.
_PLAINLY_SPACED = re.compile(r"(?<![\d.,/^])[1-9]\d{0,2}(?: \d{3})* 000(?!\s*[\d/])")
_MAYBE_SPACED = re.compile(r"(?<![\d.,/^])[1-9]\d{0,2}(?: \d{3})+(?!\d|\s*/)")
# A time of the day, which may be a ratio as well.
_TIME = re.compile(r"(?<![\d:])([01]?\d|2[0-4]):([0-5]\d)(?![\d:])")
# 千 before a unit is a part of it: 千克 is a kilogram.
_KILO = re.compile("千(?=[克米瓦卡赫帕伏焦升])")
# 两 behind a numeral, with no unit behind it, is a unit itself: 5两 are five of them.
_LIANG = re.compile(rf"(?<=[\d{_HAN}])两(?![{''.join([*_UNITS, *_GROUPS])}])")
# What a letter or a bracket is raised to is no number of its own, and neither is the 2 of m2.
_EXPONENT = re.compile(r"(?<=[A-Za-z})])\s*\^\s*\{?[-+]?\d+\}?|(?<![A-Za-z])((?:[mcdk]?m|ft|in|yd))[23](?![\w^])")
# Roots and multiples of pi are none that could be compared with fractions.
_NO_FRACTION = re.compile(
    # from the run's first character on: a text of digits would be searched once for each of them
    r"(?:(?<![\d./])[\d./]+\s*)?(?:\\sqrt\s*(?:\[\d+\])?\s*(?:\{[^{}]*\}|\d)|√\s*\(?[\d.]+\)?)"
    r"|(?<![\d./])[\d./]+\s*(?:\\pi\b|π)"
)
_MANY = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


class Number(NamedTuple):
    """A number of a text: its value without any percent sign, and whether there was one."""

    value: Fraction
    is_percent: bool = False

    def equals(self, other: "Number") -> bool:
        """Whether two numbers say the same.

        A percent sign is a unit that may be left out, or worked out: 50 % is said by "50%", "50" and "0.5".
        """
        if self.value == other.value:
            return True
        if self.is_percent == other.is_percent:
            return False
        with_sign, without = (self, other) if self.is_percent else (other, self)
        return with_sign.value / 100 == without.value


def numbers_in(text: str) -> list[Number]:
    """The numbers of a text, in their order. What only looks like one (3/0, a million digits) is none."""
    shown = _NO_NUMBERS.sub(lambda word: ";" * len(word.group()), _written_out(text))
    found = (_value(match) for match in _NUMBER.finditer(shown))
    return [number for number in found if number is not None]


def final_time(text: str) -> tuple[int, int] | None:
    """What may be a time of the day, as hours and minutes, where it is the last number of a text; else None."""
    shown = plain(text)
    *_, last = [None, *_TIME.finditer(shown)]
    return None if last is None or re.search(r"\d", shown[last.end() :]) else (int(last[1]), int(last[2]))


def without_times(text: str) -> str:
    """The text with what may be times of the day taken out."""
    return _TIME.sub(";", plain(text))


def joined(text: str) -> str:
    """The text with what may be thousands apart written as one number."""
    return _MAYBE_SPACED.sub(lambda found: found.group().replace(" ", ""), text)


def _written_out(text: str) -> str:
    """The text in half-width characters, with ASCII's signs, without LaTeX's marks, and fractions as a/b."""
    text = _LONG_SPACE.sub("    ", text)
    text = _SUPERSCRIPT.sub(lambda found: "^" + found.group().translate(_SUPERSCRIPTS), text)
    text = _VULGAR.sub(lambda found: _apart(found.group(1), found.group(2)), text)
    text = _SPACED_THOUSANDS.sub("", text)
    text = _PLAINLY_SPACED.sub(lambda found: found.group().replace(" ", ""), text)
    text = plain(text).replace("⁄", "/").replace("−", "-").replace("–", "-").replace("÷", "/")
    text = text.replace("億", "亿").replace("萬", "万").replace("負", "负").replace("點", "点").replace("兩", "两")
    text = text.replace("廿", "二十").replace("卅", "三十")
    text = _FRAC.sub(lambda found: _apart(found[1], f"{found[2] or found[3]}/{found[4] or found[5]} "), text)
    for mark, instead in (
        (r"\times", "×"),
        (r"\cdot", "×"),
        ("{,}", ","),
        (r"\,", ""),
        (r"\!", ""),
        (r"\$", "$"),
        (r"\%", "%"),
    ):
        text = text.replace(mark, instead)
    text = _EXPONENT.sub(lambda found: found[1] or "", _LIANG.sub(" l", _KILO.sub("k", text)))
    return _NO_FRACTION.sub(";", text)


def _apart(whole: str, part: str) -> str:
    """A fraction behind a whole number, from which it stands apart; behind a sign it does not."""
    return f"{whole} {part}" if whole else part


def _value(found: re.Match[str]) -> Number | None:
    if len(found.group()) > _MOST_DIGITS:
        return None
    parts = found.groupdict()
    value, is_percent = _unsigned(parts), bool(parts["share"] or parts["percent"])
    if value is None:
        return None
    if parts["per_mille"]:
        value /= 1000
    return Number(-value if parts["sign"] or parts["minus"] else value, is_percent)


def _unsigned(parts: dict[str, str | None]) -> Fraction | None:
    """The value of a match; None where it has none."""
    if parts["power"] is not None:
        return _power(int(parts["power"]), int(parts["to"] or 0))
    if parts["han_whole"] is not None:
        whole, part = han_number(parts["han_whole"]), _ratio(parts["han_part"], parts["han_of"])
        return None if whole is None or part is None else whole + part
    if parts["whole"] is not None:
        part = _ratio(parts["part"], parts["of"])
        return None if part is None else Fraction(parts["whole"]) + part
    if parts["percent"] is not None:
        return han_number(parts["percent"])
    if parts["under"] is not None:
        alone = {"千": "1000", "万": "10000"}  # 千分之三: a unit that stands for itself
        return _ratio(parts["over"], alone.get(parts["under"], parts["under"]))
    if parts["han"] is not None:
        return han_number(parts["han"])
    if parts["top"] is not None:
        return _ratio(parts["top"], parts["bottom"])
    value = Fraction((parts["plain"] or "").replace(",", ""))
    return _times_ten_to(value * _MANY.get((parts["many"] or "").lower(), 1), parts["e"] or parts["ten"])


def _power(base: int, exponent: int) -> Fraction | None:
    """None for one that is larger than any answer, or divides by zero."""
    too_large = abs(exponent) * len(str(base)) > _LARGEST_EXPONENT * 2
    return None if too_large or (base == 0 and exponent < 0) else Fraction(base) ** exponent


def _times_ten_to(value: Fraction, exponent: str | None) -> Fraction | None:
    power = int(exponent or 0)
    return value * Fraction(10) ** power if abs(power) <= _LARGEST_EXPONENT else None


def _ratio(top: str | None, bottom: str | None) -> Fraction | None:
    over, under = (han_number((part or "").replace(",", "")) for part in (top, bottom))
    return None if over is None or not under else over / under


def han_number(text: str) -> Fraction | None:
    """The value of a numeral in Chinese, in digits, or in both (3万5千); None where it is none, such as 万亿 alone.

    As it is spoken: a last digit behind a unit counts tenths of it (三万五 is 35,000), unless 零 stands between. Digits
    without units are read one by one (二〇二六).
    """
    whole, _, decimals = text.partition("点")
    if decimals:
        value, digits = _whole(whole), "".join(str(_DIGITS.get(d, d)) for d in decimals)
        return None if value is None or not digits.isdecimal() else value + Fraction(f"0.{digits}")
    return _whole(whole.rstrip(".") if whole.endswith(".") else whole)


def _whole(text: str) -> Fraction | None:
    digits = "".join(str(_DIGITS.get(d, d)) for d in text)
    if re.fullmatch(r"\d+(\.\d+)?|\.\d+", digits):
        return Fraction(digits)
    for group in ("亿", "万"):
        before, found, behind = text.rpartition(group)
        if found:
            many = _whole(before)
            rest = _rest(behind, _GROUPS[group])
            return None if many is None or rest is None else many * _GROUPS[group] + rest
    return _below_ten_thousand(text)


def _rest(text: str, unit: int) -> Fraction | None:
    """What stands behind a unit: nothing, one digit that counts its tenths, or a numeral of its own."""
    if not text:
        return Fraction(0)
    if len(text) == 1 and text not in _UNITS:
        return Fraction(_DIGITS.get(text) or int(text if text.isdecimal() else 0)) * unit / 10
    return _whole(text.lstrip("零〇"))


def _below_ten_thousand(text: str) -> Fraction | None:
    """A numeral of digits and of the units 十, 百 and 千, which fall."""
    total, last = Fraction(0), 10**4
    for part in re.finditer(
        rf"[零〇]?(?P<count>[{''.join(_DIGITS)}]|\d+(?:\.\d+)?)?(?P<unit>[{''.join(_UNITS)}])", text
    ):
        unit = _UNITS[part["unit"]]
        if unit >= last or (part["count"] is None and unit > 10):
            return None
        count = Fraction(_DIGITS[part["count"]] if part["count"] in _DIGITS else part["count"] or 1)
        total, last = total + count * unit, unit
    behind = re.sub(rf"^.*[{''.join(_UNITS)}]", "", text)
    spelled = re.fullmatch(rf"[零〇]?(?:[{''.join(_DIGITS)}]|\d)?", behind)
    if last == 10**4 or spelled is None:
        return None
    rest = _rest(behind, last if last > 10 else 10)
    return None if rest is None else total + rest
