"""What supervised training is whichever weights it trains: TRL's SFTTrainer over token ids and labels of our own.

The rows come as token ids and labels made by `export.chat`, so that the trainer has nothing left to template, mask or
cut. What is ours here: the mapping of settings, progress, checkpoints to go on from, and refusing to keep anything that
is not finite. Which weights are trained, and what is saved of them, is a method's own.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from export.chat import Conversation, encode
from export.chat_tokenizer import load_tokenizer
from export.engines.hf import quiet_gptqmodel
from export.errors import TrainingError
from export.hardware import forget_device_peak_memory, keep_freed_memory
from finetune.base_model import BaseModelSource, copy_tokenizer
from finetune.methods._base import Method, TrainingResult
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


class Supervised(Method):
    """Settings of supervised fine-tuning on the assistant's turns, and its course. Subclasses say what is trained."""

    method: str = Field(description="Training method.")
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

    def footprint_with(self, lora: LoraSize | None, *, is_four_bit: bool) -> Footprint:
        """The sizes that decide memory and time; `lora` is None where all weights are trained."""
        return Footprint(
            lora=lora,
            is_four_bit=is_four_bit,
            recomputes_activations=self.gradient_checkpointing,
            rows_per_step=self.batch_size,
            rows_per_pass=self.batch_size // self.accumulation,
            epochs=self.epochs,
            steps=self.max_steps,
            evaluations=_VALID_EVALUATIONS,
        )

    def load(self, base: BaseModelSource, longest_row_tokens: int) -> "PreTrainedModel":
        """The base's weights as they are to be trained. Raises RecipeError where the settings do not fit the model."""
        raise NotImplementedError

    def adapter_config(self) -> "LoraConfig | None":
        """The adapter that is trained beside the weights; None where the weights themselves are."""
        return None

    def save(self, model: Any, tokenizer: "PreTrainedTokenizerBase", out: Path) -> None:
        """Writes what was trained into `out`; the tokenizer's files are added to it."""
        raise NotImplementedError

    def told(self, model: Any, base: BaseModelSource) -> str:
        """What is trained, and how, for the line that training begins with."""
        raise NotImplementedError

    def saves_memory(self) -> str:
        """The settings that save memory, for whom it was too little."""
        raise NotImplementedError

    def result_of(self, model: Any, common: dict[str, Any]) -> TrainingResult:
        """What training left; `common` holds the fields of `TrainingResult`."""
        raise NotImplementedError

    def train(
        self,
        base: BaseModelSource,
        splits: "Splits",
        out: Path,
        *,
        checkpoints: Path,
        seed: int,
        say: Callable[[str], None],
    ) -> TrainingResult:
        """Trains and saves what was trained, going on from a checkpoint where there is one.

        Raises TrainingError when anything is not finite.
        """
        tokenizer = load_tokenizer(base.path)
        rows = {
            "train": dataset(tokenizer, splits.conversations("train"), thinking=base.thinking),
            "valid": dataset(tokenizer, splits.conversations("valid"), thinking=base.thinking),
        }
        forget_device_peak_memory()
        steps = self._steps(len(rows["train"]))
        progress = TrainingProgress(steps)
        trainer = self._trainer(base, tokenizer, rows, steps, checkpoints, seed, progress)
        counts = f"{len(rows['train']):,} rows, {steps:,} steps of {self.batch_size}"
        say(f"train: {self.told(trainer.model, base)}, {counts}, computing in {base.dtype}")
        left = _last_checkpoint(checkpoints)
        if left is not None:
            say(f"train: going on from {left.name.replace('-', ' ')}, which an interrupted run left")
        started = time.monotonic()
        with progress, _out_of_memory_explained(self.saves_memory()):
            trainer.train(resume_from_checkpoint=None if left is None else str(left))
        seconds = time.monotonic() - started
        _require_finite(trainer.model)
        self.save(trainer.model, tokenizer, out)
        copy_tokenizer(base.path, tokenizer, out)  # with the turn end it was trained to stop at
        result = self.result_of(trainer.model, self._common(base, out, trainer, seconds, rows["train"]))
        say(f"train: {result.outcome()}")
        return result

    def _steps(self, rows: int) -> int:
        """Optimizer steps of the run."""
        return self.max_steps or max(1, math.ceil(math.ceil(rows / self.batch_size) * self.epochs))

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
        set_seed(seed)  # an adapter's first matrix is random, and is drawn when the trainer wraps the model
        model = self.load(base, max(map(len, rows["train"]["input_ids"])))
        with quiet_gptqmodel():  # peft imports it while it wraps layers, and it prints a banner
            trainer = SFTTrainer(
                model=model,
                args=self._arguments(base, steps, checkpoints, seed),
                train_dataset=rows["train"],
                eval_dataset=rows["valid"],
                processing_class=tokenizer,
                peft_config=self.adapter_config(),
                callbacks=[progress.callback()],
            )
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # TRL casts a QLoRA adapter to bfloat16, whatever the processor
        trainer.remove_callback(PrinterCallback)  # it would print every log as a dictionary beside the progress
        return trainer

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

    def _common(
        self, base: BaseModelSource, out: Path, trainer: "SFTTrainer", seconds: float, rows: "Dataset"
    ) -> dict[str, Any]:
        """The fields that every `TrainingResult` has."""
        from export.hardware import device_peak_memory_bytes, peak_memory_bytes

        steps = int(trainer.state.global_step)
        per_row = sum(sum(label != IGNORED for label in labels) for labels in rows["labels"]) / len(rows)
        points = loss_points(trainer.state.log_history)
        return {
            "folder": out,
            "base": base.name,
            "base_sha256": base.sha256,
            "dtype": base.dtype,
            "trainable_parameters": trainable_parameters(trainer.model),
            "steps": steps,
            "tokens": points[-1].tokens if points else 0,
            "trained_tokens": round(per_row * steps * self.batch_size),
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "device_peak_memory_bytes": device_peak_memory_bytes(),
            "losses": points,
        }


def dataset(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Conversation], *, thinking: bool
) -> "Dataset":
    """Rows as ids, and labels that carry loss on the assistant's tokens and turn ends alone."""
    from datasets import Dataset

    encoded = [encode(tokenizer, conversation, thinking=thinking) for conversation in conversations]
    labels = [
        [token if scored else IGNORED for token, scored in zip(row.ids, row.scored, strict=True)] for row in encoded
    ]
    return Dataset.from_dict({"input_ids": [list(row.ids) for row in encoded], "labels": labels})


def trainable_parameters(model: Any) -> int:
    """How many numbers are trained; a tensor that serves as embedding and as head counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


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
def _out_of_memory_explained(saves_memory: str) -> Iterator[None]:
    """Turns a device's out-of-memory error into what can be done about it."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the device ran out of memory. Raise train.accumulation (the batch is then split), set "
            f"train.gradient_checkpointing: true or {saves_memory}, or lower data.max_tokens. 'fieldtune "
            "estimate RECIPE' tells what each of them saves."
        ) from error


def _require_finite(model: Any) -> None:
    """Raises TrainingError when a trained weight is not a number: such weights must never be saved."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingError(
                f"after training, {name} holds values that are not finite. Nothing was saved. Lower "
                "train.learning_rate, or set model.dtype: float32 if it was float16."
            )
