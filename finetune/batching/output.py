"""The file of answers: it grows row by row, survives being killed at any byte, and goes on only with the same batch.

Beside FILE lies FILE.progress.json. It says which rows, model and settings the answers belong to and up to which byte
the file is whole; it is replaced as a whole, behind the bytes it speaks of. What stands behind that byte after a crash
is cut off and made again. It stays when the batch is done: the same command then finds nothing left to do.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from export.artifacts import write_atomically
from export.errors import RecipeError, StorageError
from export.frozen import Frozen
from export.stage import disk_is_full
from finetune.batching.answers import Tally, Written

# At most so much work is made again after a crash.
_SECONDS_BETWEEN_RECORDS = 1.0
_BLOCK_BYTES = 1 << 20

_SHOWN_CHARACTERS = 40

Belongs = Mapping[str, str | int | bool | None]


class Progress(Frozen):
    """What the answers belong to, and how far they are: `size_bytes` of the file are whole and have this hash."""

    belongs: dict[str, str | int | bool | None]
    size_bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()
    tally: Tally = Tally()
    seconds: float = 0.0


class _State(NamedTuple):
    """What is in the file: the hash and the number of its bytes, and counts over its rows."""

    digest: "hashlib._Hash"
    size_bytes: int
    tally: Tally


class Output:
    """The open file of a batch; `opened` makes one."""

    def __init__(self, path: Path, file: FileIO, progress: Progress, *, replaces: bool) -> None:
        self._path = path
        self._replaces = replaces
        self._file = file
        self._progress = progress
        self._state = _State(hashlib.sha256(), 0, progress.tally)
        self._seconds = progress.seconds
        self._started: float | None = None
        self._recorded = time.monotonic()

    @property
    def tally(self) -> Tally:
        """Counts over the rows in the file."""
        return self._state.tally

    @property
    def seconds(self) -> float:
        """What the rows took, over all runs of the command."""
        return self._seconds + (0.0 if self._started is None else time.monotonic() - self._started)

    def begin(self, header: bytes) -> None:
        """Writes the header of a file that has none yet; what it is to replace goes only now."""
        if self._replaces:
            self._file.truncate(0)
            self._replaces = False
            self.record()
        if self._state.size_bytes == 0:
            self.append(Written(header, Tally()))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the seconds of the answering alone: opening the model is not part of them."""
        self._started = time.monotonic()
        try:
            yield
        finally:
            self._seconds, self._started = self.seconds, None

    def append(self, written: Written) -> None:
        """Writes what was made of the next rows. Raises StorageError where the disk is full."""
        try:
            rest = memoryview(written.data)
            while rest:
                rest = rest[self._file.write(rest) :]
            digest, size_bytes, tally = self._state
            digest = digest.copy()
            digest.update(written.data)
            # at once, so that an interruption cannot leave a hash of other bytes
            self._state = _State(digest, size_bytes + len(written.data), tally + written.tally)
            if time.monotonic() - self._recorded > _SECONDS_BETWEEN_RECORDS:
                self.record()
        except OSError as error:
            if disk_is_full(error):
                raise _full(self._path) from error
            raise

    def record(self) -> None:
        """Puts down how far the file is, once its bytes are on the disk; answers to be replaced keep their record."""
        if self._replaces:
            return
        os.fsync(self._file.fileno())
        digest, size_bytes, tally = self._state
        now = {"size_bytes": size_bytes, "sha256": digest.hexdigest(), "tally": tally, "seconds": self.seconds}
        text = self._progress.model_copy(update=now).model_dump_json(indent=2)
        write_atomically(progress_path(self._path), text + "\n")
        self._recorded = time.monotonic()

    def go_on(self) -> None:
        """Cuts off what a crash left behind the last record. Raises RecipeError where the file was changed since."""
        self._file.seek(0)
        digest, size_bytes, tally = self._state
        while block := self._file.read(min(_BLOCK_BYTES, self._progress.size_bytes - size_bytes)):
            digest.update(block)
            size_bytes += len(block)
        if digest.hexdigest() != self._progress.sha256:
            raise RecipeError(
                f"{self._path} was changed since its answers were written: found other bytes; expected the "
                f"{self._progress.size_bytes:,} that {progress_path(self._path).name} records. Give another --out, or "
                "--restart to begin anew."
            )
        self._state = _State(digest, size_bytes, tally)
        self._file.seek(size_bytes)
        self._file.truncate()


def progress_path(out: Path) -> Path:
    """Where the record of an output file lies."""
    return out.with_name(f"{out.name}.progress.json")


@contextmanager
def opened(path: Path, belongs: Belongs, *, restart: bool) -> Iterator[Output]:
    """The file at `path`, open behind what it holds of the same batch; at the end it is recorded how far it is.

    What is to be replaced (`restart`) stays until `Output.begin`: a model that cannot be opened costs no answers.

    Raises RecipeError when it holds anything else and is not to `restart`, StorageError when another process writes it.
    """
    # unbuffered: what a process has written stays in the file when it is killed
    with FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+") as file:
        _lock(file, path)
        progress = Progress(belongs=dict(belongs))
        if not restart and os.fstat(file.fileno()).st_size > 0:
            progress = _earlier(path, belongs)
        output = Output(path, file, progress, replaces=restart)
        if not restart:
            output.go_on()
        output.record()
        try:
            yield output
        except BaseException:
            with suppress(OSError):  # of a full disk the first error says more
                output.record()
            raise
        output.record()


def _earlier(path: Path, belongs: Belongs) -> Progress:
    """The record of a file that is there. Raises RecipeError when it is of another batch, or of none."""
    record = progress_path(path)
    try:
        progress = Progress.model_validate_json(record.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        raise RecipeError(
            f"{path} is there already, and beside it no {record.name} of a batch that could go on; expected a new "
            "file. Give another --out, or --restart to replace it."
        ) from None
    changed = [name for name in {**progress.belongs, **belongs} if progress.belongs.get(name) != belongs.get(name)]
    if changed:
        found = ", ".join(f"{name} {_shown(progress.belongs, name)}" for name in changed)
        expected = ", ".join(f"{name} {_shown(belongs, name)}" for name in changed)
        raise RecipeError(
            f"{path} holds answers of another batch: found {found}; expected {expected}. Give another --out, the same "
            "files and settings as then, or --restart to begin anew."
        )
    return progress


def _shown(belongs: Belongs, name: str) -> str:
    value = belongs.get(name)
    text = str(value)
    return "none" if value is None else text if len(text) <= _SHOWN_CHARACTERS else f"{text[:12]}…"


def _lock(file: FileIO, path: Path) -> None:
    """Keeps every other batch out of the file. Without a lock where the system or the file system has none."""
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(
            f"another fieldtune is writing {path}. Wait for it to end, or choose another place with --out."
        ) from None
    except (ImportError, OSError):  # no such module, or a network file system without locks
        return


def _full(path: Path) -> StorageError:
    return StorageError(
        f"the disk is full: writing {path} stopped. The answers so far are kept. Free some space and run the same "
        "command again to go on."
    )
