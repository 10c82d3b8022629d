"""How a row and its answer are written: the fields they get, JSON answers as values, a line of JSON or of CSV."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, time
from typing import Any, NamedTuple

from export.checks import read_json
from export.errors import DataError
from export.frozen import Frozen
from export.thought import answer_behind_thought
from finetune.batching.settings import BatchSettings
from finetune.partner import Said


class Tally(Frozen):
    """Counts over rows: all of them, those in error, and of those that were answered the ones that need a look."""

    rows: int = 0
    errors: int = 0
    cut: int = 0
    invalid: int = 0
    fenced: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in Tally.model_fields})

    @property
    def answered(self) -> int:
        """Rows that have an answer."""
        return self.rows - self.errors


class Written(NamedTuple):
    """What was made of some rows: bytes for the file, and counts."""

    data: bytes
    tally: Tally


class Names(NamedTuple):
    """The fields that rows get. With a field name of the user's own all of them carry it, so that a file can be
    answered a second time.
    """

    answer: str
    thought: str
    stopped: str
    valid: str
    error: str

    @classmethod
    def of(cls, settings: BatchSettings) -> "Names":
        """The names that the settings ask for."""
        before = "" if settings.field == "answer" else f"{settings.field}_"
        return cls(settings.field, *(f"{before}{name}" for name in ("thought", "stopped", "valid", "error")))

    def used(self, *, parse_json: bool, thinks: bool) -> tuple[str, ...]:
        """Those that are written, in order."""
        more = [*([self.thought] if thinks else []), self.stopped, *([self.valid] if parse_json else [])]
        return (self.answer, *more, self.error)

    def refuse_taken(self, fields: Sequence[str], settings: BatchSettings, *, thinks: bool) -> None:
        """Raises DataError where a row has a field of such a name already."""
        taken = [name for name in self.used(parse_json=settings.parse_json, thinks=thinks) if name in fields]
        if taken:
            raise DataError(
                f"{settings.rows}: the rows have a field {taken[0]!r} already; expected a free name for what is "
                "written. Give another with --field, such as --field predicted."
            )


class Writer:
    """Makes lines of rows and their answers.

    `columns` are the names of all fields of the rows, in order, for the header of a table. `keeps` is whether a value
    keeps the schema; None asks for none. `thinks`: what the model thought is a field too. Raises DataError where the
    rows have a field of a name that is written.
    """

    def __init__(
        self,
        settings: BatchSettings,
        columns: Sequence[str],
        keeps: Callable[[Any], bool] | None = None,
        *,
        thinks: bool = False,
    ) -> None:
        self._names = Names.of(settings)
        self._names.refuse_taken(columns, settings, thinks=thinks)
        self._thinks = thinks
        self._parse_json = settings.parse_json
        self._keeps = keeps
        self._columns = (*columns, *self._names.used(parse_json=settings.parse_json, thinks=thinks))
        self._is_table = settings.is_table

    def header(self) -> bytes:
        """What comes before the first row: the names of a table's columns."""
        return _csv_line(self._columns) if self._is_table else b""

    def answered(self, fields: Mapping[str, Any], said: Said) -> Written:
        """A row with its answer. A JSON answer becomes a value; any other stays text and is counted as invalid."""
        names, stopped = self._names, said.stopped
        tally = Tally(rows=1, cut=int(not stopped))
        thought = {names.thought: said.thought} if self._thinks else {}
        if not self._parse_json:
            return Written(self._line(fields, {names.answer: said.text, **thought, names.stopped: stopped}), tally)
        # a model outside a run may think unasked: what it says to itself is no part of the value
        answer = read_json(answer_behind_thought(said.text))
        plain = answer.plain
        readable = answer.has_value and _is_finite(plain)
        value = plain if readable else said.text
        valid = readable and (self._keeps is None or self._keeps(value))
        tally += Tally(invalid=int(not valid), fenced=int(readable and not answer.is_json))
        return Written(
            self._line(fields, {names.answer: value, **thought, names.stopped: stopped, names.valid: valid}), tally
        )

    def refused(self, fields: Mapping[str, Any], error: str) -> Written:
        """A row that could not be answered, and why."""
        return Written(self._line(fields, {self._names.error: error}), Tally(rows=1, errors=1))

    def _line(self, fields: Mapping[str, Any], more: Mapping[str, Any]) -> bytes:
        if self._is_table:
            values = {**fields, **more}
            return _csv_line([_cell(values.get(name)) for name in self._columns])
        values = {str(name): _portable(value) for name, value in {**fields, **more}.items()}
        try:
            return (json.dumps(values, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # half a surrogate pair in a field: only its escape can be written
            return (json.dumps(values) + "\n").encode()


def _portable(value: Any) -> Any:
    """A value that JSON can hold, whatever library read it: dates and decimals as text, numbers that are none as null.

    Bytes become text as far as they are UTF-8.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _portable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, date | time):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _cell(value: Any) -> str:
    """A value as a cell of a table: text as it is, nothing for null, all else as JSON."""
    value = _portable(value)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _csv_line(cells: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode(errors="backslashreplace")


def _is_finite(value: Any) -> bool:
    """Whether a value's numbers are all within a float's range, so that they can be written again."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
