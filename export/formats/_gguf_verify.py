"""Reads a written GGUF file back and compares it with the folder it was made from, before anyone relies on it.

A GGUF carries its own tokenizer, template and stop tokens; each of them has shipped wrong in published models. What
the weights are worth is measured by running the file, elsewhere.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from export.artifacts import read_model_config
from export.engines._llama_model import open_vocabulary
from export.errors import ExportError
from export.loading import open_tokenizer


class StoredTensor(NamedTuple):
    """One tensor as a GGUF file stores it; `row` is the number of weights per row, `stored_as` a ggml type."""

    name: str
    stored_as: str
    weights: int
    row: int
    size_bytes: int


def read_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """Every tensor of the GGUF file at `path`, in its order; types in lower case ("q4_k")."""
    from gguf import GGUFReader

    return tuple(
        StoredTensor(
            name=str(tensor.name),
            stored_as=tensor.tensor_type.name.lower(),
            weights=int(tensor.n_elements),
            row=int(tensor.shape[0]),
            size_bytes=int(tensor.n_bytes),
        )
        for tensor in GGUFReader(path).tensors
    )


def verify_tokenizer(path: Path, folder: Path) -> None:
    """Raises ExportError when the file's tokenizer, template or stop tokens are not those of the model folder.

    Compared through llama.cpp itself, so that what is checked is what a device will do.
    """
    tokenizer = open_tokenizer(folder)
    expected_stops = {int(tokenizer.eos_token_id), *generation_stops(folder)}
    with open_vocabulary(path) as vocabulary:
        template = vocabulary.chat_template()
        if not template or template != tokenizer.chat_template:
            raise ExportError(
                f"{path.name} has {'another' if template else 'no'} chat template than the tokenizer of {folder}. "
                "A single template is needed there: chat_template.jinja, or chat_template in tokenizer_config.json."
            )
        if set(vocabulary.end_of_turn_ids()) != {tokenizer.eos_token_id}:
            raise ExportError(
                f"{path.name} names {vocabulary.end_of_turn_ids()} as its end tokens, the tokenizer of {folder} "
                f"{tokenizer.eos_token_id} ({tokenizer.eos_token!r})."
            )
        if missing := sorted(expected_stops - set(vocabulary.stop_ids())):
            raise ExportError(
                f"llama.cpp would not stop at the ids {missing} ({tokenizer.convert_ids_to_tokens(missing)}), which "
                f"generation_config.json of {folder} lists as eos_token_id. Remove them there, or use Qwen's tokens."
            )
        if vocabulary.adds_tokens():
            raise ExportError(f"{path.name} asks runtimes to add a token around every text; Qwen's template has none.")
        _verify_ids(vocabulary.tokenize, tokenizer, path)


def generation_stops(folder: Path) -> tuple[int, ...]:
    """The stop ids that generation_config.json declares, none when there is no such file."""
    path = folder / "generation_config.json"
    stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    return tuple(stops) if isinstance(stops, list) else () if stops is None else (int(stops),)


# One line for each thing a pre-tokenizer treats in its own way: words, digits, spaces, scripts, marks, specials.
PROBES = (
    "Don't panic: it's 12345.67 km,\tor so they'd say!!",
    "def add(a, b):\n    return a + b  # total\n\n\n",
    "请把客厅的灯打开,温度调到26度。谢谢!",
    "🙂👩‍🔬🚀 café Straße Привет हिन्दी",
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
)


def _verify_ids(tokenize: Callable[[str], list[int]], tokenizer: Any, path: Path) -> None:
    """Raises ExportError when llama.cpp cuts a probe text into other ids than the folder's tokenizer."""
    for text in PROBES:
        expected = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        found = tokenize(text)
        if found != expected:
            raise ExportError(
                f"llama.cpp reads {text!r} as {found} from {path.name}, the tokenizer as {expected}: the file would "
                "see other text than the model was trained on. Keep the base model's tokenizer files unchanged."
            )


def verify_vocabulary_size(path: Path, folder: Path) -> None:
    """Raises ExportError when the file's vocabulary is not as long as the model's logits (padding included)."""
    config = read_model_config(folder)
    expected = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    with open_vocabulary(path) as vocabulary:
        if len(vocabulary) != expected:
            raise ExportError(f"{path.name} has {len(vocabulary)} tokens, the model of {folder} {expected}.")
