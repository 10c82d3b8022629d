"""Full fine-tuning: every weight is trained, and the result is a whole model instead of an adapter.

Weights, gradients and both of AdamW's moments are held in float32, whatever type is computed in: 16 bytes for each
weight that is trained. A bfloat16 number has 8 bits of precision, so that adding less than 1/512 of a weight to it
changes nothing; at the learning rates of full fine-tuning most steps of AdamW are smaller than that and would be lost
(Micikevicius et al. 2018, "Mixed Precision Training", section 3.1, for float16). Where `model.dtype` is a 16-bit type
the products are computed in it, from copies that torch's autocast rounds. How training goes is
`finetune.methods._supervised`'s; an adapter is trained by `finetune.methods.sft`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from export.wording.sizes import gigabytes
from finetune.base_model import BaseModelSource, load_for_training, set_stop_tokens
from finetune.methods._base import FullModel, TrainingResult
from finetune.methods._footprint import Footprint
from finetune.methods._supervised import Supervised, trainable_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WEIGHTS = "float32"
# In float32: the weight, its gradient, and AdamW's two moments of it.
_WEIGHT_BYTES, _GRADIENT_BYTES, _MOMENTS_BYTES = 4, 4, 8
# A checkpoint holds weights and moments; while a new one is written, the one before is still there.
_CHECKPOINTS_ON_DISK = 2


class Full(Supervised):
    """Supervised fine-tuning of all weights on the assistant's turns."""

    # an editor's schema tells the methods apart by what is needed: a section that names none is the default's
    model_config = ConfigDict(json_schema_extra={"required": ["method"]})
    result: ClassVar[type[TrainingResult]] = FullModel

    method: Literal["full"] = Field(
        default="full", description="Training method: sft trains an adapter (LoRA, QLoRA), full all weights."
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="Peak learning rate.")
    freeze_embeddings: bool = Field(
        default=False,
        description="Whether the input embedding stays as it is (and the head with it, where they are one tensor).",
    )

    def check(self, config: dict[str, object]) -> None:
        """Any model that can be loaded can be trained whole."""

    def footprint(self) -> Footprint:
        """The sizes that decide this training's memory and time."""
        return self.footprint_with(None, is_four_bit=False)

    def load(self, base: BaseModelSource, longest_row_tokens: int) -> "PreTrainedModel":
        """The base's weights in float32."""
        model = load_for_training(base, weights_dtype=_WEIGHTS, four_bit=False, longest_row_tokens=longest_row_tokens)
        if self.freeze_embeddings:
            model.get_input_embeddings().requires_grad_(False)
        return model

    def save(self, model: Any, tokenizer: "PreTrainedTokenizerBase", out: Path) -> None:
        """Writes the model as it was trained, in float32; weights that are one tensor are stored once."""
        set_stop_tokens(model, tokenizer)
        model.save_pretrained(out)

    def told(self, model: Any, base: BaseModelSource) -> str:
        """The kind of training, what memory it takes at least, and what disk."""
        held, trained = sum(p.numel() for p in model.parameters()), trainable_parameters(model)
        checkpoint_bytes = held * _WEIGHT_BYTES + trained * _MOMENTS_BYTES
        memory = gigabytes(checkpoint_bytes + trained * _GRADIENT_BYTES)
        disk = gigabytes(_CHECKPOINTS_ON_DISK * checkpoint_bytes + held * _WEIGHT_BYTES)
        frozen = " (embeddings frozen)" if self.freeze_embeddings else ""
        return (
            f"full fine-tuning{frozen}, {trained:,} trainable parameters, {memory} of memory for weights, gradients "
            f"and optimizer beside the activations, up to {disk} of disk for checkpoints and model"
        )

    def saves_memory(self) -> str:
        """Leaving the embeddings out, or training an adapter instead."""
        return "train.freeze_embeddings: true, train an adapter instead (train.method: sft)"

    def result_of(self, model: Any, common: dict[str, Any]) -> FullModel:
        """The whole model."""
        return FullModel(weights_dtype=_WEIGHTS, embeddings_frozen=self.freeze_embeddings, **common)


step = Full
