"""Mixes general rows into the training rows of a domain, by their share of the tokens.

Small domain data makes a model forget what it could do besides; general rows among them hold some of it (what they held
is measured beside the domain, see `finetune.companions`). Only training rows are mixed: the domain's validation and
held-out rows stay what they are.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from finetune.data.account import SplitCounts
from finetune.data.belonging import Belonging
from finetune.data.draw import Lengths, drawn
from finetune.data.splits import REPORT, Splits, fingerprint, write_conversations


def mix(domain: Splits, general: Splits, lengths: Sequence[Lengths], share: float, seed: int, out: Path) -> Splits:
    """Splits in `out`: those of the domain, with general training rows drawn until they are `share` of the tokens.

    `lengths` are those of the general training rows (`finetune.data.draw.lengths_of`). Where they do not suffice, all
    of them are taken, and the share is smaller (`share_of`).
    """
    rows = general.conversations("train")
    budget = round(domain.train.tokens * share / (1 - share))
    chosen = drawn(range(len(rows)), [row.tokens for row in lengths], budget, seed)
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
    return domain.model_copy(update={"folder": out, "train": both, "general": counts, "fingerprint": fingerprint(out)})


def share_of(mixed: Splits) -> float:
    """The share of the training tokens that are general rows."""
    return 0.0 if mixed.general is None else mixed.general.tokens / mixed.train.tokens


def account(mixed: Splits, general: Splits, asked: float) -> str:
    """What was mixed in, in a line; says so where the general rows did not suffice.

    Of a domain with long prompts and answers of a letter, a tenth of the tokens can be most of those that carry loss.
    """
    added = mixed.general or SplitCounts(rows=0, groups=0, tokens=0, scored_tokens=0)
    line = (
        f"{added.rows:,} general rows mixed in, {_percent(added.rows, mixed.train.rows)} of the rows: {added.tokens:,} "
        f"of {mixed.train.tokens:,} training tokens, {_percent(added.tokens, mixed.train.tokens)}, and "
        f"{_percent(added.scored_tokens, mixed.train.scored_tokens)} of those that carry loss"
    )
    # where rows are left, the next one would have exceeded the share
    few = added.rows == general.train.rows and share_of(mixed) < asked
    return f"{line} ({asked * 100:.3g} % of the tokens were asked for: there are no more of them)" if few else line


def _percent(part: int, whole: int) -> str:
    return f"{part / whole * 100:.1f} %"
