"""`fieldtune chat`: talk to whatever a run made, through the engine that will run it on the device.

A GGUF is spoken to with its own vocabulary, template and stop tokens, as a device would; a folder with its tokenizer's.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from export.chat import Message, encode_prompt
from export.engines._base import Engine, Subject
from export.errors import ModelError
from export.hardware import available_cores
from export.stage import read_manifest

_CONTEXT_TOKENS = 4096


class Partner(NamedTuple):
    """A loaded model, and how its side of a conversation is turned into ids and back."""

    engine: Engine
    encode: Callable[[Sequence[Message]], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


def talk(path: Path, *, system: str | None, max_new_tokens: int) -> None:
    """Reads lines and prints answers until the input ends. Raises ModelError when `path` is nothing to talk to."""
    partner = open_partner(path)
    opening = trained_system_prompt(path) if system is None else system
    messages = [Message(role="system", content=opening)] if opening else []
    print(f"{path}: type a message; an empty line starts over, Ctrl-D ends.", flush=True)
    history = list(messages)
    while (line := _read_line()) is not None:
        if not line.strip():
            history = list(messages)
            continue
        history.append(Message(role="user", content=line.strip()))
        answer = reply(partner, history, max_new_tokens)
        print(answer, flush=True)
        history.append(Message(role="assistant", content=answer))
    partner.engine.close()


def reply(partner: Partner, history: Sequence[Message], max_new_tokens: int) -> str:
    """The model's greedy answer to a conversation that ends with the user's turn."""
    (generation,) = partner.engine.generate([partner.encode(history)], max_new_tokens)
    return partner.decode(generation.ids)


def open_partner(path: Path) -> Partner:
    """Loads an adapter folder, a model folder, a GPTQ folder or a GGUF file."""
    if path.is_file() and path.suffix == ".gguf":
        return _gguf_partner(path)
    if (path / "adapter_config.json").is_file():
        return _folder_partner(_adapter_subject(path))
    if (path / "config.json").is_file():
        return _folder_partner(Subject(name=path.name, engine="hf", path=path))
    inside = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(inside) == 1:
        return _gguf_partner(inside[0])
    raise ModelError(
        f"{path} is nothing to talk to: expected a .gguf file, a model folder (config.json), a GPTQ folder or an "
        "adapter folder (adapter_config.json)."
    )


def trained_system_prompt(path: Path) -> str | None:
    """The system prompt of the run that `path` belongs to: that of its first training row; None outside a run."""
    for folder in path.resolve().parents:
        rows = folder / "data" / "train.jsonl"
        if rows.is_file() and (folder / "recipe.yaml").is_file():
            with rows.open(encoding="utf-8") as file:
                first = json.loads(file.readline())["messages"][0]
            return str(first["content"]) if first["role"] == "system" else None
    return None


def _read_line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def _adapter_subject(path: Path) -> Subject:
    """An adapter beside the base it was trained on, held as it was held in training."""
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    base = Path(str(config.get("base_model_name_or_path") or ""))
    if not (base / "config.json").is_file():
        raise ModelError(f"the adapter {path} was trained on {base}, which is not on this machine.")
    manifest = read_manifest(path)
    compute = manifest.result["dtype"] if manifest and manifest.result.get("four_bit_base") else None
    return Subject(name=path.name, engine="hf", path=base, adapter=path, four_bit_compute=compute)


def _folder_partner(subject: Subject) -> Partner:
    from export.engines import hf
    from finetune.base_model import load_tokenizer

    tokenizer = load_tokenizer(subject.path)
    return Partner(
        engine=hf.load(subject, vocabulary_size=len(tokenizer), threads=available_cores()),
        encode=lambda messages: encode_prompt(tokenizer, messages),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
    )


def _gguf_partner(path: Path) -> Partner:
    from export.engines import llama_cpp

    engine = llama_cpp.load(path, vocabulary_size=None, context_tokens=_CONTEXT_TOKENS, threads=available_cores())
    template = engine.vocabulary.chat_template()
    if template is None:
        raise ModelError(f"{path} holds no chat template, so there is no telling how it wants to be spoken to.")
    return Partner(engine, lambda messages: engine.tokenize(_render(template, messages)), engine.vocabulary.detokenize)


def _render(template: str, messages: Sequence[Message]) -> str:
    """The template's text for a conversation that waits for the assistant, by transformers' own renderer."""
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = [message.model_dump() for message in messages]
    texts, _ = render_jinja_template(
        conversations=[conversation], chat_template=template, add_generation_prompt=True, enable_thinking=False
    )
    return str(texts[0])
