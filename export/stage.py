"""Runs a stage once: skips it when nothing that matters changed, and never leaves a half-written folder.

A stage writes into a partial folder beside its final one. When its work is done the manifest is written, last, and
the folder takes its final name: a folder that has a manifest is complete. What a stage depends on is a flat mapping
of names to values, so that a second run can say which of them changed.
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from export.artifacts import StageResult
from export.errors import FieldtuneError, StorageError
from export.frozen import Frozen

MANIFEST = "manifest.json"
_HASH = re.compile(r"[0-9a-f]{64}")
R = TypeVar("R", bound=StageResult)
Inputs = Mapping[str, str | int | float | bool | None]


class Manifest(Frozen):
    """What a finished stage was made from and what it made; the last file a stage writes."""

    stage: str
    inputs: dict[str, str | int | float | bool | None]
    result: dict[str, Any]
    seconds: float


def run_stage(
    folder: Path,
    stage: str,
    inputs: Inputs,
    work: Callable[[Path], R],
    result_type: type[R],
    say: Callable[[str], None],
) -> R:
    """The stage's result: the finished one when `inputs` are the same as then, else a new one made by `work`.

    `work` is given an empty folder to write into and returns a result that names it. Raises StorageError when the
    disk is full or the folder cannot be written; whatever is raised, the partial folder is removed.
    """
    _recover(folder)
    manifest = read_manifest(folder)
    if manifest is not None and manifest.inputs == dict(inputs) and (kept := _load(folder, manifest, result_type)):
        say(f"{stage}: already done, nothing it depends on has changed ({folder})")
        return kept
    say(f"{stage}: {_reason(folder, manifest, inputs)}")
    started = time.monotonic()
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        result = work(partial)
        seconds = round(time.monotonic() - started, 3)
        done = Manifest(stage=stage, inputs=dict(inputs), result=result.model_dump(mode="json"), seconds=seconds)
        (partial / MANIFEST).write_text(done.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _give_all_the_mode_of(partial / MANIFEST, partial)
        _replace(folder, partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (storage_error := storage_problem(error, folder)) is not None:
            raise storage_error from error
        raise
    return result.model_copy(update={"folder": folder})


def _give_all_the_mode_of(example: Path, folder: Path) -> None:
    """Makes every file as readable as one that was plainly written.

    safetensors hides its own from all but their owner: a colleague or a service could not load the folder.
    """
    mode = example.stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete stage folder, or None where there is none that this version can read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError):
        return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder`, where there is none, and keeps every other process out of it that asks in the same way.

    On the way out the lock's file goes, and so does a folder that was made here and is still empty. Without a lock
    where the system or the file system has none. Raises StorageError when another process is at work in the folder.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    try:
        descriptor = _lock(path)
        try:
            yield
        finally:
            # removed while it is held, so that nobody else's is removed
            path.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        with suppress(OSError):  # not empty: then it stays, and so do those above it
            for place in made:
                place.rmdir()


def _lock(path: Path) -> int:
    """A descriptor of the file at `path`, with the lock on it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise StorageError(
                f"another fieldtune is at work in {path.parent}. Wait for it to end, or choose another folder with "
                "--out."
            ) from None
        except OSError:  # a network file system without locks
            return descriptor
        # between opening and locking, the one before us may have removed the file: that lock would hold nobody back
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def disk_is_full(error: BaseException) -> bool:
    """Whether `error`, or what it came from, is a disk or a quota without room."""
    return any(_says_full(seen) for seen in _chain(error))


def storage_problem(error: BaseException, folder: Path) -> StorageError | None:
    """What to do about `error`, when it or what caused it is the system's refusal of a file: a full disk, no
    permission, a path that does not lead anywhere. None for anything else.

    `folder` is what was being written, where the error does not name it. An error of this project's own already says
    what is wrong, unless the disk was full.
    """
    if disk_is_full(error):
        free = shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free
        return StorageError(
            f"the disk is full: writing {folder} stopped with {free / 1e6:,.0f} MB free. "
            "Nothing half-written was kept. Free some space, or choose another place with --out."
        )
    if isinstance(error, FieldtuneError):
        return None
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (seen.filename is not None or isinstance(seen, PermissionError)):
            return StorageError(_refused(seen, folder))
        seen = seen.__cause__
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came from; one raised `from None` came from nothing."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _says_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # safetensors and Rust writers report the same condition as text
    return full or "No space left on device" in str(error) or "File too large" in str(error)


def _refused(error: OSError, folder: Path) -> str:
    """A sentence on what is wrong with a path, and one on what to do."""
    named = error.filename
    path = Path(os.fsdecode(named)) if isinstance(named, str | bytes | os.PathLike) else folder
    if isinstance(error, PermissionError):
        return f"{path} cannot be {_denied(path)}: permission denied. Change its permissions, or choose another place."
    if isinstance(error, FileNotFoundError) and path in (folder, *folder.parents):
        return f"cannot make a folder at {path}: the system takes none in {path.parent}. Choose another place."
    if isinstance(error, FileNotFoundError):
        missing = path if path.parent.is_dir() else path.parent
        return f"there is no {'file or folder' if missing == path else 'folder'} {missing}. Make it, or name another."
    if isinstance(error, NotADirectoryError | FileExistsError):
        above = next((place for place in (path, *path.parents) if place.is_file()), path)
        return f"{above} is a file where a folder is expected. Choose another place."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder; expected a file."
    return f"{path} cannot be used: {(error.strerror or str(error)).lower()}. Choose another place."


def _denied(path: Path) -> str:
    """Which access to `path` was denied, as far as can be known afterwards."""
    try:
        exists = path.exists()
    except OSError:
        return "reached"
    if not exists or os.access(path, os.R_OK):
        return "written"
    return "read" if os.access(path, os.W_OK) else "read or written"


def flatten(section: str, value: Any) -> dict[str, str | int | float | bool | None]:
    """A nested setting as a flat mapping with dotted names; lists become their JSON text."""
    if isinstance(value, Mapping):
        return {name: leaf for key in value for name, leaf in flatten(f"{section}.{key}", value[key]).items()}
    if value is None or isinstance(value, str | int | float | bool):
        return {section: value}
    return {section: json.dumps(value, sort_keys=True, ensure_ascii=False)}


def version_inputs(versions: Mapping[str, str]) -> dict[str, str]:
    """Versions of packages, named as inputs of a stage: another version makes the stage again."""
    return {f"version {name}": value for name, value in versions.items()}


def _load(folder: Path, manifest: Manifest, result_type: type[R]) -> R | None:
    try:
        return result_type.model_validate({**manifest.result, "folder": folder})
    except ValidationError:
        return None


def _reason(folder: Path, manifest: Manifest | None, inputs: Inputs) -> str:
    """Why the stage runs, in words: new, or the inputs that changed."""
    if manifest is None:
        return f"running ({folder})"
    names = sorted({*manifest.inputs, *inputs})
    changed = [n for n in names if manifest.inputs.get(n) != inputs.get(n)]
    shown = [f"{n} {_difference(manifest.inputs.get(n), inputs.get(n))}" for n in changed[:4]]
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return f"running again, because of {', '.join(shown) or 'an unreadable earlier result'}{more} ({folder})"


def _difference(before: object, now: object) -> str:
    """How an input changed: both values, but for hashes, which tell a reader nothing."""
    if not any(isinstance(value, str) and _HASH.fullmatch(value) for value in (before, now)):
        return f"{_short(before)} -> {_short(now)}"
    return "(new)" if before is None else "(there is none now)" if now is None else "(another one now)"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def _replace(folder: Path, partial: Path) -> None:
    """Gives the partial folder its final name; an earlier result is removed only when the new one is complete."""
    replaced = _replaced(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
    finally:
        _recover(folder)


def _recover(folder: Path) -> None:
    """Puts an earlier result back that was moved aside for one that never took its place, or removes it."""
    replaced = _replaced(folder)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(folder)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")
