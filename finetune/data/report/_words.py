"""How the numbers of the rows are said: shares, limits, and the names of what is counted. Nothing is counted here."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from finetune.data.account import Clause, DataReport, DropReason, Overlap, OverlapKind, SplitName
from finetune.data.personal import PersonalKind
from finetune.data.shown import in_one_line

NOTHING = "–"
LONGEST_NAME = 100
SPLITS: Mapping[SplitName, str] = {"train": "train", "valid": "validation", "held_out": "held out"}
PERSONAL: Mapping[PersonalKind, str] = {
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "id_number": "id numbers",
    "url": "URLs",
}
OVERLAPS: Mapping[OverlapKind, str] = {
    "exact": "repeated to the letter",
    "near": "near copies",
    "ngram": "share 13 words in a row (Chinese: characters)",
}


class Drop(NamedTuple):
    """A reason to drop a row: in two or three words for a chart, and in full."""

    short: str
    full: str


DROPS: Mapping[DropReason, Drop] = {
    "broken": Drop("broken", "do not fit the template"),
    "empty_prompt": Drop("empty prompt", "have no prompt"),
    "empty_answer": Drop("empty answer", "have no answer"),
    "duplicate": Drop("duplicate", "repeat an earlier row to the letter"),
    "too_long": Drop("too long", "have more tokens than data.max_tokens"),
    "nothing_to_learn": Drop("nothing to learn", "have no token that carries loss"),
}


class Verdict(NamedTuple):
    """How the contract stands: the shape that the page draws, a word, and a sentence."""

    shape: str
    word: str
    sentence: str


def verdict(report: DataReport) -> Verdict:
    """Whether the rows keep the contract; clauses without a limit are not counted."""
    judged = sum(clause.ok is not None for clause in report.clauses)
    broken = len(report.broken)
    if not judged:
        return Verdict("none", "not judged", "The contract sets no limit: nothing was judged.")
    clauses = f"{judged:,} clause{'' if judged == 1 else 's'}"
    if broken:
        return Verdict("fail", "broken", f"The rows break the contract: {broken:,} of {clauses}.")
    whole = f"all {clauses}" if judged > 1 else "its one clause"
    return Verdict("pass", "kept", f"The rows keep the contract: {whole}.")


def clause_verdict(clause: Clause) -> Verdict:
    """How one clause stands, with what was found as its sentence."""
    shape, word = {True: ("pass", "kept"), False: ("fail", "broken"), None: ("none", "no limit")}[clause.ok]
    limit = limit_text(clause)
    found = f"{in_one_line(clause.what, LONGEST_NAME)}: {share_of(clause.count, clause.n)}"
    return Verdict(shape, word, f"{found}; allowed: {limit}" if clause.limit is not None else found)


def limit_text(clause: Clause) -> str:
    """What a clause allows."""
    if clause.limit is None:
        return "no limit"
    if clause.limit in (0.0, 1.0):
        ends = {(0.0, False): "none", (1.0, True): "all", (0.0, True): "any", (1.0, False): "any"}
        return ends[clause.limit, clause.at_least]
    return f"at {'least' if clause.at_least else 'most'} {round(clause.limit * 100, 6):g}\u00a0%"


def share_of(count: int, n: int) -> str:
    """A share with the counts that it stands on: "1.3 % (15 of 1,200)"."""
    return f"{share(count, n)} ({count:,} of {n:,})" if n else "nothing to count (n = 0)"


def share(count: int, n: int) -> str:
    """`count` of `n` in percent, to the digit; one that is not 0 or all is never written as if it were."""
    if not n:
        return NOTHING
    if count in (0, n):
        return "100\u00a0%" if count else "0\u00a0%"
    percent = count / n * 100
    from_an_end = min(percent, abs(100 - percent))
    digits = max(1, -math.floor(math.log10(from_an_end))) if from_an_end else 1
    return f"{percent:.{digits}f}\u00a0%"


def overlap_words(overlap: Overlap) -> str:
    """Which rows are looked for among which."""
    of, among = in_one_line(overlap.of, LONGEST_NAME), in_one_line(overlap.among, LONGEST_NAME)
    return f"{of} among {among}" if of != among else f"within {of}"


def looked_at(report: DataReport) -> int:
    """The rows that were read and not left out by `data.rows`: what the shares of drops stand on."""
    return report.read - report.sampled_out
