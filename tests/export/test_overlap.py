"""Overlap of free answers with their references, against values by hand and against sacrebleu's own."""

import pytest
from sacrebleu import corpus_chrf

from export.checks.overlap import Overlap, chr_f, rouge_l
from tests.export.observing import numbers, scores


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        # Lin 2004, section 3.1: of S1 "police killed the gunman" S2 shares 3 words in order, S3 2
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("the cat sat", "the cat is sat", 2 * 1 * (3 / 4) / (1 + 3 / 4)),
        ("机器人充电", "机器人在充电", 2 * 1 * (5 / 6) / (1 + 5 / 6)),
        ("机器人charges！", "机器人 Charges", 1),
        ("１２ 个", "12个", 1),
        ("Füße", "füße", 1),
        ("", "hall", 0),
        ("...", "hall", 0),
        ("hall", "", 0),
        ("hall " * 2000, "hall", 2 * (1 / 2000) / (1 / 2000 + 1)),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(answer, gold, score):
    assert rouge_l()(answer, gold) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("police kill the gunman", "police killed the gunman"),
        ("机器人充电", "机器人在充电"),
        ("hall " * 500, "the hall"),
        ("hall", "lobby"),
    ],
)
def test_chrf_is_sacrebleus_number_for_a_corpus_of_one(answer, gold):
    assert chr_f()(answer, gold) == pytest.approx(corpus_chrf([answer], [[gold]]).score / 100)


def test_chrf_by_hand():
    # "ab" for "abc": 1-grams 2 of 2 and 2 of 3, 2-grams 1 of 1 and 1 of 2; no longer ones are in both. The means are
    # of precision (1 + 1) / 2 and of recall (2/3 + 1/2) / 2, joined with beta 2
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    assert chr_f()("ab", "abc") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    assert chr_f()("abc", "abc") == 1
    assert chr_f()("", "abc") == 0


def test_every_row_has_its_own_score_and_length():
    found = numbers(Overlap(), ["the hall", "三个小时", ""], ["the hall", "三小时", "hall"])
    assert scores(found["rouge_l"]) == pytest.approx([1, 2 * 1 * (3 / 4) / (1 + 3 / 4), 0])
    assert scores(found["length_ratio"]) == [1, 3 / 4]  # a row without a reference has no ratio
    assert (found["rouge_l"].judged, found["chrf"].judged, found["length_ratio"].judged) == (True, True, False)
    assert found["length_ratio"].higher_is_better is None
