"""Reads rows, one by one, from files or from a hub, each with the place it came from for error messages.

What a row means is decided by a data template (`finetune.data.template`). A line that cannot be read is never skipped
here: it is an error (`read_rows`), or a row that says what is wrong with it (`read_rows_and_broken`).
"""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from export.errors import DataError
from finetune.data.encodings import LINE_LIMIT, lines_of, text_of
from finetune.data.encodings import Encoding as Encoding
from finetune.data.encodings import encoding_of as encoding_of

# What tells a model's or a run's folder from one of rows: both hold JSON too.
_NOT_ROWS = frozenset({"config.json", "manifest.json", "recipe.yaml"})
_NEIGHBOURS_LISTED, _ENTRIES_LOOKED_AT = 8, 200
# A JSON list is held in memory whole, several times its size on disk.
JSON_LIMIT_BYTES = 512 * 2**20


class Row(NamedTuple):
    """One row: its fields by name, and where it stands, in words ("robot.jsonl, line 3").

    `problem` says what is wrong with a row that cannot be read, and where; such a row has no fields.
    """

    fields: dict[str, Any]
    origin: str
    problem: str = ""

    def whole(self) -> "Row":
        """The row. Raises DataError where it could not be read."""
        if self.problem:
            raise DataError(self.problem)
        return self


def read_rows(path: Path, *, encoding: Encoding = "auto") -> Iterator[Row]:
    """The rows of a file, or of every data file below a folder in the order of their names, in flat memory.

    `encoding` is that of the text files; which one auto finds, `encoding_of` says. Raises DataError when there is no
    such file, a file is of another kind or holds no rows, or a row is broken.
    """
    return (row.whole() for row in read_rows_and_broken(path, encoding=encoding))


def read_rows_and_broken(path: Path, *, encoding: Encoding = "auto") -> Iterator[Row]:
    """The rows as `read_rows` gives them, and in its place each that cannot be read by itself, with its problem.

    Raises DataError as `read_rows` does, but for a broken row only where nothing behind it can be trusted either: a
    quote that is not closed, a value that is the whole file.
    """
    for file in files_of(path):
        count = 0
        for count, row in enumerate(_READERS[file.suffix.lower()](file, encoding), start=1):  # noqa: B007
            yield row
        if count == 0:
            raise DataError(f"{file} holds no rows. Give a file with at least one, or remove it from the folder.")


def is_text(path: Path) -> bool:
    """Whether a data file is of a kind that has an encoding."""
    return path.suffix.lower() != ".parquet"


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


def _read_jsonl(path: Path, encoding: Encoding) -> Iterator[Row]:
    where = f"{path}, line "
    decode = _DECODER.decode
    for number, line in enumerate(lines_of(path, encoding), start=1):
        try:
            fields = decode(line)
        except (ValueError, RecursionError) as error:
            if line.isspace():
                continue
            yield _broken(f"{where}{number}", _not_json(line, error, f"{where}{number}", first_line=number))
            continue
        if type(fields) is not dict:
            yield _broken(f"{where}{number}", _no_object(fields))
        else:
            yield Row(fields, f"{where}{number}")


def _read_json(path: Path, encoding: Encoding) -> Iterator[Row]:
    if (size_bytes := path.stat().st_size) > JSON_LIMIT_BYTES:
        raise DataError(
            f"{path} holds {size_bytes / 2**20:,.0f} MiB in one JSON value, which would have to be in memory at once; "
            f"expected at most {JSON_LIMIT_BYTES // 2**20} MiB. Write one object a line (jq -c '.[]' old.json > "
            "new.jsonl): such a file may have any size."
        )
    text = text_of(path, encoding)
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if not text.strip():
            return
        raise DataError(_not_json(text, error, str(path), first_line=1)) from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        raise DataError(
            f'{path} holds {kind_of(value)}; expected a list of objects, or {{"data": [...]}}. '
            "A file with one object a line is named .jsonl."
        )
    for number, fields in enumerate(value, start=1):
        origin = f"{path}, row {number}"
        yield Row(fields, origin) if isinstance(fields, dict) else _broken(origin, _no_object(fields))


def _read_csv(path: Path, encoding: Encoding) -> Iterator[Row]:
    # the longest field csv takes is a setting of the whole process: it is only ever raised
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    record: list[str] = []
    reader = csv.reader(_kept_in(record, lines_of(path, encoding), path), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if header is None:
                header = _csv_header(cells, path)
            elif cells:
                origin = f"{path}, line {start}"
                if len(cells) != len(header):
                    yield _broken(origin, _other_cells(header, cells, record))
                else:
                    yield Row(dict(zip(header, cells, strict=True)), origin)
            start = reader.line_num + 1
            record.clear()
    except csv.Error as error:
        raise _not_csv(path, start, record, str(error)) from None


def _kept_in(record: list[str], lines: Iterator[str], path: Path) -> Iterator[str]:
    """The lines, each also put into `record`, which its owner empties when a record is complete."""
    size = 0
    for number, line in enumerate(lines, start=1):
        size = len(line) + (size if record else 0)
        if size > LINE_LIMIT:
            problem = f"found more than {LINE_LIMIT:,} characters in one record"
            raise _not_csv(path, number - len(record), record, problem)
        record.append(line)
        yield line


def _not_csv(path: Path, start: int, record: list[str], problem: str) -> DataError:
    """What to say of a record that begins in line `start`: most often a quote is open that nobody meant."""
    place, opened = f"{path}, line {start}", _line_of_quoted_field(record)
    if opened is None:
        remedy = "Quote fields that hold commas, quotes or line breaks, or use JSONL."
        return DataError(f"{place}: this is not CSV: {problem}. {remedy}")
    end = f" and goes on to line {start + len(record) - 1}" if len(record) > opened + 1 else ""
    return DataError(
        f"{place}: this is not CSV: {problem}. A quoted field begins in line {start + opened}{end}: its quote is "
        'probably not closed. Write a quote that is part of a text twice ("") and quote that whole field, or use JSONL.'
    )


def _line_of_quoted_field(record: list[str]) -> int | None:
    """Index of the line in which the last quoted field of a record begins; None when no field is quoted."""
    opened: int | None = None
    quoted, closed_at = False, (-1, -1)
    for index, line in enumerate(record):
        for position in _quotes_in(line):
            if quoted:
                quoted, closed_at = False, (index, position)
            elif closed_at == (index, position - 1):  # two in a row are one quote of the text
                quoted = True
            elif position == 0 or line[position - 1] == ",":  # elsewhere in a field that is not quoted it is text
                quoted, opened = True, index
    return opened


def _quotes_in(line: str) -> Iterator[int]:
    position = line.find('"')
    while position >= 0:
        yield position
        position = line.find('"', position + 1)


def _csv_header(cells: list[str], path: Path) -> list[str]:
    repeated = sorted({name for name in cells if cells.count(name) > 1})
    if repeated or "" in cells:
        raise DataError(f"{path}, line 1: every column needs a name of its own; found {cells}.")
    if len(cells) == 1 and any(mark in cells[0] for mark in (";", "\t", "|")):
        raise DataError(f"{path}, line 1: found one column named {cells[0]!r}. Columns must be separated by commas.")
    return cells


def _other_cells(header: list[str], cells: list[str], record: list[str]) -> str:
    spans = f" It spans {len(record)} lines: is a quote not closed?" if len(record) > 1 else ""
    return (
        f"found {len(cells)} fields; the header has {len(header)} ({', '.join(header)}). "
        f"Quote fields that hold commas.{spans}"
    )


def _read_parquet(path: Path, encoding: Encoding) -> Iterator[Row]:
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


_READERS: dict[str, Callable[[Path, Encoding], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {repeated!r} stands twice in one object; keep one of them")
    return fields


# json.loads with a hook makes a decoder for every call, which takes longer than a short row
_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_repeats)


def _broken(origin: str, problem: str) -> Row:
    return Row({}, origin, problem if problem.startswith(origin) else f"{origin}: {problem}")


def _not_json(text: str, error: ValueError | RecursionError, origin: str, *, first_line: int) -> str:
    """Where a text stops being JSON, and why."""
    if not isinstance(error, json.JSONDecodeError):
        return f"{origin}: {error}."
    place = origin if error.lineno == 1 else f"{origin}, line {first_line + error.lineno - 1}"
    near = text[max(error.pos - 20, 0) : error.pos + 20].strip()
    cut = error.msg.startswith("Unterminated string") or not text[error.pos :].strip()
    remedy = (
        " It ends before the value does: is it cut, or is a line break in a text not written as \\n?" if cut else ""
    )
    return f"{place}, column {error.colno}: this is not JSON: {error.msg.lower()}, near {near!r}.{remedy}"


def _no_object(fields: Any) -> str:
    return f"found {kind_of(fields)}; expected an object with named fields."


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
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
