"""What a person sees on stderr while rows are answered: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from types import TracebackType

_PLAIN_LINES = 10
_SECONDS_BETWEEN_LINES = 30.0
# The first line says soon whether it will take minutes or a night.
_SECONDS_TO_FIRST_LINE = 5.0


class RowProgress:
    """Shows how many of `total` rows are done, of which `done` were at the start, with rows/s and the time left."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._total, self._first = total, done
        self._started = time.monotonic()
        self._last_line = self._started + _SECONDS_TO_FIRST_LINE - _SECONDS_BETWEEN_LINES
        self._next_line = done + max(1, (total - done) // _PLAIN_LINES)
        self._plain = not sys.stderr.isatty()
        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
        self._bar = Progress(*columns, console=Console(stderr=True), disable=self._plain)
        self._task = self._bar.add_task("rows", total=total, completed=done, speed="")

    def __enter__(self) -> "RowProgress":
        self._started = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def reached(self, rows: int) -> None:
        """Takes how many rows are done now."""
        speed = self._speed(rows)
        self._bar.update(self._task, completed=rows, speed=speed)
        now = time.monotonic()
        if self._plain and (rows >= self._next_line or now - self._last_line > _SECONDS_BETWEEN_LINES):
            self._last_line = now
            self._next_line = rows + max(1, (self._total - self._first) // _PLAIN_LINES)
            print(f"  row {rows:,}/{self._total:,}  {speed}", file=sys.stderr, flush=True)

    def _speed(self, rows: int) -> str:
        """Rows per second of this run, and what is left at that pace."""
        per_second = (rows - self._first) / max(1e-9, time.monotonic() - self._started)
        return f"{shown_speed(per_second)}  {_clock((self._total - rows) / max(1e-9, per_second))} left"


def shown_speed(per_second: float) -> str:
    """Rows per second to three digits or so."""
    return f"{per_second:,.0f} rows/s" if per_second >= 100 else f"{per_second:.3g} rows/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
