"""From rows to three splits of conversations: training, validation during training, and held out for measuring.

No row, group or prompt stands in two splits, and every row that is read is accounted for: kept, left out by
`data.rows`, or dropped for a reason that is counted. Rows are read once and pass through a file: memory holds their
lengths and hashes, not their words.
"""

import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from export.chat import Conversation
from export.errors import DataError
from export.thought import answer_behind_thought
from finetune.data.account import DataReport, SplitCounts, SplitName
from finetune.data.contract import clauses
from finetune.data.draw import drawn
from finetune.data.intake import Intake, opened
from finetune.data.overlaps import Copies, Links, copies_in, near_rows_apart, overlaps_between
from finetune.data.reading import ChosenTemplate, choose_template, encodings, identity, licences, read_rows
from finetune.data.report import write_report
from finetune.data.settings import DataSettings
from finetune.data.sources import Row
from finetune.data.splits import Splits, fingerprint, write_conversations
from finetune.data.splitting import split_groups
from finetune.data.survey import EXAMPLES, token_histogram

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEPT = "kept.jsonl"
# Each split that is tried links what the one before it would have parted; real sets were apart after one to seven.
_SPLITS_TRIED = 12


class _Taken(NamedTuple):
    """The rows that were taken in, by which template, and how many `data.rows` left out."""

    intake: Intake
    chosen: ChosenTemplate
    sampled_out: int

    @property
    def account(self) -> str:
        """What became of the rows, in words."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.intake.dropped.items()) or "none"
        left_out = f", {self.sampled_out:,} left out by data.rows" if self.sampled_out else ""
        read = self.intake.read + self.sampled_out
        return f"{read:,} rows read, {self.intake.kept:,} kept, dropped: {reasons}{left_out}"


class Usable(NamedTuple):
    """Rows as conversations, the labels of their data template, and what became of every row, in words."""

    conversations: tuple[Conversation, ...]
    labels: tuple[str, ...]
    account: str


class _Assigned(NamedTuple):
    """Row indexes of each split; `groups` of all rows; `not_drawn` training rows that exceed the token budget."""

    splits: dict[SplitName, list[int]]
    groups: list[list[int]]
    not_drawn: int


def prepare(
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    name: str,
    seed: int,
    thinking: bool,
    offline: bool,
    out: Path,
    say: Callable[[str], None],
    source: Mapping[str, str] | None = None,
) -> Splits:
    """Reads, maps, filters and splits the rows, and writes the three splits and the report into `out`.

    `source` is the rows' `identity` where it is known: a large file is not hashed twice.
    Raises DataError when rows cannot be read or mapped, or when too few are left to split. Whether they keep the
    contract is in the report (`Splits.require_contract`).
    """
    with _take(settings, tokenizer, out, seed=seed, thinking=thinking, offline=offline, say=say) as taken:
        copies = copies_in(taken.intake, settings.near_copies, say)
        assigned = _assign(settings, taken, copies, seed)
        for split, indexes in assigned.splits.items():
            write_conversations(out / f"{split}.jsonl", _at(taken.intake.conversations(), indexes))
        report = _report(settings, name, tokenizer, taken, copies, assigned, offline=offline)
    write_report(report, out)
    return Splits(
        folder=out,
        read=report.read,
        sampled_out=report.sampled_out,
        kept=report.kept,
        dropped=report.dropped,
        max_tokens=settings.max_tokens,
        longest_row_tokens=max(taken.intake.tokens),
        not_drawn=assigned.not_drawn,
        fingerprint=fingerprint(out),
        labels=taken.chosen.template.labels,
        source={
            "path": settings.path,
            "template": taken.chosen.name,
            **(identity(settings, seed=seed, offline=offline) if source is None else source),
        },
        **report.splits,
    )


def usable_conversations(
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    seed: int,
    thinking: bool,
    offline: bool,
    say: Callable[[str], None],
) -> Usable:
    """All rows that can be measured on, not split. Raises DataError as `prepare` does."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _take(settings, tokenizer, Path(folder), seed=seed, thinking=thinking, offline=offline, say=say) as taken,
    ):
        return Usable(tuple(taken.intake.conversations()), taken.chosen.template.labels, taken.account)


@contextmanager
def _take(
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    *,
    seed: int,
    thinking: bool,
    offline: bool,
    say: Callable[[str], None],
) -> Iterator[_Taken]:
    """Takes all rows in, which lie in a file in `folder` as long as the block lasts."""
    chosen = choose_template(settings, lambda: read_rows(settings, seed=seed, offline=offline))
    if settings.template == "auto":
        say(f"data: the template {chosen.name!r} is chosen by {chosen.chosen_by} (data.template names another)")
    rows, sampled_out = _sample(read_rows(settings, seed=seed, offline=offline), settings.rows, seed)
    path = folder / _KEPT
    try:
        with opened(
            path, max_tokens=settings.max_tokens, tolerated=settings.contract.drops_broken, mask=settings.mask_personal
        ) as intake:
            intake.keep(intake.take(rows, chosen.mapper(settings)), tokenizer, thinking=thinking)
            taken = _Taken(intake, chosen, sampled_out)
            if not intake.kept:
                raise DataError(f"no rows are left: {taken.account}. {_remedy(intake, settings)}")
            yield taken
    finally:
        path.unlink(missing_ok=True)


def _assign(settings: DataSettings, taken: _Taken, copies: Copies, seed: int) -> _Assigned:
    """Which row goes where. Raises DataError where the rows cannot be split in three."""
    split = _apart if settings.near_copies == "together" else _split
    groups, splits = split(settings, taken, copies.links if split is _apart else (), seed)
    train = drawn(splits["train"], taken.intake.tokens, settings.max_train_tokens, seed)
    return _Assigned({**splits, "train": train}, groups, len(splits["train"]) - len(train))


_Groups = list[list[int]]
_Splits = dict[SplitName, list[int]]


def _split(settings: DataSettings, taken: _Taken, links: Links, seed: int) -> tuple[_Groups, _Splits]:
    groups = taken.intake.belonging.groups(links)
    splits = split_groups(groups, valid_share=settings.valid_share, held_out_share=settings.held_out_share, seed=seed)
    if splits is None:
        raise DataError(
            f"the rows cannot be split in three: {taken.account}, in fewer than 3 groups. Give more rows, or rows of "
            "more groups (see data.group_by and data.near_copies): a group is never divided."
        )
    return groups, splits


def _apart(settings: DataSettings, taken: _Taken, links: Links, seed: int) -> tuple[_Groups, _Splits]:
    """A split in which no row is a near copy of one in another split, as far as the search sees.

    Such rows are linked and the rows split anew, until there are none. What resists is moved to training, group by
    group: that ends, and leaves fewer rows to measure on.
    """
    known = list(links)
    for _ in range(_SPLITS_TRIED):
        groups, splits = _split(settings, taken, known, seed)
        if not (found := near_rows_apart(taken.intake, splits)):
            return groups, splits
        known += found
    group_of = {index: group for group in groups for index in group}
    while found:
        moved = {member for pair in found for row in pair for member in group_of[row]}
        splits = {name: [index for index in indexes if index not in moved] for name, indexes in splits.items()}
        splits["train"] = sorted({*splits["train"], *moved})
        if not all(splits.values()):
            raise DataError(
                f"the rows cannot be split in three: {taken.account}, and nearly all resemble one another, so that "
                "none can be held out. Give rows that differ more, or set data.near_copies to counted."
            )
        found = near_rows_apart(taken.intake, splits)
    return groups, splits


def _report(
    settings: DataSettings,
    name: str,
    tokenizer: "PreTrainedTokenizerBase",
    taken: _Taken,
    copies: Copies,
    assigned: _Assigned,
    *,
    offline: bool,
) -> DataReport:
    intake, chosen = taken.intake, taken.chosen
    splits = assigned.splits
    overlaps = overlaps_between(intake, splits["held_out"], splits["train"], near_searched=copies.searched)
    return DataReport(
        name=name,
        path=settings.path,
        template=chosen.name,
        template_chosen_by=chosen.chosen_by,
        encodings=encodings(settings),
        licences=licences(settings, chosen, offline=offline),
        tokenizer=Path(tokenizer.name_or_path).name,
        read=intake.read + taken.sampled_out,
        sampled_out=taken.sampled_out,
        kept=intake.kept,
        dropped={reason: count for reason, count in intake.dropped.items() if count},
        splits=_counts(intake, assigned),
        not_drawn=assigned.not_drawn,
        clauses=clauses(settings, intake, copies, overlaps, _outside_labels(intake, chosen)),
        tokens=token_histogram(intake.tokens),
        turns=intake.survey.turns(),
        lengths=intake.survey.lengths(),
        scripts=intake.survey.scripts(),
        personal=intake.survey.personal_counts(),
        masked=settings.mask_personal,
        overlaps=overlaps,
    )


def _counts(intake: Intake, assigned: _Assigned) -> dict[SplitName, SplitCounts]:
    group_of = {index: number for number, group in enumerate(assigned.groups) for index in group}
    return {
        split: SplitCounts(
            rows=len(indexes),
            groups=len({group_of[index] for index in indexes}),
            tokens=sum(intake.tokens[index] for index in indexes),
            scored_tokens=sum(intake.scored_tokens[index] for index in indexes),
        )
        for split, indexes in assigned.splits.items()
    }


def _outside_labels(intake: Intake, chosen: ChosenTemplate) -> tuple[int, tuple[str, ...]] | None:
    """How many answers are none of the template's labels, with the first of them; None where it has no labels."""
    labels = frozenset(chosen.template.labels)
    if not labels:
        return None
    count = 0
    examples: list[str] = []
    for line in intake.lines():
        if (answer := answer_behind_thought(line.conversation.answer).strip()) not in labels:
            count += 1
            if len(examples) < EXAMPLES:
                examples.append(f"{line.origin}: {answer[:60]!r}")
    return count, tuple(examples)


def _at(conversations: Iterable[Conversation], indexes: Sequence[int]) -> Iterator[Conversation]:
    """The conversations at ascending indexes."""
    wanted = iter(indexes)
    following = next(wanted, None)
    for index, conversation in enumerate(conversations):
        if index == following:
            yield conversation
            following = next(wanted, None)


def _sample(rows: Iterator[Row], limit: int | None, seed: int) -> tuple[Iterable[Row], int]:
    """The rows, or `limit` of them, each equally likely, in their order (Vitter's algorithm R); and how many were left
    out.
    """
    if limit is None:
        return rows, 0
    source = random.Random(seed)
    chosen: list[tuple[int, Row]] = []
    count = 0
    for count, row in enumerate(rows, start=1):
        if len(chosen) < limit:
            chosen.append((count, row))
        elif (place := source.randrange(count)) < limit:
            chosen[place] = (count, row)
    return [row for _, row in sorted(chosen, key=lambda pair: pair[0])], count - len(chosen)


def _remedy(intake: Intake, settings: DataSettings) -> str:
    most = intake.dropped.most_common(1)
    reason = most[0][0] if most else None
    if reason == "too_long":
        return f"Raise data.max_tokens, which is {settings.max_tokens}."
    if reason in ("empty_answer", "empty_prompt", "broken"):
        return f"Check that the template {settings.template!r} reads the right fields."
    return "Check the source."
