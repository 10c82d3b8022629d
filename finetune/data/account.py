"""What is known of the rows: counts, shares, overlaps and the contract's clauses; the content of data/report.json.

Every number here is a count over all rows that were read or kept, not an estimate from some of them: it has an n and
no interval. How the numbers come about is `finetune.data.survey`; how they are shown, `finetune.data.report`.
"""

from typing import Literal

from export.frozen import Frozen
from finetune.data.personal import PersonalKind

SplitName = Literal["train", "valid", "held_out"]
DropReason = Literal["broken", "empty_prompt", "empty_answer", "duplicate", "too_long", "nothing_to_learn"]
OverlapKind = Literal["exact", "near", "ngram"]


class Clause(Frozen):
    """One limit of the contract against what was found: `count` of `n`. `ok` is None where there is no limit.

    `examples` name rows ("commands.jsonl, line 3: ..."); `remedy` is what to do when it is broken.
    """

    name: str
    what: str
    count: int
    n: int
    limit: float | None
    at_least: bool = False
    ok: bool | None
    examples: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def share(self) -> float | None:
        """`count` of `n`; None where nothing was counted."""
        return self.count / self.n if self.n else None

    @property
    def sentence(self) -> str:
        """What was found and what is allowed, in a line."""
        found = "nothing to count" if self.share is None else f"{self.share:.1%} ({self.count:,} of {self.n:,})"
        allowed = (
            "" if self.limit is None else f"; {'at least' if self.at_least else 'at most'} {self.limit:.1%} allowed"
        )
        return f"{self.what}: {found}{allowed}"


class Histogram(Frozen):
    """How many values lie from each of `edges` to below the next; the last edge has no end. As many counts as edges."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]


class ScriptCount(Frozen):
    """Kept rows whose words are mostly of one script ("Chinese", "Latin", "mixed", "other"), and how densely the
    tokenizer packs them: UTF-8 bytes per token of their messages' text.
    """

    script: str
    rows: int
    bytes: int
    tokens: int

    @property
    def bytes_per_token(self) -> float | None:
        """None where there are no tokens."""
        return self.bytes / self.tokens if self.tokens else None


class LengthLimit(Frozen):
    """How many of the rows that were encoded are longer than `max_tokens`."""

    max_tokens: int
    rows: int
    n: int


class PersonalCount(Frozen):
    """Rows in which one kind of personal data was found, and how often; examples are masked in part."""

    kind: PersonalKind
    rows: int
    findings: int
    examples: tuple[str, ...] = ()


class Overlap(Frozen):
    """Rows of one set that are found again in another: to the letter, nearly, or by 13 words in a row.

    `examples` are pairs: the row, and what it repeats.
    """

    kind: OverlapKind
    of: str
    among: str
    rows: int
    n: int
    examples: tuple[tuple[str, str], ...] = ()


class SplitCounts(Frozen):
    """What one split holds; `scored_tokens` are those that carry loss."""

    rows: int
    groups: int
    tokens: int
    scored_tokens: int


class DataReport(Frozen):
    """Everything that is known of the rows. Reads as it is written: `read` = `kept` + `sampled_out` + all `dropped`."""

    name: str
    path: str
    template: str
    template_chosen_by: str
    encodings: tuple[str, ...]
    licences: tuple[tuple[str, str], ...]
    tokenizer: str
    read: int
    sampled_out: int
    kept: int
    dropped: dict[DropReason, int]
    splits: dict[SplitName, SplitCounts]
    not_drawn: int = 0
    clauses: tuple[Clause, ...]
    tokens: Histogram
    turns: Histogram
    lengths: tuple[LengthLimit, ...]
    scripts: tuple[ScriptCount, ...]
    personal: tuple[PersonalCount, ...]
    masked: bool
    overlaps: tuple[Overlap, ...]

    @property
    def broken(self) -> tuple[Clause, ...]:
        """The clauses that are not kept."""
        return tuple(clause for clause in self.clauses if clause.ok is False)
