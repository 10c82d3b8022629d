"""Is the answer the right one of a few? Multiple choice and classification, by what is written and by what is likely.

Written answers are read by `label_in`. By likelihood the choice is the label whose log-probability behind the prompt,
summed over its tokens and the token that ends the turn, is highest: what a runtime would be made to choose by
constrained decoding. Two labels that are equally likely are no choice, and count as wrong: half a right answer would be
neither right nor wrong, and rows could not be paired as lost and gained (McNemar). Longer labels have more tokens to
lose probability on; the choice by the mean over tokens is told besides.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field

from export.checks._base import Check, Item, ItemObservation, Items, Measurement, Observation, share
from export.checks._labels import label_in
from export.errors import RecipeError

Pair = tuple[str | None, str | None]

_EXPLAINS = "tells why the accuracy is what it is: no limit is asked of it"


class Label(Check):
    """Accuracy where every answer is one of a few labels: as it is written, and as it is most likely; and macro F1."""

    on_by_default: ClassVar[bool] = False
    reads: ClassVar[str] = "one of its labels"
    right_or_wrong: ClassVar[bool] = True

    labels: tuple[str, ...] = Field(default=(), description="The labels; none takes those of the data template.")
    likelihood: bool = Field(
        default=True, description="Whether the labels' likelihoods are measured: a run of the model for each label."
    )

    def options(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels, unless their likelihood is not asked for. Raises RecipeError where there are none."""
        known = self.labels or labels
        if len(known) < 2 or len(set(known)) < len(known) or not all(label.strip() for label in known):
            raise RecipeError(
                f"check.measures.label needs two different labels or more, and found {', '.join(known) or 'none'}. "
                "Name them in check.measures.label.labels, or in the data template's labels."
            )
        return known if self.likelihood else ()

    def unread(self, expected: Sequence[str], labels: tuple[str, ...]) -> tuple[str, ...]:
        """Those that are none of the labels: every answer to their rows is wrong."""
        known = self.labels or labels
        return tuple(text for text in expected if label_in(text, known) is None)

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One score of 0 or 1 per row; a row whose reference is none of the labels is always wrong, and noted."""
        labels = self.labels or work.labels
        if not labels:
            return ()
        expected = [label_in(text, labels) for text in work.expected()]
        given = [label_in(text, labels) for text in work.given(seen)]
        right = [float(e is not None and e == g) for e, g in zip(expected, given, strict=True)]
        given_any = [float(label is not None) for label in given]
        found = [
            share("label_accuracy", seen, right, note=_unknown(expected)),
            share(
                "label_given",
                seen,
                given_any,
                note=f"answers that are a label, right or not; {_EXPLAINS}",
                judged=False,
            ),
            _macro_f1(seen, expected, given),
        ]
        places = [_place(work.options, label) for label in labels]
        if self.likelihood and all(place is not None for place in places):
            by_sum = _likeliest(work, seen, labels, lambda total, _: total)
            by_mean = _likeliest(work, seen, labels, lambda total, tokens: total / tokens)
            note = f"log-probability divided by a label's tokens; {_EXPLAINS}"
            found.append(share("label_likelihood", seen, _right(expected, by_sum), note=_unknown(expected)))
            found.append(share("label_likelihood_per_token", seen, _right(expected, by_mean), note=note, judged=False))
        return tuple(found)


def choice(scores: Sequence[float]) -> int | None:
    """The index of the highest score; None for a tie and where a score is not a number."""
    if not scores or any(math.isnan(score) for score in scores):
        return None
    highest = max(scores)
    return scores.index(highest) if scores.count(highest) == 1 else None


def macro_f1(pairs: Counter[Pair]) -> float:
    """The mean of each label's F1 over the labels that a reference has: Opitz and Burst 2019 ("Macro F1 and Macro F1",
    arXiv 1911.03347), the first of the two. NaN where no reference is a label.

    `pairs` counts the rows by the label that was expected and the one that was given. Labels of no reference have no
    recall; those of them that are given still cost the others their precision.
    """
    wanted: Counter[str] = Counter()
    said: Counter[str] = Counter()
    for (expected, given), rows in pairs.items():
        wanted.update({expected: rows} if expected is not None and rows else {})
        said.update({given: rows} if given is not None else {})
    scores = [2 * pairs[label, label] / (wanted[label] + said[label]) for label in wanted]
    return math.fsum(scores) / len(scores) if scores else math.nan


def _macro_f1(seen: Observation, expected: Sequence[str | None], given: Sequence[str | None]) -> Measurement:
    """Macro F1 with its standard error by the jackknife over rows (Efron and Tibshirani 1993, "An Introduction to the
    Bootstrap", section 11.5), of which no row has a value: it is not compared.
    """
    pairs, rows = Counter(zip(expected, given, strict=True)), len(expected)
    left_out = {pair: macro_f1(pairs - Counter([pair])) for pair in pairs}  # the same for all rows of a pair
    stderr, why = None, "; too few rows of a label: no standard error"
    if rows > 1 and all(map(math.isfinite, left_out.values())):
        mean = math.fsum(count * left_out[pair] for pair, count in pairs.items()) / rows
        squares = math.fsum(count * (left_out[pair] - mean) ** 2 for pair, count in pairs.items())
        stderr, why = math.sqrt((rows - 1) / rows * squares), ""
    labels = len({label for label in expected if label is not None})
    return Measurement(
        check="label_macro_f1",
        subject=seen.subject,
        value=macro_f1(pairs),
        stderr=stderr,
        n=rows,
        unit="share",
        higher_is_better=True,
        note=f"mean F1 of the {labels} labels that the references have; ± by the jackknife; no row has a score of its "
        f"own that could be paired, so that it is not judged{why}",
        judged=False,
    )


def _place(options: Sequence[str], label: str) -> int | None:
    return options.index(label) if label in options else None


def _likeliest(
    work: Items, seen: Observation, labels: Sequence[str], score: Callable[[float, int], float]
) -> list[str | None]:
    """For each row the label of the highest score, which is made of its log-probability and its number of tokens."""
    places = [work.options.index(label) for label in labels]

    def of(item: Item, observed: ItemObservation) -> str | None:
        scores = [score(observed.option_log_probs[place], len(item.options[place])) for place in places]
        best = choice(scores)
        return None if best is None else labels[best]

    return [of(item, observed) for item, observed in zip(work.items, seen.items, strict=True)]


def _right(expected: Sequence[str | None], chosen: Sequence[str | None]) -> list[float]:
    return [float(e is not None and e == c) for e, c in zip(expected, chosen, strict=True)]


def _unknown(expected: Sequence[str | None]) -> str:
    """What must be known of rows whose reference is no label."""
    count = sum(label is None for label in expected)
    return (
        f"the reference of {count:,} of {len(expected):,} rows is none of the labels: they count as wrong"
        if count
        else ""
    )


step = Label
