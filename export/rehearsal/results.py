"""What a rehearsal found, as it is written and shown. Nothing is measured here."""

from typing import Literal

from pydantic import Field

from export.frozen import Frozen
from export.rehearsal.limits import Limit
from export.verdict import Verdict


class Mean(Frozen):
    """A mean with its 90 % interval over rows, each of which may have been asked several times; and the largest.

    The interval of a single row is None: there is none.
    """

    value: float
    interval: tuple[float, float] | None
    largest: float
    rows: int
    answers: int


class Share(Frozen):
    """A count out of `n`, and the 90 % Wilson interval of the share."""

    count: int
    n: int
    interval: tuple[float, float]


class AgainstMerged(Frozen):
    """Rows that both the bundle and the merged model answered: right answers of each, and the difference of the shares.

    The interval is Newcombe's paired one at 90 %.
    """

    rows: int
    right: int
    merged_right: int
    difference: float
    interval: tuple[float, float]


class Growth(Frozen):
    """How fast resident memory grew in the soak, and the 90 % interval (see `figures.growth`).

    `tolerated_bytes_per_hour` passes: one hundredth of the limit. `verdict` is None for a soak too short to judge.
    """

    bytes_per_hour: float
    interval: tuple[float, float]
    tolerated_bytes_per_hour: float
    blocks: int
    seconds: float
    verdict: Verdict | None


class Restart(Frozen):
    """A start after something went wrong: where the prompt's state came from, and whether the answer was as before."""

    after: Literal["kill -9 while it answered", "a damaged state file", "kill -9 while it started"]
    state: str
    seconds: float
    same_answer: bool


class Rehearsal(Frozen):
    """A rehearsal, from unpacking to the last restart. What was not reached is None; `problems` say why, in words."""

    bundle: str
    bundle_sha256: str
    limit: Limit
    machine: str
    busy_processors: float = Field(default=0.0, description="Processors that programs used before it began.")
    versions: dict[str, str]
    verdict: Verdict
    problems: tuple[str, ...]
    start_seconds: float | None = None
    state: str | None = None
    peak_resident_bytes: int | None = None
    peak_address_bytes: int | None = None
    soak_seconds: float | None = None
    rows: int = 0
    answers: int = 0
    first_token_seconds: Mean | None = None
    tokens_per_second: Mean | None = None
    schema_valid: Share | None = Field(default=None, description="Rows of which every answer kept the schema.")
    schema_checked: int = Field(default=0, description="Answers that were held to the schema: those with a text.")
    wrong_schema: int | None = None
    not_taken: Share | None = None
    not_taken_because: tuple[str, ...] = ()
    changed_answers: int | None = Field(default=None, description="Answers that differ from the row's first one.")
    right: Share | None = None
    refused_right: Share | None = Field(
        default=None, description="Of the right answers those that the client did not take; None where none was right."
    )
    wrong_actions: Share | None = Field(
        default=None, description="Actions that were given though they are not the row's."
    )
    against_merged: AgainstMerged | None = None
    growth: Growth | None = None
    restarts: tuple[Restart, ...] = ()
    said: tuple[str | None, ...] = Field(default=(), description="Each row's first answer, as the model wrote it.")
