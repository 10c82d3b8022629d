"""The certificate of a bundle: what was promised of its file, and what was measured, on what and by which versions.

Every figure is copied from the run's report.json, whose hash stands beside them; nothing is measured here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from export.artifacts import sha256_of_file, sha256_of_json
from export.checks import Measurement
from export.engines.llama_cpp import CACHE_TYPE
from export.errors import ExportError
from export.wording.values import Unit, check_name, counted, unit_of, value_text

_BESIDE = ("base", "merged")


class Evidence(NamedTuple):
    """A run's report as it is on disk, its hash, and the name of the subject that is shipped."""

    report: Mapping[str, Any]
    report_sha256: str
    subject: str

    @property
    def record(self) -> Mapping[str, Any]:
        """What the report says the shipped file is."""
        found: Mapping[str, Any] = next(s for s in self.report["subjects"] if s["name"] == self.subject)
        return found


def read_report(path: Path) -> Mapping[str, Any]:
    """A run's report.json. Raises ExportError where there is none, or none that can be read."""
    try:
        report: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        report["subjects"], report["measurements"], report["comparisons"]
    except FileNotFoundError:
        missing = path if path.parent.is_dir() else path.parent
        raise ExportError(
            f"{missing} is not there; expected the report of a finished run. Finish it: fieldtune run RECIPE."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is no report of this version ({error}). Run the check again.") from None
    return report


def evidence(report_path: Path, subject: str) -> Evidence:
    """What a certificate of `subject` stands on."""
    return Evidence(read_report(report_path), sha256_of_file(report_path), subject)


def certificate(
    found: Evidence,
    *,
    name: str,
    accepted_unproven: bool,
    runs_with: Mapping[str, Any],
    schemas: tuple[Any | None, Any | None],
) -> dict[str, Any]:
    """The certificate as JSON. `accepted_unproven`: the bundle's maker took a file that no verdict stands behind.

    `runs_with` is how the bundle runs the file, beside which stands how it was measured. `schemas` are the JSON schema
    that answers were held to when that was, and the one that ships.
    """
    measured_schema, schema = (None if one is None else sha256_of_json(one) for one in schemas)
    report, subject = found.report, found.subject
    shown = (*_BESIDE, subject)
    data = next((s for s in report.get("stages", ()) if s["stage"] == "data"), None)
    environment = dict(report["environment"])
    return {
        "bundle": name,
        "verdict": found.record["verdict"],
        "accepted_unproven": accepted_unproven,
        "file": found.record,
        "measured_with": {"cache_type": CACHE_TYPE, "grammar": False},
        "schema": {"measured_sha256": measured_schema, "shipped_sha256": schema},
        "runs_with": dict(runs_with),
        "promised": [_limit(c) for c in report["comparisons"] if c["after"] == subject and c["limit"] is not None],
        "gate": report["recipe"].get("gate"),
        "measured": [m for m in report["measurements"] if m["subject"] in shown],
        "comparisons": [c for c in report["comparisons"] if c["after"] in (subject, "merged")],
        "findings": [f for f in report.get("findings", ()) if f["subject"] == subject],
        "safety_lost": [s for s in (report.get("safety") or {}).get("lost", ()) if s.get("after") == subject],
        "rows": None if data is None else data["result"],
        "versions": environment.pop("packages", {}),
        "machine": environment,
        "recipe": {"name": report["recipe"].get("name"), "sha256": sha256_of_json(report["recipe"])},
        "report_sha256": found.report_sha256,
    }


def certificate_text(content: Mapping[str, Any]) -> str:
    """The certificate for a reader, in Markdown."""
    from export.bundle.texts import rendered

    shown = {**content, "figures": _figures(content), "limits": _limits(content), "safety": _safety(content)}
    return rendered("certificate.md.jinja", content=shown)


class _Figure(NamedTuple):
    """One check: of the base, of the merged model and of this file; what the file's stands on; the verdict."""

    check: str
    base: str
    merged: str
    here: str
    stands_on: str
    verdict: str


class _Limit(NamedTuple):
    """One limit that the file was held to, in words."""

    check: str
    against: str
    largest_loss: str
    at_its_bound: str
    verdict: str


def _limits(content: Mapping[str, Any]) -> Sequence[_Limit]:
    units = {m["check"]: unit_of(m["unit"]) for m in content["measured"]}
    return [
        _Limit(
            check=check_name(limit["check"]),
            against=limit["before"],
            largest_loss=_loss(limit["limit"], limit["scale"], units.get(limit["check"])),
            at_its_bound=_loss(limit["bound_limit"], limit["scale"], units.get(limit["check"])),
            verdict=limit["verdict"] or "-",
        )
        for limit in content["promised"]
    ]


def _loss(limit: float | None, scale: str, unit: Unit | None) -> str:
    """A limit as the report's sentences have it: points of a share, a factor, or a number in its unit."""
    if limit is None:
        return "-"
    if limit == 0:
        return "none may be lost"
    if scale == "ratio":
        return f"×{limit:.4g}"
    if unit is not None and unit.shown == "%":
        return f"{limit * 100:.3g} points"
    return f"{limit:.3g}" + (f" {unit.shown}" if unit is not None and unit.shown else "")


def _safety(content: Mapping[str, Any]) -> str | None:
    """How many safety items the file answers unsafely; that none was lost says nothing of those."""
    subject = content["file"]["name"]
    found = next((m for m in content["measured"] if (m["subject"], m["check"]) == (subject, "safety")), None)
    if found is None:
        return None
    unsafe = round((1 - found["value"]) * found["n"])
    lost = len(content["safety_lost"])
    return (
        f"Of {found['n']:,} safety items this file answers {unsafe:,} unsafely. A pass says that it lost none which "
        f"the merged model answers safely (it lost {lost:,}), and not that it is safe."
    )


def _limit(comparison: Mapping[str, Any]) -> dict[str, Any]:
    return {key: comparison[key] for key in ("check", "before", "scale", "limit", "bound_limit", "verdict")}


def _figures(content: Mapping[str, Any]) -> Sequence[_Figure]:
    subject = content["file"]["name"]
    by_name = {(m["subject"], m["check"]): m for m in content["measured"]}
    verdicts = {c["check"]: c["verdict"] for c in content["comparisons"] if c["after"] == subject}
    return [
        _Figure(
            check=_named(measured),
            base=_value(by_name.get(("base", check))),
            merged=_value(by_name.get(("merged", check))),
            here=_value(measured),
            stands_on=counted(check, measured["n"]),
            verdict=verdicts.get(check) or "-",
        )
        for (name, check), measured in by_name.items()
        if name == subject
    ]


def _named(measured: Mapping[str, Any]) -> str:
    unit = unit_of(measured["unit"]).shown
    return f"{check_name(measured['check'])}, {unit}" if unit else check_name(measured["check"])


def _value(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "-"
    # report.json has null for what is not finite
    return "not finite" if measured["value"] is None else value_text(Measurement.model_validate(measured))
