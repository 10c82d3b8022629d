"""Measures subjects on the same held-out items: one reference, then everything that is compared with it.

Every observation is a stage of its own (`export.stage`), keyed by the artifact's hash and the items', so that a file
that did not change is not run again. Which subjects there are and what the numbers mean is decided elsewhere.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from export.artifacts import EngineName, sha256_of_file
from export.checks._base import Check, Measurement
from export.engines._base import Subject
from export.frozen import Frozen
from export.hardware import package_versions
from export.observe import Items, Observed, Request, observe
from export.stage import run_stage, version_inputs

_ENGINE_PACKAGES: dict[EngineName, tuple[str, ...]] = {
    "hf": ("torch", "transformers", "peft", "gptqmodel"),
    "llama_cpp": ("llama-cpp-python",),
}


class Candidate(Frozen):
    """A subject to measure, the hash of what it is made of, and the bytes of its weights."""

    subject: Subject
    sha256: str
    size_bytes: int


def measure(
    candidates: Sequence[Candidate],
    items: Items,
    checks: Sequence[Check],
    folder: Path,
    *,
    threads: int,
    say: Callable[[str], None],
) -> dict[str, tuple[Measurement, ...]]:
    """Each subject's measurements, by its name. The first candidate is the reference of all others."""
    folder.mkdir(parents=True, exist_ok=True)
    items_path = folder / "items.json"
    items_path.write_text(items.model_dump_json(), encoding="utf-8")
    items_sha256 = sha256_of_file(items_path)
    reference: Observed | None = None
    measured = {}
    for candidate in candidates:
        inputs = {
            "artifact": candidate.sha256,
            "items": items_sha256,
            "reference": None if reference is None else candidates[0].sha256,
            "threads": threads,
            **version_inputs(package_versions(_ENGINE_PACKAGES[candidate.subject.engine])),
        }
        observed = _observed(candidate, items_path, reference, folder, inputs, threads, say)
        reference = reference or observed
        seen = observed.read()
        measured[candidate.subject.name] = tuple(m for check in checks for m in check.measure(items.items, seen))
    return measured


def _observed(
    candidate: Candidate,
    items_path: Path,
    reference: Observed | None,
    folder: Path,
    inputs: dict[str, str | int | None],
    threads: int,
    say: Callable[[str], None],
) -> Observed:
    subject = candidate.subject

    def work(out: Path) -> Observed:
        return observe(
            Request(
                subject=subject,
                items=items_path,
                reference=None if reference is None else reference.reference,
                out=out,
                size_bytes=candidate.size_bytes,
                threads=threads,
            )
        )

    return run_stage(folder / subject.name.replace("/", "-"), f"check {subject.name}", inputs, work, Observed, say)
