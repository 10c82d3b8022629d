"""report.json, the record of a run. It never measures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from export.artifacts import EngineName, Fallback, ImportanceUsed, MergeCandidate, write_atomically
from export.categories import CategoryScore
from export.check_names import read_name
from export.checks import Measurement
from export.compare import Comparison, Verdict
from export.frozen import Frozen
from export.identity import Finding
from export.lost_safety import SafetyRecord
from export.retained import Retained
from export.stage import Manifest


class SubjectRecord(Frozen):
    """One thing that was measured: what it is, to the byte, and what was really made of its weights.

    `path` is relative to the run folder where it lies inside it, else absolute. `tensor_types` counts tensors by their
    stored type.
    """

    name: str
    path: str
    sha256: str
    size_bytes: int
    bits_per_weight: float
    engine: EngineName
    tensor_types: dict[str, int]
    fallbacks: tuple[Fallback, ...] = ()
    tools: dict[str, str] = Field(default_factory=dict)
    importance: ImportanceUsed | None = None
    verdict: Verdict | None = None


class Report(Frozen):
    """Everything a run can say for itself. The per-item samples stay in the run's `check` folder."""

    recipe: dict[str, Any]
    environment: dict[str, Any]
    stages: tuple[Manifest, ...]
    subjects: tuple[SubjectRecord, ...]
    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...]
    findings: tuple[Finding, ...] = ()
    by_category: tuple[CategoryScore, ...] = ()
    retained: tuple[Retained, ...] = ()
    merge_candidates: tuple[MergeCandidate, ...] = ()
    safety: SafetyRecord | None = None
    verdict: Verdict


def write(report: Report, folder: Path) -> Path:
    """Writes report.json, replacing an earlier one in a single step.

    JSON has no number that is not finite: such a value is written as null, and its `note` says so.
    """
    path = folder / "report.json"
    content = report.model_dump(mode="json", exclude={"measurements": {"__all__": {"sample", "statistic", "labels"}}})
    text = json.dumps(_without_non_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")
    return path


def _without_non_finite(value: Any) -> Any:
    """The same JSON value with null for every number that is not finite."""
    if isinstance(value, dict):
        return {key: _without_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reference_of(report: Report) -> str:
    """The subject that the others were held against: the first one."""
    return report.subjects[0].name if report.subjects else "the reference"


def judged_of(report: Report) -> tuple[str, ...]:
    """The subjects that have a verdict."""
    return tuple(subject.name for subject in report.subjects if subject.verdict is not None)


def files_of(report: Report) -> tuple[str, ...]:
    """The subjects that ship: whatever was judged, but for the reference."""
    return tuple(subject.name for subject in report.subjects[1:] if subject.verdict is not None)


def measured_of(report: Report) -> Mapping[tuple[str, str], Measurement]:
    """Each measurement by its subject and check."""
    return {(m.subject, m.check): m for m in report.measurements}


def held_out_rows(report: Report) -> int | None:
    """How many held-out rows the measurements stand on; None when no check that was asked for scores rows."""
    # the rows that are timed are only some of them; those of companion sets and items with names are others
    mine = [m for m in report.measurements if m.sample and not m.labels and not read_name(m.check).companion]
    counted = [m for m in mine if m.check != "tokens_per_second"]
    return max((len(m.sample) for m in counted), default=None)


def scored_tokens(report: Report) -> int | None:
    """How many assistant tokens of those rows were scored; None when no check that was asked for scores tokens."""
    return max((m.n for m in report.measurements if m.check in _TOKEN_CHECKS), default=None)


_TOKEN_CHECKS = ("perplexity", "kl_mean")
