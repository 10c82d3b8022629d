"""Runs a stage once: skips it when nothing that matters changed, and never leaves a half-written folder.

A stage writes into a partial folder beside its final one. When its work is done the manifest is written, last, and
the folder takes its final name: a folder that has a manifest is complete. What a stage depends on is a flat mapping
of names to values, so that a second run can say which of them changed.
"""

import errno
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from export.artifacts import StageResult
from export.errors import StorageError
from export.frozen import Frozen

MANIFEST = "manifest.json"
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
        _replace(folder, partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (storage_error := storage_problem(error, folder)) is not None:
            raise storage_error from error
        raise
    return result.model_copy(update={"folder": folder})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete stage folder, or None where there is none that this version can read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def storage_problem(error: BaseException, folder: Path) -> StorageError | None:
    """A StorageError that says what to do, when `error` or what caused it is a full or unwritable disk."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # safetensors and Rust writers report the same condition as text
        if full or "No space left on device" in str(seen) or "File too large" in str(seen):
            free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
            return StorageError(
                f"the disk is full: writing {folder} stopped with {free / 1e6:,.0f} MB free. "
                "Nothing half-written was kept. Free some space, or choose another place with --out."
            )
        if isinstance(seen, PermissionError):
            return StorageError(f"{seen.filename or folder} cannot be written. Choose another place with --out.")
        seen = seen.__cause__ or seen.__context__
    return None


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
    shown = [f"{n} {_short(manifest.inputs.get(n))} -> {_short(inputs.get(n))}" for n in changed[:4]]
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return f"running again, because of {', '.join(shown) or 'an unreadable earlier result'}{more} ({folder})"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def _replace(folder: Path, partial: Path) -> None:
    """Gives the partial folder its final name; an earlier result is removed only when the new one is complete."""
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
