"""What `fieldtune batch` is asked to do, checked before anything is read or loaded."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from export.errors import RecipeError
from export.frozen import Frozen

KINDS = (".jsonl", ".csv")


class BatchSettings(Frozen):
    """A model, rows, a place for the answers, and how they are asked for. Raises RecipeError for what cannot be.

    `template` or `prompt` says how a row asks; with neither, the model's run or the rows' form does. `system` None
    leaves the system prompt to the template and the run, an empty one removes it. `parse_json` reads answers as JSON,
    with numbers as doubles as most readers have them (RFC 8259, section 6); `json_schema` is a file with the schema
    that they must keep.
    """

    model: Path
    rows: Path
    out: Path
    template: str | None = None
    prompt: str | None = None
    system: str | None = None
    max_new_tokens: int = 256
    limit: int | None = None
    field: str = "answer"
    parse_json: bool = False
    json_schema: Path | None = None
    restart: bool = False

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.out.suffix.lower() not in KINDS:
            found = self.out.suffix or "no ending"
            raise RecipeError(f"--out {self.out}: found {found}; expected {' or '.join(KINDS)}. Name the file so.")
        if not self.out.absolute().parent.is_dir():
            raise RecipeError(f"--out {self.out}: there is no folder {self.out.parent}. Make it, or name another.")
        out, rows = self.out.resolve(), self.rows.resolve()
        if out == rows or rows in out.parents:
            raise RecipeError(
                f"--out {self.out} is, or lies in, what --in reads; expected another place. The answers would be read "
                "as rows."
            )
        if self.json_schema is not None and not self.parse_json:
            raise RecipeError("--schema was given without --json; a schema is kept by values. Add --json.")
        if not self.field.strip():
            raise RecipeError("--field is empty; expected a name for the field of the answers, such as --field label.")
        return self

    @property
    def is_table(self) -> bool:
        """Whether the answers go to a CSV table."""
        return self.out.suffix.lower() == ".csv"
