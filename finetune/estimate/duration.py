"""How long a training takes: its floating-point operations over what a machine is expected to do in a second, and the
time in which the products are started.

Operations are counted as Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) do: a weight that multiplies a token costs
2 forward, 2 backward for the token's own gradient, and 2 for the weight's. Frozen weights have no gradient, so that
LoRA costs 4 for each of them where full fine-tuning costs 6. Look-ups in the embedding are no products.
"""

from finetune.estimate.architecture import Architecture
from finetune.estimate.hardware import Hardware
from finetune.estimate.memory import Range, trained_parameters
from finetune.methods import Footprint


def training_operations_per_token(model: Architecture, footprint: Footprint, row_tokens: float) -> float:
    """Operations for each token of a padded batch, forward and backward."""
    attention = _attention_operations(model, row_tokens)
    forward = 2 * model.block_weights + attention
    backward = forward + attention  # attention's two products have two inputs each, and both a gradient
    again = forward if footprint.recomputes_activations else 0
    # the head's tiles are made again in the backward pass (see memory.py)
    head = 6 * model.head.weights
    if footprint.lora is None:
        return forward + backward + again + head + 2 * (model.block_weights + model.head.weights)
    return forward + backward + again + head + 6 * trained_parameters(model, footprint)


def scoring_operations_per_token(model: Architecture, row_tokens: float) -> float:
    """Operations for each token of a batch that is only scored."""
    return 2 * (model.block_weights + model.head.weights) + _attention_operations(model, row_tokens)


def seconds(operations: float, block_passes: float, hardware: Hardware) -> Range:
    """How long so many operations take, in so many passes through single blocks: at best, and at worst."""
    lowest, highest = hardware.efficiency
    least, most = hardware.block_seconds
    return Range(
        operations / (hardware.flops_per_second * highest) + block_passes * least,
        operations / (hardware.flops_per_second * lowest) + block_passes * most,
    )


def _attention_operations(model: Architecture, row_tokens: float) -> float:
    """Two products of a token with every other of its row, over all heads and blocks; masked ones are computed too."""
    return 4 * model.layers * model.query_size * row_tokens
