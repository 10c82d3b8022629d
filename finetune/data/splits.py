"""Three files of conversations and what is known of them: what the data stage hands on."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from export.artifacts import StageResult, sha256_of_file
from export.chat import Conversation
from export.compare import Gate, too_few_rows
from export.errors import ContractError
from finetune.data.account import Clause, DataReport, DropReason, SplitCounts, SplitName
from finetune.data.shown import in_one_line

SPLITS: tuple[SplitName, ...] = ("train", "valid", "held_out")
REPORT = "report.json"


class Splits(StageResult):
    """Three files of conversations, and an account of every row: read = kept + sampled_out + all that were dropped.

    `not_drawn` rows were kept and belong to training, but did not fit `data.max_train_tokens`. `labels` are those of
    the rows' data template: the texts of which every answer is one. `general` counts the rows of another source among
    the training rows, `general_left_out` those of them that no draw may take (`finetune.data.mixing`).
    """

    read: int
    sampled_out: int
    kept: int
    dropped: dict[DropReason, int]
    max_tokens: int
    longest_row_tokens: int
    train: SplitCounts
    valid: SplitCounts
    held_out: SplitCounts
    not_drawn: int = 0
    fingerprint: str
    source: dict[str, str]
    labels: tuple[str, ...] = ()
    general: SplitCounts | None = None
    general_left_out: int = 0

    def account(self) -> str:
        """What became of the rows, in a line: read, kept, dropped by reason, and where they went."""
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items() if count) or "none"
        parts = ", ".join(f"{name.replace('_', '-')} {getattr(self, name).rows:,}" for name in SPLITS)
        left_out = f", {self.sampled_out:,} left out by data.rows" if self.sampled_out else ""
        budget = f", {self.not_drawn:,} left out by data.max_train_tokens" if self.not_drawn else ""
        return f"{self.read:,} rows read, {self.kept:,} kept (dropped: {dropped}{left_out}); {parts}{budget}"

    def warning(self, gate: Gate, rows: int) -> str | None:
        """Why no better verdict than `cannot tell` is to be expected where an answer is right or wrong; None when
        the held-out rows are enough. At most `rows` of them are measured on.
        """
        # the merged model is held to these limits in every run, whose verdict is its worst
        problem = too_few_rows(min(rows, self.held_out.rows), gate.from_6_bits)
        key = "check.rows" if rows < self.held_out.rows else "data.held_out_share, or give more rows"
        return problem and f"{problem} Raise {key}."

    def conversations(self, split: SplitName) -> tuple[Conversation, ...]:
        """The conversations of one split, in the order they were read."""
        return tuple(read_conversations(self.folder / f"{split}.jsonl"))

    def report(self) -> DataReport:
        """What is known of the rows: data/report.json."""
        return DataReport.model_validate_json((self.folder / REPORT).read_text(encoding="utf-8"))

    def require_contract(self) -> None:
        """Raises ContractError, naming what is broken and the report, where the rows do not keep the contract."""
        report = self.report()
        if broken := report.broken:
            lines = "".join(f"\n  {clause.sentence}{_named(clause)}. {clause.remedy}" for clause in broken)
            raise ContractError(
                f"the rows break {len(broken)} of the contract's {len(report.clauses)} clauses; nothing is trained on "
                f"them:{lines}\nreport: {self.folder / 'report.html'}"
            )


def _named(clause: Clause) -> str:
    """The first rows of a broken clause."""
    examples = "; ".join(in_one_line(example, 120) for example in clause.examples[:3])
    return f", e.g. {examples}" if examples else ""


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a split's file, one by one."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield Conversation.model_validate_json(line)


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> None:
    """Writes a split's file."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        # the only default is a group of no name, which would stand in every row
        file.writelines(conversation.model_dump_json(exclude_defaults=True) + "\n" for conversation in conversations)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the three files, by name: the identity of what is trained and measured on."""
    parts = "".join(f"{name}.jsonl\0{sha256_of_file(folder / f'{name}.jsonl')}\n" for name in SPLITS)
    return hashlib.sha256(parts.encode()).hexdigest()
