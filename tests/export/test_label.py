"""Answers that are one of a few, read as people read them."""

import math
from collections import Counter

import numpy as np
import pytest

from export.checks._labels import label_in
from export.checks.label import Label, choice
from export.checks.label import macro_f1 as macro_f1_of_pairs
from export.errors import RecipeError
from tests.export.observing import numbers, scores

EXAM = ("A", "B", "C", "D", "AB", "AC", "BC", "BD", "ABC", "ABCD")
DECISION = ("yes", "no", "maybe")
SCALE = ("0", "1", "2", "3")
LEVELS = ("none", "mild", "moderate", "moderately_severe", "severe")
FEELING = ("正面", "负面", "中性")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("B", "B"),
        ("b", "B"),
        (" Ｂ。\n", "B"),
        ("**答案：（Ｂ）**", "B"),
        ("“B”", "B"),
        ("`B`", "B"),
        ("- B", "B"),
        ("The answer is (B).", "B"),
        ("the answer is B because water is slow", "B"),
        ("The answer is a cat", None),  # a letter in the label's own case only, before more words
        ("The answer is Bob", None),
        ("### Answer:\n\n**B**", "B"),
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("$\\boxed{\\mathrm{B}}$", "B"),
        ("So \\[\\boxed{\\textbf{(B)}}\\] it is", "B"),
        ("$\\mathbf{B}$", "B"),
        ("B对，A错", "B"),
        ("A错，B对", "B"),
        ("B对A错", "B"),
        ("B对，C对", None),
        *(
            (text, "B")
            for text in (
                "A和C错，B对",
                "A、C、D错，B对。",
                "A 错，B 对。",
                "**A错，B对**",
                "“B对”",
                r"\text{B}对",
                "B对…",
            )
        ),
        *(
            (text, None)
            for text in ("A对，不符合题意；B错，符合题意。", "A、B对，D对，C错", "A对，C也正确", "认为B对，是错误的。")
        ),
        *((text, None) for text in ("小明说A错，B对，但其实C", "假设A错，那么B对，与题意矛盾。", "B对，但D更全面。")),
        *(
            (text, None)
            for text in ("B对A有影响", "药物A对B不敏感。", "A对B错误率低", "A对B不利", "不是A对。", "没有A对")
        ),
        *((text, None) for text in ("说A对,不对", "A对还是B对", "A对?")),
        ("\\boxed{\\textbf{\\text{B}}}", "B"),
        ("\\(B\\)", "B"),
        ("答案选C", "C"),
        ("正确答案应为 D", "D"),
        ("故选：AC。", "AC"),
        ("选项B正确", "B"),
        ("B. 水", "B"),
        ("B) because it is hot", "B"),
        ("A cat", None),
        ("BC", "BC"),
        ("B、C", "BC"),
        ("C, B", "BC"),
        ("B和C", "BC"),
        ("CB", "BC"),
        ("(B) and (D)", "BD"),
        ("A and C", "AC"),  # the d of "and" is no D
        ("Answer: B and C.", "BC"),
        ("A、D", None),  # both are labels, together they are none
        ("DBA", None),
        ("BCX", None),
        ("B\nB\nB", "B"),
        ("B" * 5000, "B"),
        ("A " * 5000, "A"),
        ("Answer: A? No. The correct answer is: **C**", "C"),
        ("答案是C。选项D错误，因为…", "C"),
        ("The answer is C. A common wrong answer is B.", "C"),
        ("本题选B，不选A。", "B"),
        ("应选B，不能选A", "B"),
        ("选B，不要选A", "B"),
        ("选B。不应该选A。", "B"),
        ("选B，不可选C", "B"),
        ("选B不选A", "B"),
        ("排除选项A", None),
        ("So A cannot be right; B.", None),
        ("B。选项A、C、D均不正确", "B"),
        ("The answer is B, not A", "B"),
        ("The answer is not A", None),
        ("答案不是A", None),
        ("答案是A还是B？", None),
        ("The answer is A or B", None),
        ("A或B", None),
        ("A) and B) are wrong, so C", "C"),
        ("A: wrong, B: right", None),
        ("Option C", "C"),
        ("Option A is hot. Option B is cold.", None),
        ("C is correct", "C"),
        ("A不正确，B正确", "B"),
        ("选项A正确，选项B错误", "A"),
        ("ans: C", "C"),
        ("C选项正确", "C"),
        ("Therefore, B", "B"),
        ("So a cat", None),
        ("B 水", "B"),
        ("正确的是A、C", "AC"),
        ('{"answer": "B"}', "B"),
        ("<answer>B</answer>", "B"),
        ("The answer is", None),  # cut off
        ("答案：", None),
        ("B<|im_end|>", None),
        ("E", None),
        ("", None),
        (" \n", None),
        ("。", None),
    ],
)
def test_letters_are_read_whatever_stands_around_them(answer, label):
    assert label_in(answer, EXAM) == label


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("Yes, because tea helps.", DECISION, "yes"),
        ("no one knows", DECISION, None),
        ("Not sure", DECISION, None),
        ("maybe", DECISION, "maybe"),
        ("答案：负面。", FEELING, "负面"),
        ("负面情绪", FEELING, None),
        ("正面\n\n理由：味道好", FEELING, "正面"),
        ("袜子有2对。", SCALE, None),
        ("\\alpha", ("\\alpha", "\\beta"), "\\alpha"),
        ("a", ("A", "a"), "a"),  # where case tells labels apart it counts
        ("The answer is A", ("A", "a"), "A"),
        ("c++", ("C", "C++"), "C++"),
        ("The answer is C++ because of speed", ("C", "C++"), "C++"),
        ("1", ("1", "10"), "1"),
        ("答案：10", ("1", "10"), "10"),
        ("- 2", SCALE, "2"),
        ("答案：3", SCALE, "3"),
        ("2分", SCALE, None),
        ("2.5", SCALE, None),
        ("-1", SCALE, None),
        ("answer: 2-3", SCALE, None),
        ("答案：2到3级", SCALE, None),
        ("The answer is 2 to 3", SCALE, None),
        ("The answer is 1.5", SCALE, None),
        ("moderately severe", LEVELS, "moderately_severe"),
        ("**Moderately_severe**", LEVELS, "moderately_severe"),
        ("The label is severe.", LEVELS, "severe"),
        ("not severe", LEVELS, None),
    ],
)
def test_words_are_read_as_letters_are(answer, labels, label):
    assert label_in(answer, labels) == label


def test_accuracy_counts_what_is_no_label_as_wrong_and_tells_its_share():
    found = numbers(Label(), ["A", "B", "C", "D"], ["A", "答案：B", "B", "I do not know"], labels=EXAM)
    assert scores(found["label_accuracy"]) == [1, 1, 0, 0]
    assert scores(found["label_given"]) == [1, 1, 1, 0]
    assert (found["label_accuracy"].judged, found["label_given"].judged) == (True, False)
    assert set(found) == {"label_accuracy", "label_given", "label_macro_f1"}


def test_a_reference_that_is_no_label_is_always_wrong_and_noted():
    found = numbers(Label(), ["A", "E"], ["A", "E"], labels=EXAM)["label_accuracy"]
    assert scores(found) == [1, 0]
    assert found.note == "the reference of 1 of 2 rows is none of the labels: they count as wrong"


def macro_f1(expected, given):
    return macro_f1_of_pairs(Counter(zip(expected, given, strict=True)))


def test_macro_f1_by_hand():
    # A: 2 of 3 found, 1 too many: 4 / (3 + 3); B: 1 of 1 found, 1 too many: 2 / (1 + 2); C: never found
    expected = ["A", "A", "A", "B", "C"]
    given = ["A", "A", "B", "B", "A"]
    assert macro_f1(expected, given) == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    assert macro_f1(expected, expected) == 1
    assert macro_f1(expected, [None] * 5) == 0
    assert math.isnan(macro_f1([None], ["A"]))


def test_macro_f1_has_an_error_and_no_rows_to_pair():
    generator = np.random.default_rng(0)
    expected = generator.choice(["A", "B", "C"], 400, p=[0.5, 0.3, 0.2])
    given = np.where(generator.random(400) < 0.8, expected, generator.choice(["A", "B", "C"], 400))
    found = numbers(Label(), expected.tolist(), given.tolist(), labels=("A", "B", "C"))["label_macro_f1"]
    assert (found.sample, found.judged, found.n) == ((), False, 400)
    drawn = [
        macro_f1(expected[rows].tolist(), given[rows].tolist()) for rows in generator.integers(0, 400, size=(300, 400))
    ]
    assert found.stderr == pytest.approx(np.std(drawn), rel=0.15)  # the bootstrap, of which the jackknife is the limit
    alone = numbers(Label(), ["A", "B"], ["A", "B"], labels=("A", "B"))["label_macro_f1"]
    assert alone.stderr == 0


OPTIONS = {"labels": ("B", "BC"), "options": ("B", "BC"), "option_ids": ((5, 9), (5, 6, 7, 9))}


def test_the_likeliest_label_is_the_choice_and_a_tie_is_none():
    log_probs = [(-1.0, -1.5), (-1.0, -1.0), (-2.0, -1.5), (math.nan, -1.0), (-math.inf, -math.inf), (-3.0, -4.0)]
    found = numbers(Label(), ["B", "B", "B", "BC", "B", "BC"], ["B"] * 6, log_probs=log_probs, **OPTIONS)
    assert scores(found["label_likelihood"]) == [1, 0, 0, 0, 0, 0]
    # by the mean over 2 and 4 tokens: -0.5 and -0.375, -0.5 and -0.25, ..., -1.5 and -1
    assert scores(found["label_likelihood_per_token"]) == [0, 0, 0, 0, 0, 1]
    assert (found["label_likelihood"].judged, found["label_likelihood_per_token"].judged) == (True, False)


def test_a_choice_needs_one_highest_number():
    assert choice([-1.0, -2.0]) == 0
    assert choice([-1.0, -1.0, -2.0]) is None
    assert choice([-2.0, -2.0, -1.0]) == 2
    assert choice([math.nan, -1.0]) is None
    assert choice([]) is None


def test_the_recipes_labels_are_taken_before_the_templates():
    own = Label(labels=("yes", "no"))
    assert own.options(FEELING) == ("yes", "no")
    assert Label().options(FEELING) == FEELING
    assert Label(likelihood=False).options(FEELING) == ()
    assert scores(numbers(own, ["yes"], ["Yes."], labels=FEELING)["label_accuracy"]) == [1]


@pytest.mark.parametrize("labels", [(), ("yes",), ("yes", "yes"), ("yes", " ")])
def test_without_two_labels_the_check_is_refused_before_anything_is_trained(labels):
    with pytest.raises(RecipeError, match=r"check\.measures\.label\.labels"):
        Label(likelihood=False, labels=labels).options(())
