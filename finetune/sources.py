"""Reads rows, one by one, from files or from a hub, each with the place it came from for error messages.

What a row means is decided by a data template (`finetune.template`). A row that cannot be read is an error here and
never skipped: a file with one broken line usually has more wrong with it than that line.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from export.errors import DataError

# A byte that is not UTF-8, as Python's surrogateescape keeps it (PEP 383).
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
# What tells a model's or a run's folder from one of rows: both hold JSON too.
_NOT_ROWS = frozenset({"config.json", "manifest.json", "recipe.yaml"})
_NEIGHBOURS_LISTED, _ENTRIES_LOOKED_AT = 8, 200


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its fields by name, and where it stands, in words ("robot.jsonl, line 3")."""

    fields: dict[str, Any]
    origin: str


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, or of every data file below a folder in the order of their names.

    Raises DataError when there is no such file, a file is of another kind or holds no rows, or a row is broken.
    """
    for file in files_of(path):
        count = 0
        for row in _READERS[file.suffix.lower()](file):
            count += 1
            yield row
        if count == 0:
            raise DataError(f"{file} holds no rows. Give a file with at least one, or remove it from the folder.")


def files_of(path: Path) -> tuple[Path, ...]:
    """The data files that `path` names, sorted; a folder's hidden files and files of other kinds are passed over."""
    kinds = ", ".join(_READERS)
    if not path.exists():
        raise DataError(f"there is no file or folder {path}. {_neighbours(path)}")
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise DataError(f"{path} is of a kind that cannot be read ({path.suffix or 'no ending'}). Known: {kinds}.")
        return (path,)
    below = (file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in _READERS)
    found = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not found:
        raise DataError(f"the folder {path} holds no file of a kind that can be read. Known: {kinds}.")
    return tuple(sorted(found, key=lambda file: file.relative_to(path).as_posix()))


def read_snapshot(folder: Path, name: str, *, split: str, subset: str | None) -> Iterator[Row]:
    """The rows of one split of a dataset repository that lies in `folder` (see `finetune.hub.download_dataset`).

    The `datasets` library decides which files make up the split, from the repository's README or the files' names.
    It streams them: nothing is copied to its cache. Raises DataError, with the library's own words, when it cannot.
    """
    import datasets

    try:
        rows = datasets.load_dataset(str(folder), subset, split=split, streaming=True)
        for number, fields in enumerate(rows, start=1):
            yield Row(dict(fields), f"{name} ({split}), row {number}")
    except DataError:
        raise
    # the library raises a dozen unrelated types, bare ValueError and pyarrow's own among them
    except Exception as error:
        offered = _splits_of(folder, subset)
        hint = f" Splits there: {', '.join(offered)}." if offered and split not in offered else ""
        raise DataError(
            f"the split {split!r} of {name} cannot be read: {_words(error)}{hint} "
            "Set data.split, and data.subset where the dataset has several configurations."
        ) from error


def _splits_of(folder: Path, subset: str | None) -> list[str]:
    import datasets

    try:
        return [str(name) for name in datasets.get_dataset_split_names(str(folder), subset)]
    except Exception:  # asked only to enrich a message about an earlier error
        return []


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            origin = f"{path}, line {number}"
            yield _row(_json(line, origin, first_line=number), origin)


def _read_json(path: Path) -> Iterator[Row]:
    value = _json("".join(_lines(path)), str(path), first_line=1)
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        raise DataError(
            f'{path} holds {_kind(value)}; expected a list of objects, or {{"data": [...]}}. '
            "A file with one object a line is named .jsonl."
        )
    for number, fields in enumerate(value, start=1):
        origin = f"{path}, row {number}"
        yield _row(fields, origin)


def _read_csv(path: Path) -> Iterator[Row]:
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            remedy = "Quote fields that hold commas, quotes or line breaks, or use JSONL."
            raise DataError(f"{path}, line {start}: this is not CSV: {error}. {remedy}") from None
        if cells is None:
            return
        if header is None:
            header = _csv_header(cells, path)
        elif cells:
            yield Row(_csv_fields(header, cells, f"{path}, line {start}"), f"{path}, line {start}")


def _csv_header(cells: list[str], path: Path) -> list[str]:
    repeated = sorted({name for name in cells if cells.count(name) > 1})
    if repeated or "" in cells:
        raise DataError(f"{path}, line 1: every column needs a name of its own; found {cells}.")
    if len(cells) == 1 and any(mark in cells[0] for mark in (";", "\t", "|")):
        raise DataError(f"{path}, line 1: found one column named {cells[0]!r}. Columns must be separated by commas.")
    return cells


def _csv_fields(header: list[str], cells: list[str], origin: str) -> dict[str, Any]:
    if len(cells) != len(header):
        raise DataError(
            f"{origin}: found {len(cells)} fields; the header has {len(header)} ({', '.join(header)}). "
            "Quote fields that hold commas."
        )
    return dict(zip(header, cells, strict=True))


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_words(error)}") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends, with or without a byte order mark."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {_undecodable_line(path)}: byte {error.object[error.start]:#04x} is not UTF-8. "
            "Save the file as UTF-8: from a spreadsheet as 'CSV UTF-8'; or, where it is Chinese, with "
            "iconv -f GB18030 -t UTF-8 old > new, and where it is Western European, with "
            "iconv -f LATIN1 -t UTF-8 old > new"
        ) from None
    except PermissionError:
        raise DataError(f"{path} cannot be opened: permission denied.") from None


def _undecodable_line(path: Path) -> int:
    """The first line that is not UTF-8: a file is decoded in blocks of many lines, so the error does not know it."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        return next(number for number, line in enumerate(file, start=1) if _ESCAPED_BYTE.search(line))


def _json(text: str, origin: str, *, first_line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object_without_repeats)
    except json.JSONDecodeError as error:
        place = origin if error.lineno == 1 else f"{origin}, line {first_line + error.lineno - 1}"
        near = text[max(error.pos - 20, 0) : error.pos + 20].strip()
        raise DataError(
            f"{place}, column {error.colno}: this is not JSON: {error.msg.lower()}, near {near!r}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin}: {error}.") from None


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {repeated!r} stands twice in one object; keep one of them")
    return fields


def _row(fields: Any, origin: str) -> Row:
    if not isinstance(fields, dict):
        raise DataError(f"{origin}: found {_kind(fields)}; expected an object with named fields.")
    return Row(fields, origin)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _neighbours(path: Path) -> str:
    """What lies where the missing path should be: a typing slip is easiest to see beside the real names."""
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist either."
    beside = sorted(path.parent.iterdir())
    names = [place.name for place in beside if place.is_file() and place.suffix.lower() in _READERS]
    names += [f"{place.name}/" for place in beside if _holds_rows(place)]
    return f"In {path.parent}: {', '.join(names[:_NEIGHBOURS_LISTED]) or 'nothing that could be meant'}."


def _holds_rows(folder: Path) -> bool:
    """Whether data files lie right in a folder, as far as its first entries show."""
    try:
        inside = [place.name for place in islice(folder.iterdir(), _ENTRIES_LOOKED_AT)]
    except OSError:  # no folder, or one that may not be read
        return False
    holds_some = any(Path(name).suffix.lower() in _READERS for name in inside)
    return holds_some and not folder.name.startswith(".") and _NOT_ROWS.isdisjoint(inside)


def _words(error: BaseException) -> str:
    """A library's error in one line, as long as a reader will read."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300].rstrip('.')}."
