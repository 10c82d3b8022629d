"""The one place where a Hugging Face folder is opened: local files only, never the code that a folder brings along.

What transformers raises about a broken folder becomes a ModelError that names it. Which weights were missing or
unexpected is handed back, because transformers fills them with random numbers and goes on.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.artifacts import read_model_config
from export.errors import MissingDependencyError, ModelError
from export.hardware import torch_device
from export.readers.folder import packed_settings, refuse_broken_settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# gptqmodel's kernel in plain torch, as its settings call it.
PLAIN_KERNEL = "gptq_torch"


class Opened(NamedTuple):
    """A loaded model, and transformers' account of the weights it did not find or did not expect."""

    model: "PreTrainedModel"
    found: dict[str, Any]


def open_model(
    folder: Path,
    *,
    dtype: "torch.dtype",
    four_bit_compute: "torch.dtype | None" = None,
    device: str | None = None,
    attention: str | None = None,
) -> Opened:
    """The causal language model in `folder`, its weights in `dtype`, or in NF4 that computes in `four_bit_compute`.

    `attention` names one of transformers' implementations; None leaves the choice to it. Raises ModelError when the
    folder is broken or its model is none that transformers knows.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "local_files_only": True}
    if device is not None:
        settings["device_map"] = device
    if attention is not None:
        settings["attn_implementation"] = attention
    if four_bit_compute is not None:
        settings["quantization_config"] = nf4_config(four_bit_compute)
    elif torch_device() != "cpu":
        settings |= _plain_kernel(folder)
    try:
        with warnings.catch_warnings():
            # that of a GPTQ folder's settings the stored ones hold, and the kernel alone is ours
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    except ImportError as error:
        package = "gptqmodel" if "gptq" in str(error).lower() else str(error).partition("\n")[0]
        raise MissingDependencyError(package, f"the model in {folder}", "pip install 'fieldtune[gptq]'") from error
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"transformers cannot load the model in {folder}: {_first_lines(error)}") from error
    return Opened(model, found)


def open_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in `folder`, as it comes. Raises ModelError when there is none, or it is broken."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the Rust library raises bare Exception for a broken tokenizer.json
        raise ModelError(f"transformers cannot load the tokenizer in {folder}: {_first_lines(error)}") from error


def nf4_config(compute: "torch.dtype") -> Any:
    """The 4-bit form that QLoRA trains on (Dettmers et al. 2023, section 3): NF4 with double quantization.

    Raises MissingDependencyError without bitsandbytes.
    """
    from transformers import BitsAndBytesConfig

    require_bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def _plain_kernel(folder: Path) -> dict[str, Any]:
    """For a GPTQ folder on a GPU: its own settings, run by gptqmodel's kernel in plain torch.

    Left alone, gptqmodel takes the fastest kernel of the GPU for the whole folder. On a H100 that is Machete, which
    fetches and compiles sources when the folder is loaded, and refuses a layer whose width 128 does not divide.
    """
    config = read_model_config(folder)
    refuse_broken_settings(config)
    declared = config.get("quantization_config") or {}
    if declared.get("quant_method") != "gptq" or (packed := packed_settings(config)) is None:
        return {}
    from transformers import GPTQConfig

    return {"quantization_config": GPTQConfig(bits=packed.bits, backend=PLAIN_KERNEL)}


def require_bitsandbytes() -> None:
    """Raises MissingDependencyError, with the command that installs it, when bitsandbytes is not there."""
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "bitsandbytes", "NF4 (train.quantization, merge.onto)", "pip install 'fieldtune[qlora]'"
        )


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
