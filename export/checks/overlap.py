"""How much of a free answer is the reference's? Overlap of words and of characters, and the answer's length.

ROUGE-L is the F measure of the longest common subsequence of words (Lin 2004, "ROUGE: A Package for Automatic
Evaluation of Summaries", section 3) by the library `rouge-score`, whose own tokenizer drops all that is not ASCII: it
is given one that takes a Chinese character for a word. chrF is the F2 of character 1- to 6-grams (Popović 2015, "chrF:
character n-gram F-score for automatic MT evaluation") by the library `sacrebleu`. Both are means over rows, which pair;
sacrebleu's figure for a corpus adds the counts up first and is another number.
"""

from typing import TYPE_CHECKING, ClassVar

from export.checks._base import Check, Items, Measurement, Observation, measurement, share
from export.checks._words import words

if TYPE_CHECKING:
    from collections.abc import Callable

    Score = Callable[[str, str], float]


class Overlap(Check):
    """ROUGE-L and chrF of answers in free text against the reference, by row, and how long answers are beside it."""

    on_by_default: ClassVar[bool] = False

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """Two scores between 0 and 1, and the ratio of lengths in characters, of which nothing is asked."""
        pairs = list(zip(work.given(seen), work.expected(), strict=True))
        rouge, chrf = rouge_l(), chr_f()
        lengths = [[len(answer.strip()) / len(gold.strip())] for answer, gold in pairs if gold.strip()]
        return (
            share("rouge_l", seen, [rouge(answer, gold) for answer, gold in pairs]),
            share("chrf", seen, [chrf(answer, gold) for answer, gold in pairs]),
            measurement(
                "length_ratio",
                seen.subject,
                lengths,
                unit="×",
                higher_is_better=None,
                note="characters of the answer over those of the reference, mean over rows",
                judged=False,
            ),
        )


class _Words:
    """`rouge-score`'s interface of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge_l() -> "Score":
    """ROUGE-L's F measure of an answer against a reference, between 0 and 1; 0 where either has no words."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return lambda answer, gold: float(scorer.score(gold, answer)["rougeL"].fmeasure)


def chr_f() -> "Score":
    """ChrF of an answer against a reference, between 0 and 1 (sacrebleu's is out of 100)."""
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    return lambda answer, gold: float(scorer.sentence_score(answer, [gold]).score) / 100


step = Overlap
