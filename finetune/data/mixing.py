"""Mixes general rows into the training rows of a domain, by their share of the rows.

Small domain data makes a model forget what it could do besides; general rows among them hold some of it (what they held
is measured beside the domain, see `finetune.companions`). Only training rows are mixed: the domain's validation and
held-out rows stay what they are. The share is one of rows, as data recipes state it, and not of tokens: behind long
prompts with answers of a letter, a tenth of the tokens would be most of those that carry loss.
"""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from export.chat import Conversation
from finetune.data.account import SplitCounts
from finetune.data.belonging import Belonging
from finetune.data.draw import Lengths
from finetune.data.overlaps import resembling
from finetune.data.splits import REPORT, Splits, fingerprint, write_conversations


def mix(domain: Splits, general: Splits, lengths: Sequence[Lengths], share: float, seed: int, out: Path) -> Splits:
    """Splits in `out`: those of the domain, with so many general training rows drawn that they are `share` of all.

    `lengths` are those of the general training rows (`finetune.data.draw.lengths_of`). Rows that resemble one on which
    the domain is measured are left out. Where the others do not suffice, all of them are taken, and the share is
    smaller (`share_of`).
    """
    rows = general.conversations("train")
    fit = unlike_measured(domain, rows)
    chosen = drawn(fit, rows_for(share, domain.train.rows), seed)
    added = [rows[index] for index in chosen]
    belonging = Belonging()
    for row in added:
        belonging.add(row)
    counts = SplitCounts(
        rows=len(chosen),
        groups=len(belonging.groups()),
        tokens=sum(lengths[index].tokens for index in chosen),
        scored_tokens=sum(lengths[index].scored for index in chosen),
    )
    write_conversations(out / "train.jsonl", (*domain.conversations("train"), *added))
    for name in ("valid.jsonl", "held_out.jsonl", REPORT):
        shutil.copyfile(domain.folder / name, out / name)
    both = SplitCounts(
        rows=domain.train.rows + counts.rows,
        groups=domain.train.groups + counts.groups,
        tokens=domain.train.tokens + counts.tokens,
        scored_tokens=domain.train.scored_tokens + counts.scored_tokens,
    )
    return domain.model_copy(
        update={
            "folder": out,
            "train": both,
            "general": counts,
            "general_left_out": len(rows) - len(fit),
            "fingerprint": fingerprint(out),
        }
    )


def unlike_measured(domain: Splits, rows: Sequence[Conversation]) -> list[int]:
    """The places of the general rows that resemble none on which the domain is measured."""
    left_out = resembling(rows, (*domain.conversations("valid"), *domain.conversations("held_out")))
    return [place for place in range(len(rows)) if place not in left_out]


def rows_for(share: float, rows: int) -> int:
    """How many rows beside so many others are this share of all: at least one for a share above 0."""
    return max(1, round(rows * share / (1 - share))) if share else 0


def drawn(rows: Sequence[int], wanted: int, seed: int) -> list[int]:
    """So many of `rows`, at random and in order; of a larger number all that a smaller one draws."""
    order = list(rows)
    random.Random(f"{seed} general rows").shuffle(order)
    return sorted(order[:wanted])


def share_of(mixed: Splits) -> float:
    """The share of the training rows that are general."""
    return 0.0 if mixed.general is None else mixed.general.rows / mixed.train.rows


def account(mixed: Splits, asked: float) -> str:
    """What was mixed in, in a line: of the rows, of the tokens, of those that carry loss, and whether it sufficed."""
    added = mixed.general or SplitCounts(rows=0, groups=0, tokens=0, scored_tokens=0)
    line = (
        f"{added.rows:,} general rows mixed in, {_percent(added.rows, mixed.train.rows)} of the rows: {added.tokens:,} "
        f"of {mixed.train.tokens:,} training tokens, {_percent(added.tokens, mixed.train.tokens)}, and "
        f"{_percent(added.scored_tokens, mixed.train.scored_tokens)} of those that carry loss"
    )
    if left_out := mixed.general_left_out:
        line += f"; {left_out:,} left out that resemble rows on which the domain is measured"
    few = added.rows < rows_for(asked, mixed.train.rows - added.rows)
    return f"{line} ({asked * 100:.3g} % of the rows were asked for: there are no more of them)" if few else line


def _percent(part: int, whole: int) -> str:
    return f"{part / whole * 100:.1f} %"
