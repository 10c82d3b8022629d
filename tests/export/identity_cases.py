"""A model folder and GGUF files made of it, and what `identify` finds in an artifact: for the tests of identity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from export.chat import Conversation, Message, encode
from export.checks import Item, Items
from export.converter import convert
from export.formats._gguf_quantize import quantize_file
from export.identity import Finding, identify
from export.loading import open_tokenizer
from tests.export import tiny_models
from tests.export.artifact_edits import Metadata
from tests.export.chat_tokenizers import PLAIN


class Made(NamedTuple):
    """A model folder whose template has a default system prompt, and GGUF files made of it."""

    folder: Path
    f16: Path
    q4_k_m: Path


def make(
    root: Path, *, architecture: tiny_models.Architecture = "qwen3", tied: bool = True, template: str = PLAIN
) -> Made:
    folder = tiny_models.build(root / "model", architecture, tied=tied, hidden_size=256).folder
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    f16, _ = convert(folder, "tiny", root)
    return Made(folder, f16, quantized(f16, "q4_k_m", root))


def quantized(source: Path, file_type: str, root: Path, name: str | None = None) -> Path:
    path = root / f"model-{name or file_type}.gguf"
    quantize_file(source, file_type, path)
    return path


def held_out(made_of: Path, *texts: str) -> Items:
    tokenizer = open_tokenizer(made_of)
    conversations = [
        Conversation(messages=(Message(role="user", content=text), Message(role="assistant", content=f"yes, {text}")))
        for text in texts
    ]
    encoded = [encode(tokenizer, conversation) for conversation in conversations]
    items = tuple(Item(ids=e.ids, scored=e.scored_positions, prompt=e.ids[:4], answer="x") for e in encoded)
    return Items(items=items, vocabulary_size=len(tokenizer), max_new_tokens=4)


ROWS = ("turn on the light", "好的,客厅的灯已经打开", "1, 2 and 3?")


def findings(path: Path, reference: Path, **more: Any) -> dict[str, Finding]:
    found = identify("s", path, "hf" if path.is_dir() else "llama_cpp", reference, **more)
    assert all(finding.subject == "s" and finding.found and finding.expected for finding in found)
    return {finding.what: finding for finding in found}


def failed(path: Path, reference: Path, **more: Any) -> dict[str, Finding]:
    return {what: finding for what, finding in findings(path, reference, **more).items() if not finding.ok}


def set_key(key: str, value: Any) -> Callable[[Metadata], None]:
    return lambda values: values.update({key: value})
