"""The last number of an answer, against its value worked out by hand."""

from fractions import Fraction

import pytest

from export.checks._numerals import han_number
from export.checks.number import LastNumber, answer_in, is_right
from tests.export.observing import numbers, scores


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("They pay 7 - 2 = <<7-2=5>>5.\n#### 1,234", "1234"),
        ("#### 42\nThat is 7 more.", "42"),  # nothing is asked of what is said after it
        ("5 ####", None),  # cut off
        ("####", None),
        ("１，２３４．５", "1234.5"),
        ("1,000,000", "1000000"),
        ("1,23", "23"),
        ("1{,}234", "1234"),
        ("12345678901234567890.5", "12345678901234567890.5"),
        ("2.50", "5/2"),
        ("5.", "5"),
        (".5", "1/2"),
        ("5.0", "5"),
        ("3/4", "3/4"),
        ("3 4/5", "19/5"),
        ("1½", "3/2"),
        ("\\frac{3}{4}", "3/4"),
        ("so \\boxed{\\dfrac{1}{2}}, as in 3", "1/2"),
        ("\\boxed{-12} of 5", "-12"),
        ("\\boxed{", None),
        ("\\boxed{-\\frac{1}{2}}", "-1/2"),
        ("-½", "-1/2"),
        ("3\\frac12", "7/2"),
        ("\\frac12", "1/2"),
        ("3/0", None),
        ("$3.50", "7/2"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("¥100元", "100"),
        ("−7", "-7"),
        ("x=-3", "-3"),
        ("(-4)", "-4"),
        ("所以答案是-5", "-5"),
        ("结果为 -3", "-3"),
        ("三-二", "2"),
        ("零下5度", "-5"),
        ("negative 3", "-3"),
        ("2^10", "1024"),
        ("2^-1", "1/2"),
        ("9^999999", None),
        ("\\boxed{12\\text{ cm}^2}", "12"),
        ("12 cm²", "12"),
        ("12 m2", "12"),
        ("x^2", None),
        ("3\\sqrt{2}", None),
        ("5√2", None),
        ("12\\pi", None),
        ("12:30", "2/5"),
        ("9:30", "3/10"),
        ("at 12:00", None),
        ("She earned $45 by 5:00.", "45"),
        ("10 000", "10000"),
        ("First the numbers: 97 98 99 100", "100"),
        ("Team 7 scored 3 120", "120"),
        ("about 1 250 000 of them", "1250000"),
        ("100 000", "100000"),
        ("100 200 300", "300"),
        ("in 2020 100", "100"),
        ("1 100/200", "3/2"),
        ("5千克", "5"),
        ("一共重5两", "5"),
        ("八两", "8"),
        ("1.5两", "1.5"),
        ("三千两百", "3200"),
        ("二十两", "20"),
        ("八百千米", "800"),
        ("5千", "5000"),
        ("2 million", "2000000"),
        ("1\u202f000", "1000"),
        ("10-5", "5"),
        ("10 - 5", "5"),
        ("negative: minus 3", "-3"),
        ("1.5e3", "1500"),
        ("1.5×10^3", "1500"),
        ("1.5 \\times 10^{-3}", "3/2000"),
        ("2×10³", "2000"),
        ("10³", "1000"),
        ("1e999999999", None),
        ("1e-400", f"1/1{'0' * 400}"),
        ("1e401", None),
        ("9" * 5000, None),
        ("50%", "50"),
        ("百分之五十", "50"),
        ("答案：四十二。", "42"),
        ("一共有35个苹果，一共", "35"),
        ("十分好", None),
        ("一", "1"),
        ("负五", "-5"),
        ("三点一四", "3.14"),
        ("三分之二", "2/3"),
        ("千分之三", "3/1000"),
        ("5‰", "1/200"),
        ("0.5 ‰ 左右", "1/2000"),
        ("廿五", "25"),
        ("一百卅", "130"),
        ("三分之一", "1/3"),
        ("十分之一", "1/10"),
        ("三又二分之一", "7/2"),
        ("他是三个人之一", "3"),
        ("剩下一半", None),
        ("3万5千", "35000"),
        ("1.2亿", "120000000"),
        ("1,000 or twelve", "1000"),
        ("", None),
        ("no idea", None),
    ],
)
def test_the_last_number(text, value):
    found = answer_in(text)
    assert (found and found.value) == (None if value is None else Fraction(value))


def test_a_reference_that_is_a_time_is_compared_as_one_and_a_ratio_as_a_ratio():
    expected = ["12:00", "12:00", "at 9:00", "2:30", "3:10", "45", "The trip takes 2 hours: at 12:00.", "10:00", "6:10"]
    given = ["It takes 3 hours: 12:00", "12:30", "9:00 am", "1:15", "3/10", "She earned 45 by 5:00"]
    given += ["12:00", "10 o'clock", "3:5"]
    expected += ["9:45", "9:45", "9:45", "5 hours (from 9:00 to 14:00)", "12 laps before 9:00", "120 150 180"]
    given += [
        r"At \boxed{9:45}, because she left at 8:00.",
        r"\boxed{8:00}, not 9:45",
        "#### 9:45\n\nShe left at 8:00.",
    ]
    given += ["5", "12", "120, 150, 180"]
    found = numbers(LastNumber(), expected, given)
    assert scores(found["number_match"]) == [1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert not found["number_match"].note
    assert scores(found["number_given"]) == [1] * 15


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        *(("10:15", "2:3", True), ("2:3", "10:15", True), ("4:12", "1:3", True), ("4:12", "1:4", False)),
        *(("3:10", "0.3", True), ("0.3", "3:10", True), ("3:10", "3/10", True), ("9:45", "8:40", False)),
        *(("3:00", "3", True), ("3:00", "4", False), ("9:45", "9:45", True)),
    ],
)
def test_a_time_beside_a_number_is_a_ratio_on_either_side(answer, reference, right):
    assert is_right(answer, reference) is right


def test_thousands_that_may_be_apart_are_right_by_either_reading():
    expected = ["12500", "1234567", "100", "12 500 dollars", "2 × 1 750 = 3 500\n#### 3 500", "12 500"]
    given = ["12 500", "about 1 234 567 of them", "the numbers: 97 98 99 100", "12500", "#### 3500", "12"]
    assert scores(numbers(LastNumber(), expected, given)["number_match"]) == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("text", "value"),
    # as the library cn2an 0.5.24 reads them
    [
        ("零", 0),
        ("〇", 0),
        ("十", 10),
        ("十二", 12),
        ("一百二", 120),
        ("一百零二", 102),
        ("两百五", 250),
        ("三万五", 35000),
        ("三万零五", 30005),
        ("三万零五百", 30500),
        ("3万5千", 35000),
        ("3千5百", 3500),
        ("1亿2千万", 120000000),
        ("10万", 100000),
        ("两千零二十", 2020),
        ("二〇二六", 2026),
        ("一亿零三", 100000003),
        ("一万亿", 10**12),
        ("壹佰", 100),
        ("九千八百七十六万五千四百三十二", 98765432),
    ],
)
def test_chinese_numerals(text, value):
    assert han_number(text) == value


@pytest.mark.parametrize("text", ["万", "百", "万亿", "三十百", "二二万百", "点", ""])
def test_what_is_no_numeral_has_no_value(text):
    assert han_number(text) is None


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("It is 0.1.", "#### 0.10", 1),
        ("0.1", "#### 0.1000000000000000055511151231257827", 0),  # equal as floats
        ("1/3", "#### 0.333333", 0),
        ("50%", "#### 50", 1),
        ("0.5", "#### 50%", 1),
        ("5%", "#### 50%", 0),
        ("50 percent", "#### 0.5", 1),
        ("百分之一", "#### 1%", 1),
        ("三分之一", "#### 3", 0),
        ("\\boxed{99\\text{ cm}^2}", "\\boxed{12\\text{ cm}^2}", 0),
        ("0.5%", "#### 0.5", 1),
        ("四十二", "#### 42", 1),
        ("42 42 42", "#### 42", 1),
        ("42, and then 43", "#### 42", 0),
        ("x" * 20000 + " 42", "#### 42", 1),
        ("", "#### 42", 0),
        ("42", "no number", 0),
        ("", "no number", 0),
    ],
)
def test_numbers_are_compared_exactly(answer, reference, right):
    assert scores(numbers(LastNumber(), [reference], [answer])["number_match"]) == [right]


def test_answers_without_a_number_are_told_and_references_without_one_noted():
    found = numbers(LastNumber(), ["#### 1", "none", "#### 3"], ["1", "2", "I cannot"])
    assert scores(found["number_given"]) == [1, 1, 0]
    assert (found["number_match"].judged, found["number_given"].judged) == (True, False)
    assert found["number_match"].note == "1 of 3 references hold no number: they count as wrong"


@pytest.mark.parametrize(
    "part", ["1,", "一", "十百", "-", "1/", "\\frac{", "亿万", "3千", "1", "1.", "1 ", " ", "1e", "分之"]
)
def test_answers_that_run_on_are_read(part):
    """Once, and not once for each of their characters, which would take many minutes here."""
    assert answer_in(part * 100_000 + " = 42") == answer_in("42")
