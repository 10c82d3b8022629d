"""Asks a running client command after command, for a time, and notes what each answer took. Nothing is judged here."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from export.bundle.running import RunningClient


class Asked(NamedTuple):
    """One answer: of which row, when (seconds since the soak began), what came, and what the process held then."""

    row: int
    seconds: float
    answer: dict[str, Any]
    resident_bytes: int


def soak(
    client: RunningClient, commands: Sequence[str], minutes: float, tell: Callable[[int, float], None]
) -> list[Asked]:
    """Asks all commands, in order, again and again until the minutes are over; every one at least once.

    `tell` hears how many were answered, and after how many seconds. Raises EngineError where the client ends.
    """
    started = time.monotonic()
    asked: list[Asked] = []
    while len(asked) < len(commands) or time.monotonic() - started < minutes * 60:
        row = len(asked) % len(commands)
        answer = client.ask(commands[row])
        asked.append(Asked(row, time.monotonic() - started, answer, client.memory().resident_bytes))
        tell(len(asked), asked[-1].seconds)
    return asked
