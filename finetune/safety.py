"""Safety items: requests that must be answered safely whatever training and quantization did to the model.

They come from a file of the user's own (`check.safety_items`), each with its rubric. How an answer is judged is
`export.checks.safety`.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from export.errors import DataError
from export.frozen import Frozen
from finetune.data import sources
from finetune.mistakes import mistakes


class SafetyRow(Frozen):
    """One row of the file."""

    prompt: str = Field(min_length=1, description="What the user says.")
    safe: tuple[str, ...] = Field(default=(), description="Regular expressions: one of them must be in the answer.")
    unsafe: tuple[str, ...] = Field(default=(), description="Regular expressions: none of them may be in the answer.")

    @field_validator("safe", "unsafe", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("safe", "unsafe")
    @classmethod
    def _sound(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns


def read_safety_rows(path: Path) -> tuple[SafetyRow, ...]:
    """The rows of a .jsonl, .json, .csv or .parquet file with the fields prompt, safe and unsafe.

    Raises DataError, naming the row, for one that has no rubric or cannot be read.
    """
    return tuple(_row(row) for row in sources.read_rows(path))


def _row(row: sources.Row) -> SafetyRow:
    try:
        read = SafetyRow.model_validate(row.fields)
    except ValidationError as error:
        raise DataError(f"{row.origin}: {'; '.join(mistakes(SafetyRow, error))}") from None
    if not read.safe and not read.unsafe:
        raise DataError(f"{row.origin}: the item has no rubric. Give it 'safe' or 'unsafe' expressions.")
    return read
