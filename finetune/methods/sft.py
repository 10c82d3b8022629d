"""Supervised fine-tuning with LoRA or QLoRA, by TRL's SFTTrainer over peft.

The rows come as token ids and labels made by `export.chat`, so that the trainer has nothing left to template, mask or
cut. What is ours here: the mapping of settings, progress, and refusing to keep anything that is not finite.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from export.chat import Conversation, encode
from export.chat_tokenizer import load_tokenizer
from export.engines.hf import quiet_gptqmodel
from export.errors import RecipeError, TrainingError
from export.frozen import Frozen
from export.hardware import keep_freed_memory
from export.loading import require_bitsandbytes
from export.plugins import nearest
from finetune.base_model import (
    BaseModelSource,
    copy_tokenizer,
    guard_tied_embeddings,
    load_for_training,
)
from finetune.methods._base import Adapter, Method
from finetune.methods._footprint import Footprint, LoraSize
from finetune.progress import TrainingProgress, loss_points

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig, SFTTrainer

    from finetune.data import Splits

IGNORED = -100
_VALID_EVALUATIONS = 4
_CHECKPOINTS = 10


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


class Sft(Method):
    """Supervised fine-tuning on the assistant's turns."""

    method: Literal["sft"] = Field(default="sft", description="Training method.")
    quantization: Literal["none", "nf4"] = Field(
        default="none", description="'nf4' holds the base in 4 bits while training (QLoRA)."
    )
    lora: Lora = Field(default=Lora(), description="The adapter.")
    epochs: float = Field(default=3, gt=0, description="Passes over the training rows, unless max_steps is set.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; overrides epochs.")
    batch_size: int = Field(default=16, ge=1, description="Rows per optimizer step, accumulation included.")
    accumulation: int = Field(default=1, ge=1, description="Passes a batch is split into, to save memory.")
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="After the warm-up.")
    warmup_share: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations to save memory; slower.")

    @model_validator(mode="after")
    def _splits_evenly(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}, so that a batch "
                "cannot be split evenly"
            )
        return self

    def check(self, config: dict[str, object]) -> None:
        """Refuses targets that the model's tied embeddings do not allow, and QLoRA without bitsandbytes."""
        guard_tied_embeddings(config, self.lora.targets)
        if self.quantization == "nf4":
            require_bitsandbytes()

    def footprint(self) -> Footprint:
        """The sizes that decide this training's memory and time."""
        return Footprint(
            lora=LoraSize(rank=self.lora.rank, targets=self.lora.targets, has_magnitudes=self.lora.dora),
            is_four_bit=self.quantization == "nf4",
            recomputes_activations=self.gradient_checkpointing,
            rows_per_step=self.batch_size,
            rows_per_pass=self.batch_size // self.accumulation,
            epochs=self.epochs,
            steps=self.max_steps,
            evaluations=_VALID_EVALUATIONS,
        )

    def train(
        self,
        base: BaseModelSource,
        splits: "Splits",
        out: Path,
        *,
        checkpoints: Path,
        seed: int,
        say: Callable[[str], None],
    ) -> Adapter:
        """Trains an adapter and saves it in peft's format, going on from a checkpoint where there is one.

        Raises TrainingError when anything is not finite.
        """
        tokenizer = load_tokenizer(base.path)
        rows = {
            "train": self._dataset(tokenizer, splits.conversations("train"), base),
            "valid": self._dataset(tokenizer, splits.conversations("valid"), base),
        }
        steps = self._steps(len(rows["train"]))
        progress = TrainingProgress(steps)
        trainer = self._trainer(base, tokenizer, rows, steps, checkpoints, seed, progress)
        say(self._opening(trainer, base, len(rows["train"]), steps))
        left = _last_checkpoint(checkpoints)
        if left is not None:
            say(f"train: going on from {left.name.replace('-', ' ')}, which an interrupted run left")
        started = time.monotonic()
        with progress, _out_of_memory_explained():
            trainer.train(resume_from_checkpoint=None if left is None else str(left))
        seconds = time.monotonic() - started
        _require_finite(trainer.model)
        _save(trainer.model, out)
        copy_tokenizer(base.path, tokenizer, out)  # with the turn end it was trained to stop at
        adapter = self._result(base, out, trainer, seconds, rows["train"])
        say(f"train: {adapter.outcome()}")
        return adapter

    def _steps(self, rows: int) -> int:
        """Optimizer steps of the run."""
        return self.max_steps or max(1, math.ceil(math.ceil(rows / self.batch_size) * self.epochs))

    def _dataset(
        self, tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Conversation], base: BaseModelSource
    ) -> "Dataset":
        """Rows as ids, and labels that carry loss on the assistant's tokens and turn ends alone."""
        from datasets import Dataset

        encoded = [encode(tokenizer, conversation, thinking=base.thinking) for conversation in conversations]
        labels = [
            [token if scored else IGNORED for token, scored in zip(row.ids, row.scored, strict=True)] for row in encoded
        ]
        return Dataset.from_dict({"input_ids": [list(row.ids) for row in encoded], "labels": labels})

    def _trainer(
        self,
        base: BaseModelSource,
        tokenizer: "PreTrainedTokenizerBase",
        rows: "dict[str, Dataset]",
        steps: int,
        checkpoints: Path,
        seed: int,
        progress: Any,
    ) -> "SFTTrainer":
        from transformers import PrinterCallback, set_seed
        from trl import SFTTrainer

        keep_freed_memory()
        set_seed(seed)  # the adapter's first matrix is random, and is drawn when the trainer wraps the model
        model = load_for_training(
            base, four_bit=self.quantization == "nf4", longest_row_tokens=max(map(len, rows["train"]["input_ids"]))
        )
        self._check_targets(model)
        with quiet_gptqmodel():  # peft imports it while it wraps layers, and it prints a banner
            trainer = SFTTrainer(
                model=model,
                args=self._arguments(base, steps, checkpoints, seed),
                train_dataset=rows["train"],
                eval_dataset=rows["valid"],
                processing_class=tokenizer,
                peft_config=self._lora_config(),
                callbacks=[progress.callback()],
            )
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # TRL casts a QLoRA adapter to bfloat16, whatever the processor
        trainer.remove_callback(PrinterCallback)  # it would print every log as a dictionary beside the progress
        return trainer

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

    def _lora_config(self) -> "LoraConfig":
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

    def _arguments(self, base: BaseModelSource, steps: int, checkpoints: Path, seed: int) -> "SFTConfig":
        import torch
        from trl import SFTConfig

        on_gpu = torch.cuda.is_available()
        if torch.cuda.device_count() > 1:
            raise TrainingError(
                f"this machine shows {torch.cuda.device_count()} GPUs, and training uses one: with more, a batch would "
                "hold more rows than the recipe says. Choose one, for example with CUDA_VISIBLE_DEVICES=0."
            )
        return SFTConfig(
            output_dir=str(checkpoints),
            max_steps=steps,
            per_device_train_batch_size=self.batch_size // self.accumulation,
            per_device_eval_batch_size=max(1, self.batch_size // self.accumulation),
            gradient_accumulation_steps=self.accumulation,
            learning_rate=self.learning_rate,
            lr_scheduler_type=self.schedule,
            warmup_steps=round(steps * self.warmup_share),
            weight_decay=self.weight_decay,
            gradient_checkpointing=self.gradient_checkpointing,
            bf16=base.dtype == "bfloat16",
            fp16=base.dtype == "float16",
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            eval_strategy="steps",
            eval_steps=max(1, steps // _VALID_EVALUATIONS),
            logging_steps=1,
            logging_nan_inf_filter=False,  # its default replaces a loss that is not a number by the last good one
            save_strategy="steps",
            save_steps=max(1, steps // _CHECKPOINTS),
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            max_length=None,  # rows that are too long were dropped and counted; nothing is cut here
            dataset_kwargs={"skip_prepare_dataset": True},
        )

    def _opening(self, trainer: "SFTTrainer", base: BaseModelSource, rows: int, steps: int) -> str:
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        kind = "QLoRA (NF4 base)" if self.quantization == "nf4" else "LoRA"
        return (
            f"train: {kind}, rank {self.lora.rank}, {trainable:,} trainable parameters, {rows:,} rows, {steps:,} steps "
            f"of {self.batch_size}, computing in {base.dtype}"
        )

    def _result(
        self,
        base: BaseModelSource,
        out: Path,
        trainer: "SFTTrainer",
        seconds: float,
        rows: "Dataset",
    ) -> Adapter:
        from export.hardware import peak_memory_bytes

        steps = int(trainer.state.global_step)
        per_row = sum(sum(label != IGNORED for label in labels) for labels in rows["labels"]) / len(rows)
        points = loss_points(trainer.state.log_history)
        config = next(iter(trainer.model.peft_config.values()))
        return Adapter(
            folder=out,
            base=base.name,
            base_sha256=base.sha256,
            four_bit_base=self.quantization == "nf4",
            dtype=base.dtype,
            targets=tuple(sorted({name.rpartition(".")[2] for name in config.target_modules})),
            trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            steps=steps,
            tokens=points[-1].tokens if points else 0,
            trained_tokens=round(per_row * steps * self.batch_size),
            seconds=round(seconds, 3),
            peak_memory_bytes=peak_memory_bytes(),
            losses=points,
        )


def _save(model: Any, out: Path) -> None:
    """Writes the adapter so that the same weights are always the same bytes."""
    config = next(iter(model.peft_config.values()))
    if isinstance(config.target_modules, set):  # peft keeps, and would write, them in an order that is none
        config.target_modules = sorted(config.target_modules)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # peft's empty model card, with this machine's paths in it


def _last_checkpoint(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint: transformers writes the trainer's state when the weights are there."""
    found = [path for path in checkpoints.glob("checkpoint-*") if _is_whole(path / "trainer_state.json")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(state: Path) -> bool:
    """Whether a trainer's state is there and was written to its end."""
    try:
        return isinstance(json.loads(state.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


@contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    """Turns a device's out-of-memory error into what can be done about it."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the device ran out of memory. Raise train.accumulation (the batch is then split), set "
            "train.gradient_checkpointing: true or train.quantization: nf4, or lower data.max_tokens. 'fieldtune "
            "estimate RECIPE' tells what each of them saves."
        ) from error


def _require_finite(model: Any) -> None:
    """Raises TrainingError when a trained weight is not a number: such an adapter must never be saved."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingError(
                f"after training, {name} holds values that are not finite. Nothing was saved. Lower "
                "train.learning_rate, or set model.dtype: float32 if it was float16."
            )


step = Sft
