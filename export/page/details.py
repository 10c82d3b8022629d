"""What the page shows beyond report.json: prompts and answers as text, divergences token by token, losses, layers.

`gather` collects it from what a run has in hand; the rest of the package only reads it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from export.checks import Items, Observation
from export.frozen import Frozen
from export.licence import licence_of
from export.quantization_record import RECORD, QuantizationRecord
from export.report import Report


class LossPoint(Frozen):
    """The loss at a training step: of the training rows, of the validation rows, or of both."""

    step: int
    loss: float | None = None
    valid_loss: float | None = None


class Row(Frozen):
    """One held-out row: what every subject was asked, as it was given to it, and the answer that was expected."""

    prompt: str
    expected: str


class Details(Frozen):
    """What is not in report.json. Every part may be empty: the page then leaves its section out, or says why.

    `answers` and `divergences` hold one entry per row for each subject, by name; a row's divergences are the KL in nats
    of each scored token. `quantization` holds GPTQ's record of each layer, by subject; `licences` the licence that a
    model folder states, by subject.
    """

    rows: tuple[Row, ...] = ()
    answers: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    divergences: dict[str, tuple[tuple[float, ...], ...]] = Field(default_factory=dict)
    losses: tuple[LossPoint, ...] = ()
    quantization: dict[str, QuantizationRecord] = Field(default_factory=dict)
    licences: dict[str, str] = Field(default_factory=dict)


def gather(
    report: Report, items: Items, observations: Mapping[str, Observation], *, tokenizer: Path, folder: Path
) -> Details:
    """The details of a report whose subjects gave `observations` on `items`.

    `tokenizer` is the folder whose tokenizer turns prompts into text; `folder` is the one the subjects' paths are
    relative to. Files that are not there, or not readable as what they should be, are left out.
    """
    paths = {subject.name: folder / subject.path for subject in report.subjects}
    return Details(
        rows=_rows(items, tokenizer),
        answers={name: tuple(item.generated for item in seen.items) for name, seen in observations.items()},
        divergences={
            name: tuple(item.kl for item in seen.items) for name, seen in observations.items() if seen.has_reference
        },
        losses=_losses(report),
        quantization={name: record for name, at in paths.items() if (record := _quantization(at)) is not None},
        licences={name: licence for name, at in paths.items() if (licence := licence_of(at)) is not None},
    )


def _rows(items: Items, tokenizer_folder: Path) -> tuple[Row, ...]:
    # imported here, as in `export.observe`: a page without rows needs no tokenizer
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    return tuple(
        Row(prompt=str(tokenizer.decode(list(item.prompt), skip_special_tokens=False)), expected=item.answer)
        for item in items.items
    )


def _losses(report: Report) -> tuple[LossPoint, ...]:
    """The losses that the training stage recorded; none for subjects that were not trained here."""
    points = [p for stage in report.stages if stage.stage == "train" for p in stage.result.get("losses", ())]
    return tuple(LossPoint(step=p["step"], loss=p.get("loss"), valid_loss=p.get("valid_loss")) for p in points)


def _quantization(folder: Path) -> QuantizationRecord | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return QuantizationRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError):
        return None
