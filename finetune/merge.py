"""Makes the 16-bit model that every export starts from: an adapter folded into a base's weights, or a model that was
trained whole, rounded.

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
from finetune.base_model import BaseModelSource, copy_tokenizer, set_stop_tokens
from finetune.methods import Adapter, FullModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge(adapter: Adapter, base: BaseModelSource, out: Path, *, onto: MergeBase, dtype: str) -> ModelFolder:
    """Writes the merged model, in 16 bits, with the base's tokenizer files and a turn end that stops generation.

    `onto` names the weights that the adapter's update is added to. Their sum is taken in float32 and rounded once, to
    the torch type that `dtype` names. Raises ModelError when the result is not finite.
    """
    with quiet_gptqmodel():  # peft imports it to see whether a layer is one of its kernels, and it prints a banner
        merged = _merged_model(adapter, base, onto, dtype)
    return _written(merged, base, out, dtype).model_copy(update={"merged_onto": onto})


def convert(trained: FullModel, base: BaseModelSource, out: Path, *, dtype: str) -> ModelFolder:
    """Writes a model that was trained whole in 16 bits: each weight rounded once, to the torch type `dtype` names.

    Nothing is merged; tokenizer files and turn end are as `merge` leaves them. Raises ModelError when the result is not
    finite.
    """
    import torch

    model = open_model(trained.folder, dtype=torch.float32).model.to(getattr(torch, dtype))
    return _written(model, base, out, dtype)


def _written(model: "PreTrainedModel", base: BaseModelSource, out: Path, dtype: str) -> ModelFolder:
    """The folder of a model whose weights are final."""
    tokenizer = load_tokenizer(base.path)
    set_stop_tokens(model, tokenizer)
    _require_finite(model)
    model.save_pretrained(out)
    copy_tokenizer(base.path, tokenizer, out)
    template = str(tokenizer.chat_template)
    return ModelFolder(
        folder=out,
        dtype=dtype,
        base=base.name,
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
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


def _require_finite(model: "PreTrainedModel") -> None:
    import torch

    broken = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    if broken:
        raise ModelError(
            f"in 16 bits, {len(broken)} tensors hold values that are not finite, {broken[0]} among them. Nothing "
            "was kept. With merge.dtype float16, use bfloat16: its range is that of the training type."
        )
