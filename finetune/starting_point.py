"""Which base model, and which settings of training, to begin with on this machine. A suggestion; the recipe decides.

What fits a GPU is told by `finetune.estimate`: the first of a ladder of settings of which even the higher end does.
"""

from typing import Any, Literal, NamedTuple

from export.frozen import Frozen
from export.hardware import Accelerator, ComputeDtype, accelerator, compute_dtype, environment
from finetune.base_model import ModelSettings
from finetune.data import DataSettings
from finetune.estimate.architecture import architecture_of
from finetune.estimate.memory import Batch, peak_range, training_parts
from finetune.methods.sft import Sft

_GIB = 2**30
_BATCH_ROWS = 16  # whatever the memory: it decides in how many passes


class _Gpu(NamedTuple):
    """A GPU, as far as its kind decides what training takes of it."""

    dtype: ComputeDtype
    kind: Literal["gpu", "cpu"] = "gpu"


class StartingPoint(Frozen):
    """A base model, settings to train it with, and why, in a sentence."""

    model: str
    learning_rate: float
    rank: int = 16
    quantization: Literal["none", "nf4"] = "none"
    accumulation: int = 1
    gradient_checkpointing: bool = False
    sentence: str

    def train(self) -> dict[str, Any]:
        """The recipe's `train:` section: one batch is 16 rows whatever the memory, in as many passes as it takes."""
        return {
            "batch_size": _BATCH_ROWS,
            "accumulation": self.accumulation,
            "learning_rate": self.learning_rate,
            "quantization": self.quantization,
            "gradient_checkpointing": self.gradient_checkpointing,
            "lora": {"rank": self.rank, "alpha": 2 * self.rank},
        }


class _Rung(NamedTuple):
    """One way to train on a GPU."""

    model: str
    quantization: Literal["none", "nf4"]
    accumulation: int
    gradient_checkpointing: bool


# From the one that costs least time to the one that costs least memory; the last is tried on any GPU.
_LADDER = (
    _Rung("Qwen2.5-1.5B-Instruct", "none", 4, gradient_checkpointing=False),
    _Rung("Qwen2.5-1.5B-Instruct", "none", 8, gradient_checkpointing=True),
    _Rung("Qwen2.5-1.5B-Instruct", "nf4", 8, gradient_checkpointing=True),
    _Rung("Qwen2.5-0.5B-Instruct", "none", 8, gradient_checkpointing=True),
)


def starting_point() -> StartingPoint:
    """What this machine is good for."""
    here = environment()
    processor = f"{here.cores} processor cores, {here.memory_bytes / _GIB:.0f} GiB of memory"
    return starting_point_for(accelerator(), processor, compute_dtype())


def starting_point_for(gpu: Accelerator | None, processor: str, dtype: ComputeDtype) -> StartingPoint:
    """What a machine with this GPU, or with none, is good for; `processor` describes the rest of it in words."""
    if gpu is None:
        return StartingPoint(
            model="starter",
            learning_rate=4e-3,  # a few million weights take, and need, larger steps than a Qwen
            rank=32,
            sentence=f"No GPU ({processor}): the embedded starter is trained in {dtype}. It shows the whole path in "
            "minutes and is not to be deployed; for a real Qwen choose a runtime with a GPU.",
        )
    every = [_on_a_gpu(rung, gpu, processor, dtype) for rung in _LADDER]
    return next((point for point in every if _most_bytes(point, dtype) <= gpu.memory_bytes), every[-1])


def _on_a_gpu(rung: _Rung, gpu: Accelerator, processor: str, dtype: ComputeDtype) -> StartingPoint:
    """A rung of the ladder as a suggestion."""
    way = "QLoRA, its weights held in 4 bits" if rung.quantization == "nf4" else "LoRA on its 16-bit weights"
    rows = _BATCH_ROWS // rung.accumulation
    machine = f"{gpu.name} with {gpu.memory_bytes / _GIB:.0f} GiB ({processor})"
    numbers = f"It computes in {dtype}" + (": this GPU has no bfloat16." if dtype == "float16" else ".")
    return StartingPoint(
        model=f"Qwen/{rung.model}",
        learning_rate=2e-4,
        quantization=rung.quantization,
        accumulation=rung.accumulation,
        gradient_checkpointing=rung.gradient_checkpointing,
        sentence=f"{machine}: {rung.model} is trained with {way}, {rows} rows at a time. {numbers}",
    )


def _most_bytes(point: StartingPoint, dtype: ComputeDtype) -> float:
    """The higher end of what training so takes on a GPU, of rows as long as a recipe lets them be."""
    footprint = Sft.model_validate(point.train()).footprint()
    longest = DataSettings.model_fields["max_tokens"].default
    batch = Batch(rows=footprint.rows_per_pass, tokens_per_row=longest)
    parts = training_parts(architecture_of(ModelSettings(name=point.model)), footprint, batch, _Gpu(dtype))
    return peak_range(parts, _Gpu(dtype)).high
