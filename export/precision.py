"""The number type that a dense folder's weights are measured in: float32 wherever it fits.

In bfloat16 a model predicts measurably otherwise than its weights say, by about what an 8-bit file costs: a reference
that is computed so would be charged to the files compared with it. What type training computes in is
`export.hardware.compute_dtype`.
"""

from pathlib import Path
from typing import Any, NamedTuple

from export.weights import weight_facts

# What measuring takes on a GPU beside weights in float32: activations and a cache for a batch of prompts, and CUDA. Of
# models up to 8 billion weights; our guess, not measured.
BESIDE_WEIGHTS_BYTES = 3_000_000_000


class Precision(NamedTuple):
    """The torch type that weights are held in ("auto": the one they are stored in), and what is lost by it, if any."""

    dtype: Any
    rounding: str = ""


def best_precision(folder: Path) -> Precision:
    """float32 on a processor, and on a GPU that has the memory for it; else the type that is stored, which is told.

    Raises ModelError for weights that cannot be read.
    """
    import torch

    if not torch.cuda.is_available():
        return Precision(torch.float32)
    facts = weight_facts(folder)
    needed, free = 4 * facts.weights + BESIDE_WEIGHTS_BYTES, torch.cuda.mem_get_info()[0]
    if needed <= free:
        return Precision(torch.float32)
    stored, _ = max(facts.tensor_types.items(), key=lambda kind: kind[1])
    return Precision(
        "auto",
        f"computed in {stored}, as it is stored: float32 takes {needed / 1e9:.1f} GB of the GPU, of which "
        f"{free / 1e9:.1f} GB are free",
    )
