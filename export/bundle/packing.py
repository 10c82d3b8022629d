"""A bundle's checksums, its archive, and taking one apart again: what was packed is what arrives, or it is refused."""

import gzip
import tarfile
import zlib
from pathlib import Path

from export.artifacts import sha256_of_file
from export.bundle.device.client import STATE, SUMS, verify
from export.errors import ExportError, first_line


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over every file, in the form that `sha256sum --check` reads."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    lines = [f"{sha256_of_file(path)}  {path.name}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def pack(folder: Path, archive: Path) -> None:
    """Packs the folder, under its own name, as .tar.gz: the same bytes for the same files, whoever packs them when."""
    partial = archive.with_name(f".{archive.name}.partial")
    # weights hardly shrink: the fastest level
    with (
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for path in sorted(folder.iterdir()):
            tar.add(path, f"{folder.name}/{path.name}", filter=_anonymous)
    partial.replace(archive)


def unpack(bundle: Path, into: Path) -> Path:
    """A copy of a bundle, a folder or its archive, below the empty folder `into`; where it lies. Nothing is checked.

    Raises ExportError for what is no bundle.
    """
    import shutil

    if bundle.is_dir():
        if not (bundle / SUMS).is_file():
            raise ExportError(f"{bundle} has no {SUMS}: expected a bundle that `fieldtune bundle` made.")
        return Path(shutil.copytree(bundle, into / bundle.name))
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


def damaged(folder: Path) -> list[str]:
    """The files of a bundle that are not what its SHA256SUMS says, or that it does not name."""
    wrong = verify(folder)
    if wrong == [SUMS]:
        return wrong
    named = {line.split("  ", 1)[1] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()}
    extra = [path.name for path in folder.iterdir() if path.name not in named | {SUMS}]
    return [*wrong, *(f"{name} (not in {SUMS})" for name in sorted(extra))]


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode = 0o755 if entry.name.endswith(".sh") else 0o644
    return entry


__all__ = ["STATE", "SUMS", "damaged", "pack", "unpack", "write_sums"]
