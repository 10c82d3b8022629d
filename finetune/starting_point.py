"""Which base model, and which settings of training, to begin with on this machine. A suggestion; the recipe decides.

The sizes are reckoned from shapes, not measured: weights, and the logits of a pass, which are the largest part of a
small model's activations (rows x tokens x 151,936 values of 4 bytes, held about four times: in 16 and in 32 bits, and
as gradients).
"""

from typing import Any, Literal

from export.frozen import Frozen
from export.hardware import Accelerator, ComputeDtype, accelerator, compute_dtype, environment

_GIB = 2**30
# 1.5B in NF4 with its embeddings in 16 bits is about 1.5 GiB, and the logits of 2 rows of 512 tokens 2.3 GiB.
_FOUR_BIT_FROM_BYTES = 8 * _GIB
# 1.5B in 16 bits is 2.9 GiB, the logits of 4 such rows 4.6 GiB, and what is kept for the backward pass about as much.
_SIXTEEN_BIT_FROM_BYTES = 20 * _GIB


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
            "batch_size": 16,
            "accumulation": self.accumulation,
            "learning_rate": self.learning_rate,
            "quantization": self.quantization,
            "gradient_checkpointing": self.gradient_checkpointing,
            "lora": {"rank": self.rank, "alpha": 2 * self.rank},
        }


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
    found = f"{gpu.name} with {gpu.memory_bytes / _GIB:.0f} GiB ({processor})"
    numbers = f"It computes in {dtype}" + (": this GPU has no bfloat16." if dtype == "float16" else ".")
    if gpu.memory_bytes < _FOUR_BIT_FROM_BYTES:
        return StartingPoint(
            model="Qwen/Qwen2.5-0.5B-Instruct",
            learning_rate=2e-4,
            accumulation=8,
            gradient_checkpointing=True,
            sentence=f"{found}: Qwen2.5-0.5B-Instruct is trained with LoRA, two rows at a time. {numbers}",
        )
    if gpu.memory_bytes < _SIXTEEN_BIT_FROM_BYTES:
        return StartingPoint(
            model="Qwen/Qwen2.5-1.5B-Instruct",
            learning_rate=2e-4,
            quantization="nf4",
            accumulation=8,
            gradient_checkpointing=True,
            sentence=f"{found}: Qwen2.5-1.5B-Instruct is trained with QLoRA, its weights held in 4 bits, two rows at "
            f"a time. {numbers}",
        )
    return StartingPoint(
        model="Qwen/Qwen2.5-1.5B-Instruct",
        learning_rate=2e-4,
        accumulation=4,
        sentence=f"{found}: Qwen2.5-1.5B-Instruct is trained with LoRA on its 16-bit weights, four rows at a time. "
        f"{numbers}",
    )
