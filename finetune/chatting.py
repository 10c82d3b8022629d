"""`fieldtune chat`: talk to whatever a run made, through the engine that will run it on the device.

How it is spoken to is `finetune.partner`'s.
"""

from collections.abc import Sequence
from pathlib import Path

from export.chat import Message
from export.errors import FieldtuneError
from finetune.partner import (
    Partner,
    Said,
    answers,
    open_partner,
    run_folder,
    trained_on_single_messages,
    trained_system_prompt,
)

_SHOWN_CHARACTERS = 60


def talk(path: Path, *, system: str | None, max_new_tokens: int) -> None:
    """Reads lines and prints answers until the input ends. Raises ModelError when `path` is nothing to talk to.

    What cannot be answered (a conversation beyond the context, a line that spells a special token) is said and taken
    back; the conversation goes on.
    """
    opening, whose = _opening(path, system)
    messages = [Message(role="system", content=opening)] if opening else []
    partner = open_partner(path)
    try:
        partner.encode([*messages, Message(role="user", content="?")])  # a system prompt that no turn could follow
        if partner.engine.rounding:
            print(f"The model is {partner.engine.rounding}.", flush=True)
        alone = (
            "It was trained on single messages: start over before each. " if trained_on_single_messages(path) else ""
        )
        print(f"{path}: type a message; an empty line starts over, Ctrl-D ends. {alone}{whose}", flush=True)
        _converse(partner, messages, max_new_tokens)
    finally:
        partner.engine.close()


def _opening(path: Path, given: str | None) -> tuple[str | None, str]:
    """The system prompt, and a sentence on which it is: a model trained behind one answers worse without it."""
    if given is not None:
        return given, f"System prompt: {_quoted(given)}, as given." if given else "No system prompt, as asked."
    trained = trained_system_prompt(path)
    if trained:
        return trained, f"System prompt: {_quoted(trained)}, as in training."
    if run_folder(path) is not None:
        return None, "No system prompt, as in training."
    return None, "No system prompt: none is recorded beside it; --system TEXT gives one."


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f"'{line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + '...'}'"


def _converse(partner: Partner, opening: Sequence[Message], max_new_tokens: int) -> None:
    history = list(opening)
    while (line := _read_line()) is not None:
        if not line.strip():
            history = list(opening)
            continue
        turn = Message(role="user", content=line.strip())
        try:
            said = reply(partner, [*history, turn], max_new_tokens)
        except FieldtuneError as error:
            print(f"this was not answered: {error} (An empty line starts over.)", flush=True)
            continue
        if said.thought:
            print(f"(thought: {said.thought})", flush=True)
        print(said.text, flush=True)
        history += [turn, Message(role="assistant", content=said.text)]  # thoughts of earlier turns are not kept


def reply(partner: Partner, history: Sequence[Message], max_new_tokens: int) -> Said:
    """The model's greedy answer to a conversation that ends with the user's turn."""
    (said,) = answers(partner, [partner.encode(history)], max_new_tokens)
    return said


def _read_line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None
