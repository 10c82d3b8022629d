"""A bundle's own client, running: started under whatever limits are asked for, asked command by command, and watched.

What its answers are worth is for others to say.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from export.errors import EngineError

# A start reads the model from whatever it lies on: at 20 MB/s at worst, an old card's rate.
_SECONDS_TO_START = 60.0
_SLOWEST_BYTES_PER_SECOND = 20e6
_SECONDS_TO_ANSWER = 600.0
_LAST_CHARACTERS = 600


class Memory(NamedTuple):
    """What a process holds in memory, in bytes: now, at most so far, and of addresses at most (mapped or not)."""

    resident_bytes: int
    peak_resident_bytes: int
    peak_address_bytes: int


class RunningClient:
    """The client of the bundle in `folder`, as a process that answers JSON lines; leaving the block ends it.

    `ready` is the client's first line: where its prompt's state came from, and the seconds until it could be asked.
    Raises EngineError, with what it said, where it ends before it can be asked.
    """

    def __init__(
        self,
        folder: Path,
        *,
        python: str = sys.executable,
        starts_with: Sequence[str] = (),
        before_start: Callable[[], None] | None = None,
    ) -> None:
        folder = folder.resolve()
        self._said_path = folder / ".client.log"
        with self._said_path.open("wb") as said:
            self._process = subprocess.Popen(
                [*starts_with, python, str(folder / "client.py"), "--lines", "json"],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                preexec_fn=before_start,
            )
        self._unread = b""
        try:
            self.ready = self._read(_seconds_to_start(folder))
        except BaseException:
            self.close()
            raise

    @property
    def process_id(self) -> int:
        """The process that answers."""
        return self._process.pid

    def ask(self, command: str) -> dict[str, Any]:
        """The client's answer. Raises EngineError where the process ends or says nothing for ten minutes."""
        self.send(command)
        return self._read(_SECONDS_TO_ANSWER)

    def send(self, command: str) -> None:
        """Asks, and does not wait for the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def memory(self) -> Memory:
        """What the process holds, by the kernel's account (proc_pid_status(5): VmRSS, VmHWM, VmPeak)."""
        return memory_of(self._process.pid)

    def kill(self) -> None:
        """Ends the process as a crash or a loss of power would: at once, without a word (SIGKILL)."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Ends the process, and removes what it said."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # it died with a command unread
                continue
        self._said_path.unlink(missing_ok=True)

    def __enter__(self) -> "RunningClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next line that is JSON, within so many seconds."""
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise EngineError(f"the bundle's client said nothing for {seconds:,.0f} seconds.")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise self._ended()
                self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            content: dict[str, Any] = json.loads(line)
        except ValueError:
            shown = line[:_LAST_CHARACTERS].decode(errors="replace")
            raise EngineError(f"the bundle's client, or a library of its, wrote what is no answer: {shown!r}") from None
        return content

    def _ended(self) -> EngineError:
        status = self._process.wait()
        said = self._said_path.read_text(encoding="utf-8", errors="replace").strip()[-_LAST_CHARACTERS:]
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return EngineError(f"the bundle's client ended with {how}: {said or 'it said nothing'}")


def _seconds_to_start(folder: Path) -> float:
    """How long a start may take: by the size of what it reads."""
    size_bytes = sum(path.stat().st_size for path in folder.glob("*.gguf"))
    return _SECONDS_TO_START + size_bytes / _SLOWEST_BYTES_PER_SECOND


def kill_while_starting(
    folder: Path, python: str, seconds: float, *, starts_with: Sequence[str], before_start: Callable[[], None]
) -> None:
    """Starts the client and ends it (SIGKILL) after so many seconds, before it could be asked."""
    with subprocess.Popen(
        [*starts_with, python, str(folder.resolve() / "client.py"), "--lines", "json"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=before_start,
    ) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()


def memory_of(process_id: int) -> Memory:
    """What a process holds in memory. Raises EngineError where the system does not say."""
    try:
        text = Path(f"/proc/{process_id}/status").read_text(encoding="ascii")
        lines = dict(line.split(":", 1) for line in text.splitlines())
        resident, peak, addresses = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "VmPeak"))
    except (OSError, KeyError, ValueError) as error:
        raise EngineError(f"this system does not say what process {process_id} holds ({error}); use Linux.") from None
    return Memory(resident, peak, addresses)
