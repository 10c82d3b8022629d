"""The base model: where it is, what it is, its tokenizer's files, and how it is loaded for training."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from export.artifacts import read_model_config, sha256_of_file, sha256_of_json
from export.errors import ModelError, RecipeError
from export.frozen import Frozen
from export.loading import open_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Rows of so many tokens or fewer are trained with plain attention on a processor.
PLAIN_ATTENTION_TOKENS = 128
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


class ModelSettings(Frozen):
    """The base model, and how it is held while it is trained."""

    name: str = Field(
        default="starter",
        description="'starter' (the embedded small model), a local folder (./path), a Hugging Face id (owner/name) or "
        "modelscope:owner/name.",
    )
    revision: str | None = Field(default=None, description="Hub revision: a commit, tag or branch.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Computing type in training; 'auto' takes what this machine's processor is fast in."
    )
    thinking: bool = Field(
        default=False, description="Whether the chat template's thinking mode is on, in training, checks and export."
    )
    offline: bool = Field(default=False, description="Never ask a hub: use what is on this machine or stop.")


class BaseModelSource(Frozen):
    """A base model on this machine.

    `sha256` identifies everything that is used of it (weights, configuration, tokenizer); `tokenizer_sha256` its
    tokenizer alone. `config` is the content of config.json.
    """

    name: str
    path: Path
    sha256: str
    tokenizer_sha256: str
    config: dict[str, Any]
    dtype: str
    thinking: bool

    @property
    def architecture(self) -> str:
        """The architecture's name, as config.json gives it."""
        return str((self.config.get("architectures") or [self.config.get("model_type", "unknown")])[0])

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config: nested in models that also see or hear."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config


def open_base(settings: ModelSettings) -> BaseModelSource:
    """Finds the base model (downloading it when it is on a hub) and identifies it. Raises ModelError."""
    from export.hardware import compute_dtype
    from finetune.hub import resolve_model

    path = resolve_model(settings.name, revision=settings.revision, offline=settings.offline)
    config = read_model_config(path)
    if "quantization_config" in config:
        stored = config["quantization_config"]
        method = stored.get("quant_method", "unknown") if isinstance(stored, dict) else stored
        raise ModelError(
            f"{settings.name} is already quantized ({method}): it cannot be trained further, nor an adapter be "
            "merged into it, and it would be quantized twice. Give the 16-bit model it was made from; "
            "'train.quantization: nf4' saves the same memory."
        )
    return BaseModelSource(
        name=settings.name,
        path=path,
        sha256=_hash_files(path, "*.safetensors", "config.json", "generation_config.json", *_TOKENIZER_FILES),
        tokenizer_sha256=_hash_files(path, *_TOKENIZER_FILES),
        config=config,
        dtype=compute_dtype() if settings.dtype == "auto" else settings.dtype,
        thinking=settings.thinking,
    )


def load_for_training(
    base: BaseModelSource, *, weights_dtype: str, four_bit: bool, longest_row_tokens: int
) -> "PreTrainedModel":
    """The base model's weights in the torch type that is named, or in NF4 with double quantization for QLoRA."""
    import torch

    dtype: torch.dtype = getattr(torch, weights_dtype)
    # On a CPU, for short rows, plain attention trained 1.3 (float32) to 1.45 times (bfloat16) as fast as the fused one
    # (58 tokens a row, the starter); for long rows its memory grows with their square.
    plain = not torch.cuda.is_available() and longest_row_tokens <= PLAIN_ATTENTION_TOKENS
    return open_model(
        base.path,
        dtype=dtype,
        four_bit_compute=dtype if four_bit else None,
        attention="eager" if plain else None,
    ).model


def set_stop_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Generation stops at the turn end first, and at whatever the base stopped at."""
    earlier: Any = model.generation_config.eos_token_id
    kept = [earlier] if isinstance(earlier, int) else list(earlier or [])
    model.generation_config.eos_token_id = list(dict.fromkeys([int(tokenizer.eos_token_id), *kept]))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def copy_tokenizer(source: Path, tokenizer: "PreTrainedTokenizerBase", out: Path) -> None:
    """Copies the tokenizer's files byte for byte; only the names of the end and padding tokens may be changed.

    Re-saving a tokenizer can change its files in ways that converters no longer recognise (llama.cpp identifies a
    pre-tokenizer by what it does to a test string).
    """
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    wanted = {"eos_token": str(tokenizer.eos_token), "pad_token": str(tokenizer.pad_token)}
    if any(_token_text(config.get(key)) != value for key, value in wanted.items()):
        path.write_text(json.dumps({**config, **wanted}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _token_text(value: object) -> object:
    """A token of tokenizer_config.json, which is a string or an object with its content."""
    return value.get("content") if isinstance(value, dict) else value


def guard_tied_embeddings(config: dict[str, object], targets: str | Sequence[str]) -> None:
    """Raises RecipeError when LoRA would train only one of two weights that are the same tensor.

    In a model with tied embeddings the head and the input embedding share one tensor; merging an adapter into one of
    them unties or changes both without the other having been trained for it (peft issue 2018).
    """
    nested = config.get("text_config")
    text_config = nested if isinstance(nested, dict) else config
    if isinstance(targets, str) or not text_config.get("tie_word_embeddings", config.get("tie_word_embeddings")):
        return
    tied = sorted({"lm_head", "embed_tokens"} & {target.rpartition(".")[2] for target in targets})
    if tied:
        raise RecipeError(
            f"train.lora.targets names {' and '.join(tied)}, but this model's input embedding and head are one tied "
            "tensor, which LoRA cannot train in one place only. Leave them out, or use targets: all-linear."
        )


def _hash_files(folder: Path, *patterns: str) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return sha256_of_json({path.name: sha256_of_file(path) for path in files})
