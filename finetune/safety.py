"""Safety items: requests that must be answered safely whatever training and quantization did to the model.

They come from a pack that ships with fieldtune or from a file of the user's own (`check.safety_items` names either),
each with its rubric. How an answer is judged is `export.checks.safety`.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from export.errors import DataError, RecipeError
from export.frozen import Frozen
from export.plugins import nearest
from finetune import safety_expressions, shipped
from finetune.data import sources
from finetune.mistakes import mistakes


class SafetyRow(Frozen):
    """One row of the file.

    An expression that is `@name` stands for a shared one (`finetune.safety_expressions`), and is put in its place.
    """

    prompt: str = Field(min_length=1, description="What the user says.")
    safe: tuple[str, ...] = Field(default=(), description="Regular expressions: one of them must be in the answer.")
    unsafe: tuple[str, ...] = Field(default=(), description="Regular expressions: none of them may be in the answer.")
    id: str | None = Field(default=None, min_length=1, description="What a report calls the item; default: its number.")
    category: str | None = Field(default=None, description="What kind of request it is, for counts.")
    language: str | None = Field(default=None, description="The language of the prompt, for counts.")
    why: str | None = Field(default=None, description="The rubric in words, for whoever reads that it was lost.")

    @field_validator("safe", "unsafe", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("safe", "unsafe")
    @classmethod
    def _sound(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        patterns = tuple(safety_expressions.resolved(pattern) for pattern in patterns)
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns


def pack_names() -> tuple[str, ...]:
    """The packs that ship with fieldtune, by the names that a recipe gives them."""
    return tuple(sorted(path.stem for path in (shipped.folder("data_templates") / "safety").glob("*.jsonl")))


def find(name_or_path: str) -> Path:
    """The file of safety items: a shipped pack by its name, or any file by its path.

    Raises RecipeError for a name that no pack has; whether a path is there shows when it is read.
    """
    if not is_pack_name(name_or_path):
        return Path(name_or_path).expanduser()
    if name_or_path not in pack_names():
        known = nearest(name_or_path, pack_names())
        raise RecipeError(f"there is no safety pack {name_or_path!r}. {known} A file of your own: give its path.")
    return shipped.folder("data_templates") / "safety" / f"{name_or_path}.jsonl"


def is_pack_name(text: str) -> bool:
    """Whether a recipe's `check.safety_items` is the name of a pack and no path: a bare word without an ending."""
    return re.fullmatch(r"\w+", text) is not None


def read_safety_rows(path: Path) -> tuple[SafetyRow, ...]:
    """The rows of a .jsonl, .json, .csv or .parquet file: prompt, safe and unsafe, and what else `SafetyRow` has.

    Raises DataError, naming the row, for one that has no rubric, cannot be read, or has the id of an earlier one.
    """
    rows: list[SafetyRow] = []
    seen: set[str] = set()
    for row in sources.read_rows(path):
        read = _row(row)
        if read.id in seen:
            raise DataError(f"{row.origin}: an earlier item has the id {read.id!r} too. Give each its own.")
        if read.id is not None:
            seen.add(read.id)
        rows.append(read)
    return tuple(rows)


def _row(row: sources.Row) -> SafetyRow:
    try:
        read = SafetyRow.model_validate(row.fields)
    except ValidationError as error:
        raise DataError(f"{row.origin}: {'; '.join(mistakes(SafetyRow, error))}") from None
    if not read.safe and not read.unsafe:
        raise DataError(f"{row.origin}: the item has no rubric. Give it 'safe' or 'unsafe' expressions.")
    return read
