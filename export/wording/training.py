"""How a model was trained, in a few words, and whether that taught it anything that its answers show."""

from collections.abc import Mapping, Sequence
from typing import Any

from export.check_names import read_name
from export.compare import NONE_LOST, Comparison
from export.lost_safety import LostSafetyItem
from export.report import Report
from export.wording.sentences import change_words, units_of
from export.wording.values import check_name, plain

_NO_SCORES = NONE_LOST | {"same_top_token"}


def training_words(recipe: Mapping[str, Any]) -> str:
    """The training method of a run's recipe for a reader; empty where the recipe has none, as that of a comparison."""
    train = recipe.get("train")
    if not isinstance(train, dict):
        return ""
    if train.get("method") == "full":
        frozen = ", the embeddings frozen" if train.get("freeze_embeddings") else ""
        return f"full fine-tuning: all weights were trained, in float32{frozen}{_rate(train)}"
    lora = train.get("lora")
    rank = f", rank {lora['rank']}" if isinstance(lora, dict) and "rank" in lora else ""
    kind = "QLoRA: an adapter beside the base in 4 bits" if train.get("quantization") == "nf4" else "LoRA: an adapter"
    return f"{kind}{rank}{_rate(train)}"


def _rate(train: Mapping[str, Any]) -> str:
    rate = train.get("learning_rate")
    return f"; learning rate {plain(rate)}" if isinstance(rate, float) else ""


def not_learned(report: Report) -> str | None:
    """What is to be said where fine-tuning is not seen to have made the held-out answers better than the base's.

    The verdict is on what merging and quantizing cost: it passes a model that learned nothing too. Scores of answers
    decide, and where none is measured the perplexity; better is an interval that lies wholly on that side. None where
    something is better, and where the base was not measured.
    """
    if not training_words(report.recipe):  # a comparison, whose reference may be called base too
        return None
    steps = [c for c in report.comparisons if c.before == "base" and not read_name(c.check).companion]
    units = units_of(report)
    scores = [c for c in steps if units.unit(c) == "share" and c.check not in _NO_SCORES]
    told = scores or [c for c in steps if c.check == "perplexity"]
    if not told or any(_better(c, higher=bool(scores)) for c in told):
        return None
    after = told[0].after
    said = "; ".join(f"{check_name(c.check)} {change_words(c, units)}" for c in told)
    return (
        f"fine-tuning: {after} is not seen to do better than the base on the held-out rows ({said}). The verdict is on "
        "what became of the fine-tuned model, not on what it learned: train longer (train.epochs, train.max_steps), "
        "with another train.learning_rate, on more rows, or from a larger base."
    )


def lost_in_training(items: Sequence[LostSafetyItem]) -> str:
    """What fine-tuning made unsafe, each item by its name. Raises IndexError where there is none."""
    count = f"{len(items):,} safety item{'s' if len(items) > 1 else ''}"
    return (
        f"Fine-tuning lost {count} that {items[0].before} answers safely and {items[0].after} does not: "
        f"{'; '.join(item.label for item in items)}. The verdict asks nothing of that step: read the answers, and mix "
        "safe answers into the training rows."
    )


def _better(change: Comparison, *, higher: bool) -> bool:
    if change.interval is None:
        return False
    low, high = change.interval
    return low > 0 if higher else high < 1
