"""A bundle's checksums, its archive, and taking one apart again: what was packed is what arrives, or it is refused."""

import gzip
import json
import shutil
import tarfile
import zlib
from itertools import islice
from pathlib import Path

from export.artifacts import sha256_of_file
from export.bundle.device.client import SETTINGS, STATE, STATE_RECORD, SUMS, has_state_of, verify
from export.errors import ExportError, first_line

# Capitals come first, and bundle.json before the rest: the two are among so many of a bundle's entries.
_FIRST_ENTRIES = 4


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over every file, in the form that `sha256sum --check` reads."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    lines = [f"{sha256_of_file(path)}  {path.name}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def pack(folder: Path, archive: Path, name: str) -> None:
    """Packs the folder, called `name` there, as .tar.gz: the same bytes for the same files, whoever packs them."""
    # weights hardly shrink: the fastest level
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for path in sorted(folder.iterdir()):
            tar.add(path, f"{name}/{path.name}", filter=_anonymous)


def is_packed_bundle(archive: Path, name: str) -> bool:
    """Whether a file is an archive that `pack` made of a bundle of that name, by its first entries."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            first = {entry.name for entry in islice(tar, _FIRST_ENTRIES)}
    except (OSError, tarfile.TarError, EOFError, zlib.error):
        return False
    return {f"{name}/{SUMS}", f"{name}/{SETTINGS}"} <= first


def named_files(bundle: Path) -> set[str]:
    """The files of a bundle's folder by its SHA256SUMS, and that one. Raises ExportError where there is no list."""
    try:
        lines = (bundle / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ExportError(f"{bundle} has no {SUMS}: expected a bundle that `fieldtune bundle` made.") from None
    return {SUMS, *(line.partition("  ")[2] for line in lines)}


def unpack(bundle: Path, into: Path) -> Path:
    """A copy of a bundle, a folder or its archive, below the empty folder `into`; where it lies. Nothing is checked.

    Of a folder the bundle's own files are copied, and not what was put beside them, such as the .venv of its install
    note. A prompt's state that the client made anew there is left out too: it would be made again.
    Raises ExportError for what is no bundle, and for a place within it.
    """
    bundle = bundle.resolve()
    if bundle.is_dir():
        return _copied(bundle, into.resolve())
    try:
        with tarfile.open(bundle) as tar:
            tar.extractall(into, filter="data")
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise ExportError(
            f"{bundle} cannot be unpacked ({first_line(error)}); expected a .tar.gz of `fieldtune bundle`."
        ) from None
    found = [path.parent for path in into.glob(f"*/{SUMS}")]
    if len(found) != 1:
        raise ExportError(f"{bundle} holds {len(found)} bundles; expected one. Make it again with `fieldtune bundle`.")
    return found[0]


def _copied(bundle: Path, into: Path) -> Path:
    names = named_files(bundle)
    if into.is_relative_to(bundle):
        raise ExportError(f"{into} lies within the bundle itself: expected a folder elsewhere.")
    if _has_own_state(bundle):
        names -= {STATE, STATE_RECORD}
    copy = into / bundle.name
    copy.mkdir(parents=True)
    for name in names:
        if Path(name).name == name and (bundle / name).is_file():
            shutil.copyfile(bundle / name, copy / name)
    return copy


def _has_own_state(bundle: Path) -> bool:
    """Whether the prompt's state is whole and of the bundle's model, and yet not the one that was shipped."""
    changed = {STATE, STATE_RECORD} & set(verify(bundle))
    try:
        settings = json.loads((bundle / SETTINGS).read_text(encoding="utf-8"))
        return bool(changed) and has_state_of(settings, bundle)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def damaged(folder: Path) -> list[str]:
    """The files of a bundle that are not what its SHA256SUMS says, or that it does not name."""
    wrong = verify(folder)
    if wrong == [SUMS]:
        return wrong
    extra = {path.name for path in folder.iterdir()} - named_files(folder)
    return [*wrong, *(f"{name} (not in {SUMS})" for name in sorted(extra))]


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode = 0o755 if entry.name.endswith(".sh") else 0o644
    return entry
