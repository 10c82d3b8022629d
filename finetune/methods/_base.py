"""What a training method is: settings in, a trained model out, as an adapter or whole."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from export.artifacts import StageResult, sha256_of_file, sha256_of_folder
from export.engines import Subject
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


class TrainingResult(StageResult):
    """What training left in `folder`, and how it came to be: an `Adapter` or a `FullModel`.

    `base` names the model it was trained from, `base_sha256` its weights; `dtype` is the type that was computed in.
    `tokens` counts all tokens seen, `trained_tokens` those that carried loss, `seconds` the time since training last
    started or went on. `peak_memory_bytes` is the process's, `device_peak_memory_bytes` what it held on a GPU, None
    where it trained on a processor. `name` is that of its folder, and of the subject that is measured.
    """

    name: ClassVar[Literal["adapter", "trained"]]

    base: str
    base_sha256: str
    dtype: str
    trainable_parameters: int
    steps: int
    tokens: int
    trained_tokens: int
    seconds: float
    peak_memory_bytes: int
    device_peak_memory_bytes: int | None = None
    losses: tuple[LossPoint, ...]

    def weights_sha256(self) -> str:
        """The hash of what was trained."""
        raise NotImplementedError

    def subject(self, base: Path, name: str) -> Subject:
        """The model as training left it, for an engine; `base` is the folder of the model it was trained from."""
        raise NotImplementedError

    def outcome(self) -> str:
        """How training ended, in a line: the last losses, and what it took."""
        last = {
            "loss": next((p.loss for p in reversed(self.losses) if p.loss is not None), None),
            "valid loss": next((p.valid_loss for p in reversed(self.losses) if p.valid_loss is not None), None),
        }
        losses = ", ".join(f"{name} {value:.4f}" for name, value in last.items() if value is not None)
        memory = f"at most {self.peak_memory_bytes / 1e9:.1f} GB of memory"
        if self.device_peak_memory_bytes is not None:
            memory += f" and {self.device_peak_memory_bytes / 1e9:.1f} GB of the GPU's"
        return f"{losses} after {self.steps:,} steps in {self.seconds:,.0f} s, {memory}"


class Adapter(TrainingResult):
    """A trained adapter, in peft's format.

    `four_bit_base` says that the base was held in NF4 while training (QLoRA), which is the model the adapter fits best.
    """

    name: ClassVar[Literal["adapter", "trained"]] = "adapter"

    four_bit_base: bool
    targets: tuple[str, ...]

    def weights_sha256(self) -> str:
        """The hash of the adapter's file."""
        return sha256_of_file(self.folder / "adapter_model.safetensors")

    def subject(self, base: Path, name: str) -> Subject:
        """The adapter beside its base, which is held as it was in training."""
        compute = self.dtype if self.four_bit_base else None
        return Subject.model_validate(
            {"name": name, "engine": "hf", "path": base, "adapter": self.folder, "four_bit_compute": compute}
        )


class FullModel(TrainingResult):
    """A whole model of which every weight was trained: a complete Hugging Face folder, its weights in `weights_dtype`.

    `embeddings_frozen` says that the embeddings stayed those of the base.
    """

    name: ClassVar[Literal["adapter", "trained"]] = "trained"

    weights_dtype: str
    embeddings_frozen: bool

    def weights_sha256(self) -> str:
        """The hash of the folder."""
        return sha256_of_folder(self.folder)

    def subject(self, base: Path, name: str) -> Subject:
        """The folder; of its base nothing is needed."""
        return Subject(name=name, engine="hf", path=self.folder)


class Method(Step):
    """A training method. Subclasses are frozen settings with one verb; `result` is what theirs returns."""

    result: ClassVar[type[TrainingResult]]

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
    ) -> TrainingResult:
        """Trains on the splits and writes the result to `out`. Raises TrainingError rather than keep a broken one.

        `checkpoints` belongs to this very training: what an interrupted one left there is gone on from.
        """
        raise NotImplementedError
