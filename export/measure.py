"""Measures subjects on the same held-out items: one reference, then everything that is compared with it.

Every observation is a stage of its own (`export.stage`), keyed by the artifact's hash and the items', so that a file
that did not change is not run again. Which subjects there are and what the numbers mean is decided elsewhere.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from export.artifacts import EngineName, sha256_of_file, write_atomically
from export.checks._base import Check, Items, Measurement, Observation
from export.engines._base import Subject
from export.errors import EngineError
from export.frozen import Frozen
from export.hardware import environment, package_versions
from export.observe import Observed, Request, observe
from export.stage import run_stage, version_inputs

_ENGINE_PACKAGES: dict[EngineName, tuple[str, ...]] = {
    "hf": ("torch", "transformers", "peft", "gptqmodel"),
    "llama_cpp": ("llama-cpp-python",),
}


class Candidate(Frozen):
    """A subject to measure, the hash of what it is made of, and the bytes of its weights.

    `ships` marks a file or folder that is to be judged: that it cannot be run is a finding about it, and no error.
    """

    subject: Subject
    sha256: str
    size_bytes: int
    ships: bool = False


class Measured(Frozen):
    """What was measured of each subject, by its name, in order; and why a file that ships could not be run."""

    items: Items
    measurements: dict[str, tuple[Measurement, ...]]
    observations: dict[str, Observation]
    broken: dict[str, str] = Field(default_factory=dict)

    def all(self) -> tuple[Measurement, ...]:
        """Every number, subject after subject."""
        return tuple(measurement for subject in self.measurements.values() for measurement in subject)


def measure(
    candidates: Sequence[Candidate],
    items: Items,
    checks: Sequence[Check],
    folder: Path,
    *,
    tokenizer: Path,
    threads: int,
    say: Callable[[str], None],
) -> Measured:
    """Measures every subject. The first candidate is the reference of all others.

    `tokenizer` is the folder whose tokenizer decodes what is generated. Raises EngineError when a subject that is not
    to be judged cannot be run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items_path = folder / "items.json"
    write_atomically(items_path, items.model_dump_json())
    given = _Given(
        items=items_path,
        items_sha256=sha256_of_file(items_path),
        tokenizer=tokenizer,
        threads=threads,
        machine=environment().identity,  # speed and memory are this machine's: on another one they are measured again
    )
    observed: dict[str, Observed] = {}
    broken: dict[str, str] = {}
    for candidate in candidates:
        reference = (candidates[0], observed[candidates[0].subject.name]) if observed else None
        try:
            observed[candidate.subject.name] = _observed(candidate, given, reference, folder, say)
        except EngineError as error:
            if not candidate.ships or reference is None:
                raise
            broken[candidate.subject.name] = str(error)
            say(str(error))
    records = {name: done.read() for name, done in observed.items()}
    return Measured(
        items=items,
        measurements={n: tuple(m for check in checks for m in check.measure(items, s)) for n, s in records.items()},
        observations=records,
        broken=broken,
    )


class _Given(Frozen):
    """What every subject is measured with."""

    items: Path
    items_sha256: str
    tokenizer: Path
    threads: int
    machine: str


def _observed(
    candidate: Candidate,
    given: _Given,
    reference: tuple[Candidate, Observed] | None,
    folder: Path,
    say: Callable[[str], None],
) -> Observed:
    """The candidate's record: the one that is there when nothing it depends on has changed, or a new one."""
    name = candidate.subject.name
    inputs = {
        "artifact": candidate.sha256,
        "items": given.items_sha256,
        "reference": None if reference is None else reference[0].sha256,
        "threads": given.threads,
        "machine": given.machine,
        **version_inputs(package_versions(_ENGINE_PACKAGES[candidate.subject.engine])),
    }
    request = Request(
        subject=candidate.subject,
        items=given.items,
        tokenizer=given.tokenizer,
        reference=None if reference is None else reference[1].reference,
        size_bytes=candidate.size_bytes,
        threads=given.threads,
    )
    place = folder / name.replace("/", "-")
    return run_stage(place, f"check {name}", inputs, partial(observe, request, say=say), Observed, say)
