"""The base model: where it is, what it is, its tokenizer as we train and ship it, and how it is loaded for training."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifacts import read_model_config, sha256_of_file, sha256_of_json
from export.chat import Message, render
from export.errors import ModelError, RecipeError
from export.frozen import Frozen

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune.recipe import ModelSettings

# Qwen's own padding token; where it exists it pads, so that padding is never mistaken for the end of a turn.
_PADDING = "<|endoftext|>"


class BaseModelSource(Frozen):
    """A base model on this machine. `weights_sha256` identifies its weights, `config` is its config.json."""

    name: str
    path: Path
    weights_sha256: str
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


def open_base(settings: "ModelSettings") -> BaseModelSource:
    """Finds the base model (downloading it when it is on a hub) and identifies it. Raises ModelError."""
    from export.hardware import compute_dtype
    from finetune.hub import resolve_model

    path = resolve_model(settings.name, revision=settings.revision, offline=settings.offline)
    config = read_model_config(path)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelError(
            f"{settings.name} is already quantized ({method}): an adapter cannot be merged into it and it would be "
            "quantized twice. Give the 16-bit model it was made from; 'train.quantization: nf4' saves the same memory."
        )
    return BaseModelSource(
        name=settings.name,
        path=path,
        weights_sha256=_hash_files(path, "*.safetensors"),
        tokenizer_sha256=_hash_files(path, "tokenizer*", "chat_template*", "vocab.json", "merges.txt"),
        config=config,
        dtype=compute_dtype() if settings.dtype == "auto" else settings.dtype,
        thinking=settings.thinking,
    )


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer, with the token its chat template ends turns with as `eos_token`.

    Qwen's base models name `<|endoftext|>` as their end, but their template ends turns with `<|im_end|>`: trained as
    it comes, such a model never learns to stop. Padding uses a token that is not the turn end, so that the end is
    never masked as padding. Raises ModelError when there is no chat template or it ends turns with plain text.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise ModelError(f"{folder} has no tokenizer.json: its tokenizer cannot say where in the text a token lies.")
    if tokenizer.chat_template is None:
        raise ModelError(f"{folder} has no chat template. Use an instruct or chat model, or add chat_template.jinja.")
    tokenizer.eos_token = _turn_end(tokenizer, folder)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = _padding_token(tokenizer, folder)
    return tokenizer


def load_for_training(base: BaseModelSource, *, four_bit: bool) -> "PreTrainedModel":
    """The base model's weights in its computing type, or in NF4 with double quantization for QLoRA."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype: torch.dtype = getattr(torch, base.dtype)
    if not four_bit:
        return AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype, local_files_only=True)
    return AutoModelForCausalLM.from_pretrained(
        base.path, dtype=dtype, quantization_config=nf4_config(dtype), local_files_only=True
    )


def nf4_config(dtype: "torch.dtype") -> Any:
    """The 4-bit form that QLoRA trains on (Dettmers et al. 2023, section 3): NF4 with double quantization."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


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


def _turn_end(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> str:
    """The special token that the template puts behind an assistant's words."""
    words = "fieldtune looks for what follows these words"
    turns = [Message(role="user", content="?"), Message(role="assistant", content=words)]
    tail = render(tokenizer, turns, thinking=False, open_turn=False).rpartition(words)[2].strip()
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    first = tokenizer.convert_ids_to_tokens(ids[0]) if ids else None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if first is None or ids[0] not in special:
        raise ModelError(
            f"the chat template of {folder} ends an assistant's turn with {tail[:20]!r}, which is not a special token: "
            "a model trained on it could not be stopped. Use a template such as ChatML (<|im_end|>)."
        )
    return str(first)


def _padding_token(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> str:
    others = [str(token) for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    if _PADDING in tokenizer.get_vocab():
        return _PADDING
    if others:
        return others[0]
    raise ModelError(f"{folder} has no special token besides its turn end to pad with; add {_PADDING!r}.")


def _hash_files(folder: Path, *patterns: str) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return sha256_of_json({path.name: sha256_of_file(path) for path in files})
