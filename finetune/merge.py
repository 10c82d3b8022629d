"""Folds an adapter into the weights it was trained beside: the 16-bit model that every export starts from."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifacts import ModelFolder
from export.engines.hf import quiet_gptqmodel
from export.errors import ModelError
from finetune.base_model import BaseModelSource, load_tokenizer, nf4_config
from finetune.methods._base import Adapter
from finetune.recipe import MergeSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def merge(adapter: Adapter, base: BaseModelSource, settings: MergeSettings, out: Path) -> ModelFolder:
    """Writes the merged model, in 16 bits, with the base's tokenizer files and a turn end that stops generation.

    The sum of base and update is taken in float32 and rounded once. Raises ModelError when the result is not finite.
    """
    with quiet_gptqmodel():  # peft imports it to see whether a layer is one of its kernels, and it prints a banner
        merged = _merged_model(adapter, base, settings)
    tokenizer = load_tokenizer(base.path)
    _set_stop_tokens(merged, tokenizer)
    _require_finite(merged)
    merged.save_pretrained(out)
    copy_tokenizer(base.path, tokenizer, out)
    template = str(tokenizer.chat_template)
    return ModelFolder(
        folder=out,
        dtype=settings.dtype,
        base=base.name,
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        merged_onto=settings.onto,
    )


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


def _merged_model(adapter: Adapter, base: BaseModelSource, settings: MergeSettings) -> "PreTrainedModel":
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if settings.onto == "nf4":
        quantized = AutoModelForCausalLM.from_pretrained(
            base.path, dtype=torch.float32, quantization_config=nf4_config(torch.float32), local_files_only=True
        )
        dense = quantized.dequantize().to(torch.float32)
    else:
        dense = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32, local_files_only=True)
    model = PeftModel.from_pretrained(dense, adapter.folder).merge_and_unload(safe_merge=True)
    return model.to(getattr(torch, settings.dtype))


def _set_stop_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Generation stops at the turn end first, and at whatever the base stopped at."""
    earlier: Any = model.generation_config.eos_token_id
    kept = [earlier] if isinstance(earlier, int) else list(earlier or [])
    model.generation_config.eos_token_id = list(dict.fromkeys([int(tokenizer.eos_token_id), *kept]))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def _require_finite(model: "PreTrainedModel") -> None:
    import torch

    broken = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    if broken:
        raise ModelError(
            f"after merging, {len(broken)} tensors hold values that are not finite, {broken[0]} among them. Nothing "
            "was kept. With merge.dtype float16, use bfloat16: its range is that of the training type."
        )
