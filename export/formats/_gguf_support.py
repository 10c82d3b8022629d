"""Says, from a config.json alone, whether a model can become a GGUF file that llama.cpp runs.

Asked before training, so that nobody trains for hours what cannot be shipped. The converter and the runtime are two
programs that learn architectures at different times; both are asked, neither is guessed at.
"""

import tempfile
from pathlib import Path
from typing import Any

from export.engines.llama_library import captured_log
from export.errors import ExportError

FULL_ATTENTION_INTERVAL = 4  # the converter's default, and every released Qwen3-Next and Qwen3.5


def check_config(config: dict[str, Any]) -> None:
    """Raises ExportError, naming the architecture, when the converter or llama.cpp does not know it.

    Also raised for a base that is already quantized, and for a pattern of layers that a GGUF cannot express.
    """
    name = _architecture(config)
    if config.get("quantization_config"):
        raise ExportError(
            f"{name}: config.json has a quantization_config, so its weights are already rounded; a GGUF made of them "
            "would be rounded twice. Start from the 16-bit model."
        )
    gguf_name = _converter_knows(name)
    if not runtime_knows(gguf_name):
        raise ExportError(
            f"{name}: llama.cpp's converter writes it as {gguf_name!r}, which the installed llama.cpp cannot run. "
            "Choose another base model, leave gguf out of `export`, or install a newer llama-cpp-python."
        )
    _check_layers(name, config.get("text_config") or config)


def runtime_knows(gguf_architecture: str) -> bool:
    """Whether the installed llama.cpp runs the architecture, by its own word.

    A file of nothing but a header that names the architecture is offered to it. That always fails; the reason is
    either the name itself or whatever llama.cpp looks for next.
    """
    import gguf
    import llama_cpp

    with tempfile.TemporaryDirectory(prefix="fieldtune-") as folder, captured_log() as log:
        path = Path(folder) / "header.gguf"
        writer = gguf.GGUFWriter(path, gguf_architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    return "unknown model architecture" not in log.text


def _architecture(config: dict[str, Any]) -> str:
    """The class name the converter goes by: the text part's, where a config has parts."""
    for part in (config.get("text_config") or {}, config):
        if names := part.get("architectures"):
            return str(names[0])
    raise ExportError(
        "config.json names no architecture (its `architectures` is missing or empty), so the converter cannot tell "
        f"what it is. Its model_type is {config.get('model_type')!r}; use the base model's original config.json."
    )


def _converter_knows(name: str) -> str:
    """The GGUF name of the architecture. Raises ExportError when the converter has no class for it."""
    import gguf
    from conversion import TEXT_MODEL_MAP, get_model_class

    if name not in TEXT_MODEL_MAP:
        qwens = sorted(known for known in TEXT_MODEL_MAP if known.startswith("Qwen") and "ForCausalLM" in known)
        raise ExportError(
            f"{name}: llama.cpp's converter does not know this architecture, so no GGUF can be made of it. "
            f"Of the Qwen family it knows {', '.join(qwens)}. Choose such a base, or leave gguf out of `export`."
        )
    return str(gguf.MODEL_ARCH_NAMES[get_model_class(name).model_arch])


def _check_layers(name: str, config: dict[str, Any]) -> None:
    """Raises ExportError for an order of layers, or a window, that would be lost in the file without a word.

    The converter does not read `layer_types`: it writes every fourth layer as full attention unless it finds
    `full_attention_interval`, which transformers drops when it saves a config. Windows it does not write at all.
    """
    kinds = list(config.get("layer_types") or [])
    every_fourth = ["linear_attention" if i % FULL_ATTENTION_INTERVAL else "full_attention" for i in _from_one(kinds)]
    expected = every_fourth if "linear_attention" in kinds else ["full_attention"] * len(kinds)
    interval = config.get("full_attention_interval") or FULL_ATTENTION_INTERVAL
    if kinds != expected or interval != FULL_ATTENTION_INTERVAL or config.get("use_sliding_window"):
        raise ExportError(
            f"{name}: its attention layers are {kinds or f'one in {interval}'} with use_sliding_window "
            f"{bool(config.get('use_sliding_window'))}; converted to GGUF, every {FULL_ATTENTION_INTERVAL}th layer (or "
            "each) would have full attention and none a window. Choose a base model of that kind."
        )


def _from_one(kinds: list[str]) -> range:
    return range(1, len(kinds) + 1)
