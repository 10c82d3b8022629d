"""How a model was trained, in a few words, from the recipe of its report."""

from collections.abc import Mapping
from typing import Any

from export.wording.values import plain


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
