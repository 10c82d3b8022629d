"""Extractive answers, scored by hand as SQuAD scores them."""

import pytest

from export.checks.span import Span, f1, is_quote, normalised, right_answers
from tests.export.observing import numbers, scores


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("the hall", "The Hall.", 1),
        ("Denver Broncos", "The Denver Broncos", 1),
        ("in the cold 1931 winter", "1931", 2 * (1 / 4) / (1 / 4 + 1)),
        ("within a cloud", "graupel", 0),
        ("cloud cloud", "cloud", 2 * 0.5 / 1.5),  # a word counts as often as it stands
        ("three hours", "three long hours", 2 * 1 * (2 / 3) / (1 + 2 / 3)),
        ("cloud cloud", "cloud cloud here", 2 * 2 / (2 + 3)),
        ("三个小时", "三小时", 2 * (3 / 4) / (3 / 4 + 1)),
        ("在门厅。", "门厅", 2 * (2 / 3) / (2 / 3 + 1)),
        ("１９３１年", "1931年", 1),
        ("iPhone手机", "iphone 手机", 1),
        ("", "hall", 0),
        ("the", "a", 1),  # nothing but articles: two texts without words
        ("...", "hall", 0),
        ("3.5 mg", "35 mg", 2 * 0.5 / 2),
        ("10-20 mg", "10 – 20 mg", 1),
        ("10-20", "1020", 0),
        ("-5", "5", 0),
        ("pH<7", "pH7", 0),
        ("<5", "≤5", 0),
        ("$1,000", "1000", 1),
        ("hall " * 9999, "hall", 2 / (9999 + 1)),
    ],
)
def test_f1_is_of_bags_of_words(answer, gold, score):
    assert f1(answer, gold) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "words"),
    # as evaluate-v1.1.py's normalize_answer leaves them
    [
        ("The  quick-brown fox's den!", ["quickbrown", "foxs", "den"]),
        ("$1,000 + an apple", ["1000", "apple"]),
        ("Theodore and Ana", ["theodore", "and", "ana"]),
        ("“门厅”，充电。", ["门", "厅", "充", "电"]),
    ],
)
def test_texts_are_normalised(text, words):
    assert normalised(text) == words


def test_the_best_of_several_right_answers_counts():
    assert right_answers('["the hall", "hall"]') == ("the hall", "hall")
    assert right_answers("the hall | x") == ("the hall | x",)
    assert right_answers("[]") == ("[]",)
    assert right_answers("[1]") == ("[1]",)
    references = ['["at ten", "ten in the morning"]', "the hall", "Mondays"]
    found = numbers(Span(), references, ["ten morning", "hall", "Sundays"], contexts=["", "the hall", "Mondays"])
    assert scores(found["span_match"]) == [0, 1, 0]
    assert scores(found["span_f1"]) == pytest.approx([2 * 2 / (2 + 3), 1, 0])


def test_a_quote_stands_in_the_prompt_letter_by_letter():
    context = "The robot charges\nin the hall. 充满一次需要三个小时。"
    assert is_quote("charges in the hall", context)
    assert is_quote(" 三个小时\n", context)
    assert not is_quote("the Hall", context)
    assert not is_quote("hall and", context)
    assert not is_quote("", context)
    assert not is_quote("hall", "")
    assert not is_quote("5", "15 mg") and not is_quote("5", "0.5 mg") and not is_quote("1", "1.5 mg")
    assert is_quote("5", "15 or 5.") and is_quote("5", "5mm") is False
    assert not is_quote("heap", "cheaper")
    assert not is_quote("5", "it is -5") and not is_quote("-5", "3-5 mg") and is_quote("-5", "it is -5")
    assert is_quote("5", "5-10 mg") and is_quote("10", "5-10 mg") and not is_quote("5", "it is .5")
    assert not is_quote("café", "cafés") and is_quote("café", "the café.") and is_quote("5", "有5人")
    for said, text in (("-5℃", "气温: -5℃"), ("-3.5%", "(-3.5%)"), ("-2.1", "was $-2.1 million")):
        assert is_quote(said, text) and not is_quote(said[1:], text)
    # no sign and no decimal point: within a word, a range, a name; and scripts that part words by no space
    whole = [("5", "Chanel No.5 is"), ("30 minutes", "waited...30 minutes"), ("1945", "pre-1945"), ("-5℃", "气温-5℃")]
    whole += [
        ("2010年", "2008年-2010年"),
        ("737", "a Boeing 737-800"),
        ("2021", "2021-05-01"),
        ("20战斗机", "歼-20战斗机"),
    ]
    whole += [("20世纪", "19世纪-20世纪"), ("3 fatty", "ω-3 fatty"), ("서울", "서울에서")]
    assert [(said, text) for said, text in whole if not is_quote(said, text)] == []
    assert not is_quote("05", "p<.05") and not is_quote("0.5", "(r=-0.5, p<.05)")
    assert is_quote("门", "在门厅")
    found = numbers(Span(), ["a", "b"], ["the hall", "the lobby"], contexts=[context] * 2)["quote_in_context"]
    assert scores(found) == [1, 0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *(("<=5", ">=5"), ("<=5", "5"), ("p < .05", "p > .05"), ("< -5", "> -5"), ("<$5", ">$5")),
        *((".5 mg", "5 mg"), ("−.5", "-5"), ("3,5 mg", "35 mg"), ("5、6", "56"), ("5^6", "56"), ("5+6", "56")),
        *(("2^10", "210"), ("5‰", "5%"), ("5×6", "56")),
    ],
)
def test_what_makes_another_number_of_the_same_digits_is_kept(first, second):
    assert normalised(first) != normalised(second)


@pytest.mark.parametrize(
    ("first", "second"), [("≤5", "<=5"), ("0.5", ".5"), ("1,000", "1000"), ("p < .05", "p<0.05"), ("< 5", "<5")]
)
def test_one_number_written_twice_is_the_same(first, second):
    assert normalised(first) == normalised(second)
