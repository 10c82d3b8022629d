"""The texts that are written into a bundle: filled in from templates, which lie in `device/`."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ExportError

if TYPE_CHECKING:
    from jinja2 import Environment

    from export.bundle.prompt import TurnTexts

DEVICE = Path(__file__).with_name("device")


def rendered(template: str, content: Any) -> str:
    """A template of `device/` with `content` filled in."""
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(DEVICE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def modelfile(model: str, turns: "TurnTexts", system: str | None, context_tokens: int) -> str:
    """An Ollama Modelfile: the chat template's own text as a Go template, its stop, no chance, the system prompt.

    Raises ExportError for a template or a system prompt that a Modelfile cannot hold.
    """
    before = turns.before_system + ("" if turns.system_is_fixed else "{{ .System }}") + turns.between
    texts = (turns.before_system, turns.between, turns.opening, turns.turn_end, system or "")
    unfit = next((mark for mark in ('"""', "{{", "}}") if any(mark in text for text in texts)), None)
    if unfit is not None:
        raise ExportError(
            f"the chat template or the system prompt holds {unfit!r}, which ends or commands a text of a Modelfile. "
            "Change the system prompt."
        )
    lines = [
        f"FROM ./{model}",
        f'TEMPLATE """{before}{{{{ .Prompt }}}}{turns.opening}{{{{ .Response }}}}{turns.turn_end}"""',
        *([f'SYSTEM """{system}"""'] if system else []),
        f'PARAMETER stop "{turns.turn_end}"',
        f"PARAMETER num_ctx {context_tokens}",
        "PARAMETER temperature 0",
    ]
    return "\n".join(lines) + "\n"
