"""Draws training rows until a token budget is spent: of a larger budget all that a smaller one draws."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from export.chat import encode
from finetune.data.account import SplitCounts
from finetune.data.belonging import Belonging
from finetune.data.splits import REPORT, Splits, fingerprint, write_conversations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def drawn(rows: Sequence[int], tokens: Sequence[int], budget: int | None, seed: int) -> list[int]:
    """Of `rows`, indexes into `tokens`, those drawn one by one until the next would exceed the budget; at least one."""
    if budget is None:
        return list(rows)
    order = list(rows)
    random.Random(f"{seed} max_train_tokens").shuffle(order)
    spent = count = 0
    for index in order:
        spent += tokens[index]
        if spent > budget and count:
            break
        count += 1
    return sorted(order[:count])


class Lengths(NamedTuple):
    """Of one training row: its tokens, and how many of them carry loss."""

    tokens: int
    scored: int


def lengths_of(splits: Splits, tokenizer: "PreTrainedTokenizerBase", *, thinking: bool) -> list[Lengths]:
    """The lengths of every training row."""
    encoded = (encode(tokenizer, row, thinking=thinking) for row in splits.conversations("train"))
    return [Lengths(len(row.ids), sum(row.scored)) for row in encoded]


def draw(splits: Splits, lengths: Sequence[Lengths], budget: int, seed: int, out: Path) -> Splits:
    """Splits in `out` whose training rows are a draw of those of `splits`; the others are the same.

    `lengths` are those of the training rows (`lengths_of`).
    """
    rows = splits.conversations("train")
    chosen = drawn(range(len(rows)), [row.tokens for row in lengths], budget, seed)
    kept = [rows[index] for index in chosen]
    write_conversations(out / "train.jsonl", kept)
    for name in ("valid.jsonl", "held_out.jsonl", REPORT):
        shutil.copyfile(splits.folder / name, out / name)
    belonging = Belonging()
    for row in kept:
        belonging.add(row)
    counts = SplitCounts(
        rows=len(chosen),
        groups=len(belonging.groups()),
        tokens=sum(lengths[index].tokens for index in chosen),
        scored_tokens=sum(lengths[index].scored for index in chosen),
    )
    return splits.model_copy(
        update={
            "folder": out,
            "train": counts,
            "not_drawn": splits.train.rows - len(chosen),
            "fingerprint": fingerprint(out),
        }
    )
