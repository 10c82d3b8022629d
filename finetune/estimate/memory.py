"""Peak memory of each stage by its parts, in bytes: formulas over a model's dimensions, each checked against a run.

What a training holds is what autograd keeps for the backward pass; the formula of a block is the sum of those tensors
as transformers' Qwen2 and Qwen3 and peft's LoRA make them, and a test counts them again with autograd's own hooks.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from export.frozen import Frozen
from export.hardware import ComputeDtype
from export.precision import BESIDE_WEIGHTS_BYTES
from finetune.base_model import PLAIN_ATTENTION_TOKENS
from finetune.estimate.architecture import Architecture
from finetune.estimate.hardware import Hardware
from finetune.methods import Footprint

BYTES_OF: dict[ComputeDtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT32 = 4
# NF4 with double quantization: 4 bits and 0.127 bits of constants a weight (Dettmers et al. 2023, section 3).
_NF4_BYTES = 4.127 / 8
# A trained weight in float32, its gradient, and AdamW's two moments (Kingma and Ba 2015).
_TRAINED_BYTES = 4 * _FLOAT32
# TRL's head: tiles of so many tokens by so many words of the vocabulary, never all logits (trl.kernels, 1.10).
_TILE_TOKENS, _TILE_WORDS = 4096, 32768
# Bytes of a tile's entry besides itself while torch makes its gradient: seven float32 arrays and a mask. On a GPU one
# Triton kernel does it in place.
_TILE_WORK_BYTES = 7 * _FLOAT32 + 1
# How much more than its arrays a tile was seen to take on a processor, where freed blocks are kept and leave holes
# (export.hardware.keep_freed_memory).
_HOLES = 1.3
# Resident size of Python with torch, transformers, peft and trl, measured; and of a CUDA context with its libraries.
_PROCESS_BYTES = {"cpu": 1_000_000_000, "gpu": 600_000_000}
# Share of the sum by which a run's peak was seen to differ (tests/benchmarks/estimate.py). Of GPUs it is a guess: on an
# H100, nine trainings of half a billion to seven billion weights lay within it (tests/finetune/test_on_gpu.py); no
# other card was tried.
ERROR_SHARE = {"cpu": 0.25, "gpu": 0.35}


class Machine(Protocol):
    """What of a machine decides how much memory is taken: its kind, and the type that it computes in."""

    @property
    def kind(self) -> Literal["gpu", "cpu"]: ...  # noqa: D102

    @property
    def dtype(self) -> ComputeDtype: ...  # noqa: D102


class Range(NamedTuple):
    """The lowest and the highest value expected."""

    low: float
    high: float


class Part(NamedTuple):
    """A part of the memory, and its size."""

    what: str
    size_bytes: float


class Batch(Frozen):
    """What one pass holds: rows, padded to so many tokens each."""

    rows: int
    tokens_per_row: int

    @property
    def tokens(self) -> int:
        """Tokens with padding."""
        return self.rows * self.tokens_per_row


def training_parts(model: Architecture, footprint: Footprint, batch: Batch, hardware: Machine) -> tuple[Part, ...]:
    """The parts of a training's peak, which stands at the beginning of the backward pass of the longest batch."""
    trained = trained_parameters(model, footprint)
    size = BYTES_OF[hardware.dtype]
    frozen = _held_weights(model, footprint, size) if footprint.lora is not None else 0.0
    # a folder's weights are mapped into memory from their files, and stay beside those that are made of them
    mapped = model.parameters * 2 if hardware.kind == "cpu" else 0
    rank = footprint.lora.rank if footprint.lora is not None else 0
    block = block_bytes_per_token(model, batch.tokens_per_row, hardware, rank) * batch.tokens
    kept = model.layers * batch.tokens * model.hidden_size * size
    activations = kept + block if footprint.recomputes_activations else model.layers * block
    return (
        Part("frozen weights", frozen),
        Part("trained weights, gradients and AdamW's moments", trained * _TRAINED_BYTES),
        Part("copies of trained weights in 16 bits", _rounded_copies(model, footprint, size)),
        Part("activations", activations),
        Part("tiles of the logits", _head_bytes(model, batch, hardware)),
        Part("the weights' files, mapped", mapped),
        Part("Python and its libraries" if hardware.kind == "cpu" else "CUDA and its libraries", _process(hardware)),
    )


def peak_range(parts: Sequence[Part], hardware: Machine) -> Range:
    """The sum of the parts with its error."""
    peak, error = sum(part.size_bytes for part in parts), ERROR_SHARE[hardware.kind]
    return Range(peak * (1 - error), peak * (1 + error))


def trained_parameters(model: Architecture, footprint: Footprint) -> int:
    """Parameters that training changes: the adapter's, or all of them."""
    if footprint.lora is None:
        return model.parameters
    lora = footprint.lora
    return model.adapter_parameters(lora.rank, lora.targets, with_magnitudes=lora.has_magnitudes)


def block_bytes_per_token(model: Architecture, row_tokens: int, hardware: Machine, rank: int) -> float:
    """What autograd keeps of one block for a token, with adapters of that rank on all its linear layers; 0 for none,
    where the block's own weights are trained.

    With s bytes a value of the computing type: the two norms keep their input in float32; each adapter its input (in
    mixed precision each layer has a copy of its own, in float32 layers that read the same share it) and its narrow
    middle; attention its queries, keys and values (repeated for every head), its result and, plain, the square of
    weights; the MLP four vectors of the wide size. Qwen3 keeps queries and keys in float32 for their norms. Norms whose
    own weights are trained keep their result besides.
    """
    s = BYTES_OF[hardware.dtype]
    hidden, wide, queries = model.hidden_size, model.intermediate_size, model.query_size
    is_mixed = s < _FLOAT32
    norms = 2 * _FLOAT32 * (hidden + 1)
    if model.has_head_norms:
        norms += _FLOAT32 * (queries + model.key_value_size + model.heads + model.key_value_heads)
    if not rank:
        norms += 2 * _FLOAT32 * hidden + (s * (queries + model.key_value_size) if model.has_head_norms else 0)
    inputs = s * hidden * (5 if is_mixed else 2)
    plain = hardware.kind == "cpu" and row_tokens <= PLAIN_ATTENTION_TOKENS
    if plain:
        weights = model.heads * row_tokens * (_FLOAT32 + (s if is_mixed else 0))
        attention = 4 * s * queries + weights
    else:
        mask = s * row_tokens
        attention = (5 if is_mixed and rank else 4) * s * queries + _FLOAT32 * model.heads + mask
    return norms + inputs + attention + 4 * s * wide + 7 * s * rank


def merging_bytes(model: Architecture) -> float:
    """Merging: the base in float32, and the same in 16 bits while it is converted."""
    return model.parameters * (_FLOAT32 + 2) + _PROCESS_BYTES["cpu"]


def checking_bytes(model: Architecture, hardware: Hardware) -> float:
    """Measuring: one subject at a time, in its own process; the largest is a 16-bit folder on transformers.

    On a GPU it is held in float32 where that fits (export.precision).
    """
    if hardware.kind == "gpu":
        in_float32 = model.parameters * _FLOAT32 + BESIDE_WEIGHTS_BYTES
        return in_float32 if in_float32 <= hardware.memory_bytes else model.parameters * 2 + BESIDE_WEIGHTS_BYTES
    return model.parameters * (BYTES_OF[hardware.dtype] + 2) + _process(hardware)  # its file is mapped, in 16 bits


def _held_weights(model: Architecture, footprint: Footprint, size: int) -> float:
    """The frozen base: in the computing type, or its blocks' linear layers in NF4."""
    if not footprint.is_four_bit:
        return model.parameters * size
    return model.block_weights * _NF4_BYTES + (model.parameters - model.block_weights) * size


def _rounded_copies(model: Architecture, footprint: Footprint, size: int) -> float:
    """What torch's autocast keeps of weights that are trained in float32 and multiplied in 16 bits."""
    trained = model.block_weights if footprint.lora is None else trained_parameters(model, footprint)
    return trained * size if size < _FLOAT32 else 0


def _head_bytes(model: Architecture, batch: Batch, hardware: Machine) -> float:
    """What the head takes for its tiles, and for the gradient of the hidden states in float32.

    On a GPU only tokens that carry loss are scored; how many is not known before rows are read: all are taken.
    """
    entries = min(batch.tokens, _TILE_TOKENS) * min(model.vocabulary, _TILE_WORDS)
    size = BYTES_OF[hardware.dtype]
    each = _HOLES * (size + _TILE_WORK_BYTES) if hardware.kind == "cpu" else size
    return entries * each + batch.tokens * model.hidden_size * _FLOAT32


def _process(hardware: Machine) -> float:
    return _PROCESS_BYTES[hardware.kind]
