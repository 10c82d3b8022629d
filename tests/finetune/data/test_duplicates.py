"""Near copies and shared words, against the definitions written out in sets of strings."""

import dataclasses
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import _copy_index, duplicates
from finetune.data._text_hashes import blocks, shingles, word_grams
from finetune.data.duplicates import near_copies, near_copies_among, shared_ngrams

SAMPLES = Path(__file__).parents[3] / "data_templates"
ENGLISH = "The quick brown fox jumps over the lazy dog while the farmer counts his seven hens by the old barn door."
CHINESE = "请先打扫客厅和厨房，然后沿着墙边仔细清洁地毯，最后回到充电座，等待下一次的打扫任务开始，不要进入卧室。"


def plain_shingles(text: str) -> set[str]:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def plain_similarity(one: str, other: str) -> float:
    a, b = plain_shingles(one), plain_shingles(other)
    return len(a & b) / len(a | b)


def edited(rng: random.Random, text: str, edits: int) -> str:
    for _ in range(edits):
        at, new = rng.randrange(len(text)), rng.choice(text)
        text = rng.choice((text[:at] + new + text[at + 1 :], text[:at] + text[at + 1 :], text[:at] + new + text[at:]))
    return text


def pairs_close_to_the_threshold(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Pairs of 0.80 to 0.84, the hardest that have to be found: words of random letters, and Han characters."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        alphabet = "abcdefghijklmnopqrstuvwxyz " if rng.random() < 0.5 else "".join(map(chr, range(0x4E00, 0x5000)))
        text = "".join(rng.choices(alphabet, k=rng.randint(60, 400)))
        other = edited(rng, text, max(1, round(len(text) * 0.023)))
        if 0.8 <= plain_similarity(text, other) <= 0.84:
            pairs.append((text, other))
    return pairs


def real_like_texts() -> list[str]:
    """The shipped rows, which repeat each other with small changes, in English and Chinese."""
    return [line for path in sorted(SAMPLES.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]


# --- near copies: the definition


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_a_small_edit_is_a_near_copy_and_another_text_is_none(text):
    texts = [text, "Something else entirely, of which no five characters agree (7319).", text[:40] + text[41:], text]
    assert near_copies(texts).tolist() == [-1, -1, 0, 0]


def test_the_threshold_is_inclusive_and_exact():
    # n different characters in a row have n-4 shingles; the first n of m have similarity (n-4)/(m-4)
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 104)))
    assert plain_similarity(text, text[:84]) == 0.8
    assert plain_similarity(text, text[:83]) < 0.8
    # near enough to be a candidate for certain is what banding does not promise: the exact comparison is asked itself
    index = _copy_index.CopyIndex(_copy_index.sketched([text, text[:84], text[:83]]))
    assert index._similarities(0, [1, 2]).tolist() == [0.8, 0.79]
    candidate = np.array([0])
    assert index._first_similar(1, candidate) == 0
    assert index._first_similar(2, candidate) == -1


def test_writing_that_means_the_same_is_the_same():
    assert near_copies(["Straße Nr. 1", "STRASSE  nr. １\n", "strasse\tnr.\u00a01 "]).tolist() == [-1, 0, 0]


def test_texts_shorter_than_a_shingle_are_compared_whole():
    texts = ["", "yes", "no", "YES", " ", "yes!", "是", "是", "yesss", "yes, ok"]
    assert near_copies(texts).tolist() == [-1, -1, -1, 1, 0, -1, -1, 6, -1, -1]


def test_nothing_and_one_text():
    assert near_copies([]).tolist() == []
    assert near_copies(["one text"]).tolist() == [-1]
    assert near_copies([]).dtype == np.int64


def test_half_a_surrogate_pair_is_a_character_like_any_other():
    assert near_copies(["broken \ud83d text here", "other", "broken \ud83d text here"]).tolist() == [-1, -1, 0]
    assert near_copies(["\ud83d", "?", "\ud83e", "\ud83d\ude00"]).tolist() == [-1] * 4


def test_texts_are_read_once_and_may_be_streamed():
    assert near_copies(text for text in (ENGLISH, CHINESE, ENGLISH)).tolist() == [-1, -1, 0]


def test_no_shingle_reaches_from_one_text_into_the_next():
    together = shingles(["first text", "ab", "", "second text"])
    alone = [shingles([text]) for text in ("first text", "ab", "", "second text")]
    assert together[0].tolist() == [one for hashes, _ in alone for one in hashes.tolist()]
    assert together[1].tolist() == [6, 1, 1, 7]


def test_blocks_cut_nothing_and_lose_nothing(monkeypatch):
    monkeypatch.setattr("finetune.data._text_hashes.BLOCK_CHARACTERS", 50)
    texts = [ENGLISH, "", "a", CHINESE, ENGLISH + "!", "a", ""]
    assert [text for block in blocks(texts) for text in block] == [duplicates_normal(text) for text in texts]
    assert near_copies(texts).tolist() == [-1, -1, -1, -1, 0, 2, 1]
    assert near_copies_among(texts[3:], texts[:3]).tolist() == [-1, 0, 2, 1]


def duplicates_normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab 是", max_size=30), max_size=12))
def test_what_is_reported_is_true_and_what_is_left_has_no_identical_pair(texts):
    copies = near_copies(texts).tolist()
    for text, copy in enumerate(copies):
        assert copy < text
        assert copy == -1 or (copies[copy] == -1 and plain_similarity(texts[text], texts[copy]) >= 0.8)
    left = [duplicates_normal(text) for text, copy in zip(texts, copies, strict=True) if copy == -1]
    assert len(set(left)) == len(left)


# --- near copies: how many are found


def test_the_bands_miss_fewer_than_one_in_a_hundred_at_the_threshold():
    def found(s: float) -> float:
        return 1 - (1 - s**_copy_index.BAND_PLACES) ** _copy_index.BANDS

    assert duplicates.SIMILARITY == 0.8
    assert found(0.8) == pytest.approx(0.9972, abs=1e-4)
    assert found(0.9) == pytest.approx(0.99999998, abs=1e-8)
    assert [found(s) for s in (0.7, 0.6, 0.5, 0.3)] == pytest.approx([0.85, 0.42, 0.12, 0.002], abs=0.005)


def test_recall_of_the_hardest_pairs_is_at_least_99_in_100():
    pairs = pairs_close_to_the_threshold(random.Random(7), 2000)
    found = near_copies([text for pair in pairs for text in pair])[1::2]
    assert (found == np.arange(0, 4000, 2)).mean() >= 0.99


def test_the_signatures_estimate_the_similarity_without_bias_and_as_precisely_as_random_hashes_would():
    rng = random.Random(3)
    pairs = [(text, edited(rng, text, 12)) for text in ("".join(rng.choices("abcdefgh ", k=300)) for _ in range(400))]
    signature = _copy_index._signatures(*shingles([text for pair in pairs for text in pair]))
    estimate = (signature[:, ::2] == signature[:, 1::2]).mean(axis=0)
    exact = np.array([plain_similarity(*pair) for pair in pairs])
    error = (estimate - exact) / np.sqrt(exact * (1 - exact) / _copy_index.PLACES)
    # 400 standard normal numbers: their mean has a standard error of 0.05, their standard deviation one of 0.035
    assert abs(error.mean()) < 0.2
    assert 0.85 < error.std() < 1.15


def test_on_rows_that_repeat_each_other_brute_force_finds_the_same():
    texts = real_like_texts()
    rng = random.Random(5)
    texts = (texts * 20)[:600]
    texts = [edited(rng, text, rng.randint(0, 5)) for text in texts]
    sets = [plain_shingles(text) for text in texts]
    expected: list[int] = []
    for i, own in enumerate(sets):
        kept = (j for j in range(i) if expected[j] == -1)
        expected.append(next((j for j in kept if len(own & sets[j]) / len(own | sets[j]) >= 0.8), -1))
    found = near_copies(texts).tolist()
    assert sum(copy >= 0 for copy in expected) > 200
    # a missed pair changes what later texts are compared with, so the few differences are counted, not excused
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 0.01 * len(texts)


# --- near copies: clusters


def test_a_chain_keeps_both_ends_because_the_middle_goes():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 220)))
    chain = [text[:180], text[15:195], text[30:210]]
    assert plain_similarity(chain[0], chain[1]) > 0.8 < plain_similarity(chain[1], chain[2])
    assert plain_similarity(chain[0], chain[2]) < 0.8
    assert near_copies(chain).tolist() == [-1, 0, -1]


def test_a_text_between_two_kept_ones_points_to_the_first():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 220)))
    assert near_copies([text[30:210], text[:180], text[15:195]]).tolist() == [-1, -1, 0]


def test_a_large_cluster_is_compared_with_its_first_text_alone(monkeypatch):
    rng = random.Random(2)
    texts = [edited(rng, ENGLISH * 3, 2) for _ in range(400)]
    compared = []
    exact = _copy_index.CopyIndex._similarities

    def counted(self, text, others):
        compared.append(len(others))
        return exact(self, text, others)

    monkeypatch.setattr(_copy_index.CopyIndex, "_similarities", counted)
    copies = near_copies(texts)
    assert (copies[1:] == 0).mean() > 0.95
    assert sum(compared) < 2 * len(texts)


def test_many_representatives_in_one_bucket_are_all_looked_at():
    # texts that agree in two thirds stand in many buckets together and are no copies; each has one exact twin
    rng = random.Random(11)
    shared = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    heads = [shared + "".join(map(chr, rng.sample(range(0x5000, 0x9000), 40))) for _ in range(150)]
    index = _copy_index.CopyIndex(_copy_index.sketched(heads))
    assert index._buckets.max() >= 0
    assert near_copies(heads + heads[::-1]).tolist() == [-1] * 150 + list(range(149, -1, -1))
    assert near_copies_among(heads, heads).tolist() == list(range(150))


def test_all_texts_of_a_bucket_are_looked_at_and_the_first_is_named():
    # one bucket a band for everything, as if all signatures agreed: what is found is then up to the index alone
    texts = ["an unrelated sentence about the weather", CHINESE, ENGLISH, ENGLISH + "!", ENGLISH + "?", CHINESE + "!"]
    sketches = _copy_index.sketched(texts)
    sketches = dataclasses.replace(sketches, band_keys=np.zeros_like(sketches.band_keys))
    index = _copy_index.CopyIndex(sketches)
    for text in range(4):
        index.add(text)
    assert [index.first_copy(text) for text in (4, 5)] == [2, 1]
    assert [index.any_copy(text) for text in (4, 5)] == [2, 1]
    buckets = index._of(4)
    assert index._all(buckets, buckets).tolist() == [0, 1, 2, 3]
    assert not index._marked.any()


def test_shingles_that_are_not_kept_are_made_again(monkeypatch):
    monkeypatch.setattr(_copy_index, "_KEPT_SHINGLES_BYTES", 1000)
    texts = real_like_texts()
    assert near_copies(texts + texts)[len(texts) :].min() >= 0


# --- near copies among others


def test_a_candidate_is_found_in_the_others_and_not_among_the_candidates():
    of = ["an unrelated sentence about the weather", ENGLISH]
    candidates = [CHINESE, CHINESE, ENGLISH.replace("seven", "eight"), ENGLISH.upper()]
    assert near_copies_among(candidates, of).tolist() == [-1, -1, 1, 1]
    assert near_copies_among(iter(candidates), iter(of)).tolist() == [-1, -1, 1, 1]


def test_others_that_are_near_copies_of_each_other_are_all_looked_at():
    # the candidate resembles the second text of `of` and not the first, whose near copy the second is
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 220)))
    assert near_copies_among([text[30:210]], [text[:180], text[15:195]]).tolist() == [1]


def test_among_nothing_or_for_nothing():
    assert near_copies_among([ENGLISH], []).tolist() == [-1]
    assert near_copies_among([], [ENGLISH]).tolist() == []


# --- words in a row

WORDS = [f"word{i}" for i in range(100)]


def test_thirteen_words_in_a_row_are_shared_and_twelve_are_not():
    of = ["nothing in common", " ".join(WORDS[:30])]
    assert shared_ngrams(["see: " + " ".join(WORDS[10:23])], of).tolist() == [1]
    assert shared_ngrams(["see: " + " ".join(WORDS[10:22])], of).tolist() == [-1]
    assert shared_ngrams([" ".join([*WORDS[10:16], "other", *WORDS[16:22]])], of).tolist() == [-1]


def test_case_punctuation_and_width_do_not_hide_a_quotation():
    quoted = "“" + ", ".join(word.upper() for word in WORDS[10:23]) + "”!\n"
    assert shared_ngrams([quoted.replace("1", "１")], [" ".join(WORDS)]).tolist() == [0]


def test_each_han_character_is_a_word():
    characters = re.sub(r"\W", "", CHINESE)
    assert shared_ngrams(["问：" + characters[5:18]], [CHINESE]).tolist() == [0]
    assert shared_ngrams(["问：" + characters[5:17]], [CHINESE]).tolist() == [-1]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("  ...  ", 0),
        ("don't stop", 3),
        ("版本2.0 of 你好", 7),
        ("カタカナ と ひらがな", 9),
        ("한국어 문장", 2),
        ("हिन्दी में", 2),
        ("สวัสดีครับ", 1),
        ("I ❤️ it", 2),
        ("snake_case x1", 3),
    ],
)
def test_what_a_word_is(text, count):
    assert len(word_grams([duplicates_normal(text)], 1)[0]) == count


def test_words_do_not_run_from_one_text_into_the_next():
    of = [" ".join(WORDS[:20])]
    assert shared_ngrams([" ".join(WORDS[:7]), " ".join(WORDS[7:14])], of).tolist() == [-1, -1]
    assert shared_ngrams(of, [" ".join(WORDS[:7]), " ".join(WORDS[7:14])]).tolist() == [-1]


def test_the_first_of_several_is_named_also_across_blocks(monkeypatch):
    monkeypatch.setattr("finetune.data._text_hashes.BLOCK_CHARACTERS", 60)
    of = ["alone", " ".join(WORDS[40:60]), " ".join(WORDS[:20]), " ".join(WORDS[:40])]
    candidates = ["short", " ".join(WORDS[:50]), " ".join(WORDS[5:19]), "", " ".join(WORDS[60:])]
    assert shared_ngrams(iter(candidates), iter(of)).tolist() == [-1, 2, 2, -1, -1]
    assert shared_ngrams([*candidates, " ".join(WORDS[41:58])], of).tolist() == [-1, 2, 2, -1, -1, 1]


def test_nothing_shared_with_nothing():
    assert shared_ngrams([], []).tolist() == []
    assert shared_ngrams([" ".join(WORDS)], []).tolist() == [-1]
    assert shared_ngrams([], [" ".join(WORDS)]).tolist() == []


def _texts_with_an_instruction(texts: int, holders: int) -> list[str]:
    instruction = " ".join(WORDS[:20])
    bodies = [" ".join(f"body{i}x{k}" for k in range(15)) for i in range(texts)]
    return [f"{instruction} {body}" if i < holders else body for i, body in enumerate(bodies)]


@pytest.mark.parametrize(
    ("texts", "holders", "counted"),
    [
        (20, 10, True),  # half of them, but only 10
        (20, 11, False),
        (200, 60, True),  # more than 10, but just 30 %
        (200, 61, False),
    ],
)
def test_what_stands_in_many_texts_is_boilerplate(texts, holders, counted):
    of = _texts_with_an_instruction(texts, holders)
    candidate = " ".join(WORDS[:20]) + " and a question of its own"
    assert shared_ngrams([candidate], of).tolist() == [0 if counted else -1]
    # what is not boilerplate still tells, within the same text
    assert shared_ngrams([candidate + " " + " ".join(f"body7x{k}" for k in range(13))], of)[0] == (0 if counted else 7)


def test_a_sequence_that_one_text_repeats_stands_in_one_text():
    of = ["\n".join([" ".join(WORDS[:13])] * 50), *(f"other text {i}" for i in range(200))]
    assert shared_ngrams([" ".join(WORDS[:13])], of).tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="a b,是", max_size=60), max_size=6), st.lists(st.text(alphabet="a b,是", max_size=60)))
def test_shared_words_are_those_of_the_definition(candidates, of):
    def grams(text: str) -> set[tuple[str, ...]]:
        words = re.findall("[ab]+|是", text)
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    expected = []
    sets = [grams(text) for text in of]
    for own in map(grams, candidates):
        rare = {gram for gram in own if sum(gram in other for other in sets) <= max(10, 0.3 * len(of))}
        expected.append(next((i for i, other in enumerate(sets) if rare & other), -1))
    assert shared_ngrams(candidates, of).tolist() == expected
