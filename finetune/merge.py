"""Folds an adapter into the weights it was trained beside: the 16-bit model that every export starts from."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifacts import ModelFolder
from export.engines.hf import quiet_gptqmodel
from export.errors import ModelError
from export.loading import open_model
from finetune.base_model import BaseModelSource, copy_tokenizer, load_tokenizer
from finetune.methods._base import Adapter
from finetune.recipe import MergeSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def _merged_model(adapter: Adapter, base: BaseModelSource, settings: MergeSettings) -> "PreTrainedModel":
    import torch
    from peft import PeftModel

    if settings.onto == "nf4":
        quantized: Any = open_model(base.path, dtype=torch.float32, four_bit_compute=torch.float32).model
        dense = quantized.dequantize().to(torch.float32)
    else:
        dense = open_model(base.path, dtype=torch.float32).model
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
