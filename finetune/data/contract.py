"""Holds what was found in the rows to the contract's limits: one clause for each, kept or broken."""

from collections.abc import Sequence
from typing import NamedTuple

from finetune.data.account import Clause, Overlap, OverlapKind
from finetune.data.intake import Intake
from finetune.data.overlaps import Copies
from finetune.data.settings import Contract, DataSettings


def clauses(
    settings: DataSettings,
    intake: Intake,
    copies: Copies,
    overlaps: Sequence[Overlap],
    outside: tuple[int, tuple[str, ...]] | None,
) -> tuple[Clause, ...]:
    """Every clause, in the contract's order.

    `outside` counts and names the answers that are none of the template's labels; None where it has no labels.
    """
    outside_count, outside_examples = outside or (0, ())
    survey, masked = intake.survey, settings.mask_personal
    found = [
        *_of_reading(settings, intake),
        *_of_copies(intake, copies),
        *_of_turns(intake),
        *_of_overlaps(overlaps, near_searched=copies.searched),
        _Found(
            "outside_labels_share",
            "answers that are none of the template's labels",
            outside_count,
            0 if outside is None else intake.kept,
            outside_examples,
            "Correct them, or extend the template's labels.",
        ),
        _Found(
            "personal_share",
            f"rows in which an e-mail address, a phone or an id number was {'left' if masked else 'found'}",
            survey.personal_left_rows if masked else survey.personal_rows,
            survey.looked_through,
            tuple(survey.examples["personal_left" if masked else "personal"]),
            "Remove them." if masked else "Remove them, or set data.mask_personal to true.",
        ),
    ]
    return tuple(_judged(item, settings.contract) for item in found)


class _Found(NamedTuple):
    """What was found for one clause: `part` of `whole`."""

    name: str
    what: str
    part: int
    whole: int
    examples: tuple[str, ...] = ()
    remedy: str = ""
    at_least: bool = False


def _of_reading(settings: DataSettings, intake: Intake) -> list[_Found]:
    dropped, examples = intake.dropped, intake.survey.examples
    empty = dropped["empty_prompt"] + dropped["empty_answer"]
    return [
        _Found(
            "broken_share",
            "rows that cannot be read or do not fit the template",
            dropped["broken"],
            intake.read,
            tuple(intake.broken[:5]),
            "Mend the rows, or the template.",
        ),
        _Found(
            "empty_share",
            "rows without a prompt or an answer",
            empty,
            intake.read,
            (*examples["empty_prompt"], *examples["empty_answer"])[:5],
            "Check that the template reads the right fields.",
        ),
        _Found(
            "too_long_share",
            f"rows of more than {settings.max_tokens:,} tokens (data.max_tokens), which are dropped",
            dropped["too_long"],
            intake.read,
            tuple(examples["too_long"]),
            "Raise data.max_tokens: what is dropped is not a random part.",
        ),
    ]


def _of_copies(intake: Intake, copies: Copies) -> list[_Found]:
    said = "near copies of an earlier row" + ("" if copies.searched else " (not searched: data.near_copies is ignored)")
    return [
        _Found(
            "duplicate_share",
            "rows that repeat another to the letter, which are dropped",
            intake.dropped["duplicate"],
            intake.read,
            tuple(intake.survey.examples["duplicate"]),
            "Find out where the copies come from: what else is in the file twice?",
        ),
        _Found(
            "near_duplicate_share",
            said,
            copies.rows,
            intake.kept if copies.searched else 0,
            copies.examples,
            "Keep one of each, or raise the limit.",
        ),
    ]


def _of_turns(intake: Intake) -> list[_Found]:
    survey = intake.survey
    return [
        _Found(
            "repeated_turn_share",
            "rows in which the same is said twice",
            survey.repeated_turn_rows,
            intake.kept,
            tuple(survey.examples["repeated_turn"]),
            "Look at how the conversations were put together.",
        ),
        _Found(
            "trained_token_share",
            "tokens that carry loss (the assistant's words and turn ends)",
            sum(intake.scored_tokens),
            sum(intake.tokens),
            (),
            "Shorten what stands before the answers: a long prompt that never changes teaches nothing.",
            at_least=True,
        ),
        _Found(
            "turn_end_share",
            "assistant turns that end in a turn-end token with loss",
            survey.ended_turns,
            survey.assistant_turns,
            tuple(survey.examples["turn_end"]),
            "Use a chat template that ends every turn: a model trained on these rows does not learn to stop.",
            at_least=True,
        ),
    ]


_OF_OVERLAPS: dict[OverlapKind, tuple[str, str, str]] = {
    "exact": (
        "overlap_exact_share",
        "held-out rows that ask what a training row asks",
        "This is a fault of fieldtune's splitting: please report it.",
    ),
    "near": (
        "overlap_near_share",
        "held-out rows that are near copies of a training row",
        "Set data.near_copies to together, or data.group_by to a field by which such rows belong together.",
    ),
    "ngram": (
        "overlap_ngram_share",
        "held-out rows that share 13 words (Chinese: characters) in a row with a training row",
        "Look at the pairs in the report: a shared passage makes held-out rows easier than new ones.",
    ),
}


def _of_overlaps(overlaps: Sequence[Overlap], *, near_searched: bool) -> list[_Found]:
    found = []
    if not near_searched:
        name, said, _ = _OF_OVERLAPS["near"]
        found.append(_Found(name, f"{said} (not searched: data.near_copies is ignored)", 0, 0))
    for overlap in overlaps:
        name, said, remedy = _OF_OVERLAPS[overlap.kind]
        examples = tuple(f"{row} / {other}" for row, other in overlap.examples)
        found.append(_Found(name, said, overlap.rows, overlap.n, examples, remedy))
    return found


def _judged(found: _Found, contract: Contract) -> Clause:
    """A clause with its verdict; there is none without a limit, or where there is nothing to count."""
    limit: float | None = getattr(contract, found.name)
    share = found.part / found.whole if found.whole else None
    ok = None if limit is None or share is None else (share >= limit if found.at_least else share <= limit)
    return Clause(
        name=found.name,
        what=found.what,
        count=found.part,
        n=found.whole,
        limit=limit,
        at_least=found.at_least,
        ok=ok,
        examples=found.examples,
        remedy=found.remedy,
    )
