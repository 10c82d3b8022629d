"""Asks a bundle's own client once: that it answers, what it takes, and its state file, which it makes then."""

from pathlib import Path
from typing import Any

from export.bundle.running import RunningClient
from export.errors import EngineError, ExportError
from export.frozen import Frozen


class Trial(Frozen):
    """One command, what the client made of it, and the most memory that its process held: resident, and mapped."""

    command: str
    answer: dict[str, Any]
    peak_memory_bytes: int
    peak_address_bytes: int


def try_client(folder: Path, command: str) -> Trial:
    """The client's answer to one command. Raises ExportError, with what it said, where it gives none.

    That the answer is rejected is none of our business: it is for the rehearsal to count.
    """
    try:
        with RunningClient(folder) as client:
            answer = client.ask(command)
            held = client.memory()
            return Trial(
                command=command,
                answer=answer,
                peak_memory_bytes=held.peak_resident_bytes,
                peak_address_bytes=held.peak_address_bytes,
            )
    except EngineError as error:
        raise ExportError(f"the bundle does not run on this machine, so it was not made: {error}") from None
