"""Folds an adapter into a base's weights: the 16-bit model that every export starts from.

Which base, where a QLoRA adapter leaves the choice, is decided in `finetune.merge_choice`.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifacts import MergeBase, ModelFolder
from export.chat_tokenizer import load_tokenizer
from export.engines.hf import quiet_gptqmodel
from export.errors import ModelError
from export.loading import open_model
from finetune.base_model import BaseModelSource, copy_tokenizer
from finetune.methods import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merge(adapter: Adapter, base: BaseModelSource, out: Path, *, onto: MergeBase, dtype: str) -> ModelFolder:
    """Writes the merged model, in 16 bits, with the base's tokenizer files and a turn end that stops generation.

    `onto` names the weights that the adapter's update is added to. Their sum is taken in float32 and rounded once, to
    the torch type that `dtype` names. Raises ModelError when the result is not finite.
    """
    with quiet_gptqmodel():  # peft imports it to see whether a layer is one of its kernels, and it prints a banner
        merged = _merged_model(adapter, base, onto, dtype)
    tokenizer = load_tokenizer(base.path)
    _set_stop_tokens(merged, tokenizer)
    _require_finite(merged)
    merged.save_pretrained(out)
    copy_tokenizer(base.path, tokenizer, out)
    template = str(tokenizer.chat_template)
    return ModelFolder(
        folder=out,
        dtype=dtype,
        base=base.name,
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        merged_onto=onto,
    )


def _merged_model(adapter: Adapter, base: BaseModelSource, onto: MergeBase, dtype: str) -> "PreTrainedModel":
    import torch
    from peft import PeftModel

    if onto == "nf4":
        quantized: Any = open_model(base.path, dtype=torch.float32, four_bit_compute=torch.float32).model
        dense = quantized.dequantize().to(torch.float32)
    else:
        dense = open_model(base.path, dtype=torch.float32).model
    model = PeftModel.from_pretrained(dense, adapter.folder).merge_and_unload(safe_merge=True)
    return model.to(getattr(torch, dtype))


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
