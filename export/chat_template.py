"""What a folder's chat template says of itself: read as text, without transformers and without being run."""

import json
import re
from pathlib import Path
from typing import Any

_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
# The variable by which transformers, llama.cpp and vLLM ask a template to let the model think, or not (as Qwen3's).
_SWITCH = re.compile(r"\benable_thinking\b")


def chat_template_in(folder: Path) -> str | None:
    """The source of the folder's chat template; None where it has none that can be read."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    stored: Any = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(stored, list):  # several, by name
        stored = next((one.get("template") for one in stored if one.get("name") == "default"), None)
    return stored if isinstance(stored, str) else None


def reads_thinking(template: str) -> bool:
    """Whether a chat template has a thinking mode that can be switched: it reads `enable_thinking`."""
    return _SWITCH.search(_COMMENT.sub("", template)) is not None


def thinking_is_ignored(folder: Path) -> str | None:
    """What is to be told where thinking is asked for and the folder's chat template makes nothing of it; else None."""
    template = chat_template_in(folder)
    if template is None or reads_thinking(template):
        return None
    return (
        f"asked for, and ignored: the chat template of {folder} has no thinking mode that could be switched (it does "
        "not read enable_thinking). Thoughts are then what rows hold of them, as part of their answers."
    )
