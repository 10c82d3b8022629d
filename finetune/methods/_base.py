"""What a training method is: settings in, an adapter out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from export.artifacts import StageResult
from export.frozen import Frozen
from export.plugins import Step
from finetune.methods._footprint import Footprint

if TYPE_CHECKING:
    from finetune.base_model import BaseModelSource
    from finetune.data import Splits


class LossPoint(Frozen):
    """Training loss (mean over the steps since the last point) and, where it was computed, the valid loss."""

    step: int
    tokens: int
    loss: float | None = None
    valid_loss: float | None = None


class Adapter(StageResult):
    """A trained adapter in `folder`, in peft's format, and how it came to be.

    `base` names the model it was trained on, `base_sha256` its weights; `four_bit_base` says that the base was held in
    NF4 while training (QLoRA), which is the model the adapter fits best. `tokens` counts all tokens seen,
    `trained_tokens` those that carried loss, `seconds` the time since training last started or went on.
    """

    base: str
    base_sha256: str
    four_bit_base: bool
    dtype: str
    targets: tuple[str, ...]
    trainable_parameters: int
    steps: int
    tokens: int
    trained_tokens: int
    seconds: float
    peak_memory_bytes: int
    losses: tuple[LossPoint, ...]

    def outcome(self) -> str:
        """How training ended, in a line: the last losses, and what it took."""
        last = {
            "loss": next((p.loss for p in reversed(self.losses) if p.loss is not None), None),
            "valid loss": next((p.valid_loss for p in reversed(self.losses) if p.valid_loss is not None), None),
        }
        losses = ", ".join(f"{name} {value:.4f}" for name, value in last.items() if value is not None)
        memory_gb = self.peak_memory_bytes / 1e9
        return f"{losses} after {self.steps:,} steps in {self.seconds:,.0f} s, at most {memory_gb:.1f} GB of memory"


class Method(Step):
    """A training method. Subclasses are frozen settings with one verb."""

    def check(self, config: dict[str, object]) -> None:
        """Raises RecipeError when these settings cannot train a model whose config.json holds `config`."""
        raise NotImplementedError

    def footprint(self) -> Footprint | None:
        """What decides the training's memory and time; None for a method that has not said it."""
        return None

    def train(
        self,
        base: "BaseModelSource",
        splits: "Splits",
        out: Path,
        *,
        checkpoints: Path,
        seed: int,
        say: Callable[[str], None],
    ) -> Adapter:
        """Trains on the splits and writes the adapter to `out`. Raises TrainingError rather than keep a broken one.

        `checkpoints` belongs to this very training: what an interrupted one left there is gone on from.
        """
        raise NotImplementedError
