"""Supervised fine-tuning with LoRA or QLoRA, by peft: the base's weights stay, and an adapter is trained beside them.

How training goes is `finetune.methods._supervised`'s; all weights are trained by `finetune.methods.full`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from export.errors import RecipeError
from export.frozen import Frozen
from export.loading import require_bitsandbytes
from export.plugins import nearest
from finetune.base_model import BaseModelSource, guard_tied_embeddings, load_for_training
from finetune.methods._base import Adapter, TrainingResult
from finetune.methods._footprint import Footprint, LoraSize
from finetune.methods._supervised import Supervised, trainable_parameters

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _one_name_is_a_list(value: object) -> object:
    return (value,) if isinstance(value, str) and value != "all-linear" else value


class Lora(Frozen):
    """The adapter: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA), Liu et al. 2024 (DoRA)."""

    rank: int = Field(default=16, ge=1, description="Rank of the update matrices.")
    alpha: float = Field(default=32, gt=0, description="Scale: the update is alpha/rank (rsLoRA: alpha/sqrt(rank)).")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_one_name_is_a_list)] = Field(
        default="all-linear", description="Module names to adapt; 'all-linear' is every linear layer but the head."
    )
    rslora: bool = Field(default=False, description="Rank-stabilised scaling.")
    dora: bool = Field(default=False, description="Train magnitude and direction apart; slower.")


class Sft(Supervised):
    """Supervised fine-tuning of an adapter on the assistant's turns."""

    on_by_default: ClassVar[bool] = True
    result: ClassVar[type[TrainingResult]] = Adapter

    method: Literal["sft"] = Field(
        default="sft", description="Training method: sft trains an adapter (LoRA, QLoRA), full all weights."
    )
    quantization: Literal["none", "nf4"] = Field(
        default="none", description="'nf4' holds the base in 4 bits while training (QLoRA)."
    )
    lora: Lora = Field(default=Lora(), description="The adapter.")

    def check(self, config: dict[str, object]) -> None:
        """Refuses targets that the model's tied embeddings do not allow, and QLoRA without bitsandbytes."""
        guard_tied_embeddings(config, self.lora.targets)
        if self.quantization == "nf4":
            require_bitsandbytes()

    def footprint(self) -> Footprint:
        """The sizes that decide this training's memory and time."""
        lora = LoraSize(rank=self.lora.rank, targets=self.lora.targets, has_magnitudes=self.lora.dora)
        return self.footprint_with(lora, is_four_bit=self.quantization == "nf4")

    def load(self, base: BaseModelSource, longest_row_tokens: int) -> "PreTrainedModel":
        """The base in its computing type, or in NF4. Raises RecipeError when a target names no linear layer of it."""
        model = load_for_training(
            base,
            weights_dtype=base.dtype,
            four_bit=self.quantization == "nf4",
            longest_row_tokens=longest_row_tokens,
        )
        self._check_targets(model)
        return model

    def adapter_config(self) -> "LoraConfig":
        """The adapter in peft's words."""
        from peft import LoraConfig

        targets = self.lora.targets
        return LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=self.lora.rslora,
            use_dora=self.lora.dora,
            task_type="CAUSAL_LM",
        )

    def save(self, model: Any, tokenizer: "PreTrainedTokenizerBase", out: Path) -> None:
        """Writes the adapter in peft's format, so that the same weights are always the same bytes."""
        config = next(iter(model.peft_config.values()))
        if isinstance(config.target_modules, set):  # peft keeps, and would write, them in an order that is none
            config.target_modules = sorted(config.target_modules)
        model.save_pretrained(out)
        (out / "README.md").unlink(missing_ok=True)  # peft's empty model card, with this machine's paths in it

    def told(self, model: Any, base: BaseModelSource) -> str:
        """The kind of adapter, its rank and size."""
        kind = "QLoRA (NF4 base)" if self.quantization == "nf4" else "LoRA"
        return f"{kind}, rank {self.lora.rank}, {trainable_parameters(model):,} trainable parameters"

    def saves_memory(self) -> str:
        """Holding the base in 4 bits."""
        return "train.quantization: nf4"

    def result_of(self, model: Any, common: dict[str, Any]) -> Adapter:
        """The adapter, with the layers that it was trained beside."""
        config = next(iter(model.peft_config.values()))
        targets = tuple(sorted({name.rpartition(".")[2] for name in config.target_modules}))
        return Adapter(four_bit_base=self.quantization == "nf4", targets=targets, **common)

    def _check_targets(self, model: "PreTrainedModel") -> None:
        """Raises RecipeError when a target names no linear layer of the model."""
        import torch

        if isinstance(self.lora.targets, str):
            return
        linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        for target in self.lora.targets:
            if not any(name == target or name.endswith(f".{target}") for name in linear):
                known = tuple(sorted({name.rpartition(".")[2] for name in linear}))
                raise RecipeError(f"train.lora.targets: no layer is called {target!r}. {nearest(target, known)}")


step = Sft
