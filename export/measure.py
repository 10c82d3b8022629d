"""Measures subjects on the same held-out items: one reference, then everything that is compared with it.

Every observation is a stage of its own (`export.stage`), keyed by the artifact's hash and the items', so that a file
that did not change is not run again. Which subjects there are and what the numbers mean is decided elsewhere.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from export.artifacts import EngineName, sha256_of_file, sha256_of_json, write_atomically
from export.checks import Check, Items, Measurement, Observation
from export.engines import Subject
from export.errors import EngineError, MachineError
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
        tokenizer_sha256=sha256_of_file(tokenizer / "tokenizer.json"),
        threads=threads,
        machine=environment().identity,  # speed and memory are this machine's: on another one they are measured again
    )
    reference: _Reference | None = None
    records: dict[str, Observation] = {}
    broken: dict[str, str] = {}
    for candidate, place in zip(candidates, _places([c.subject.name for c in candidates], folder), strict=True):
        name = candidate.subject.name
        try:
            observed = _observed(candidate, given, reference, place, say)
        except EngineError as error:
            if isinstance(error, MachineError) or not candidate.ships or reference is None:
                raise
            broken[name] = str(error)
            say(f"{name}: fails, because it could not be run (see below the table)")
            continue
        seen = observed.read()
        if reference is None:
            _require_finite(seen)
            sha256 = sha256_of_file(observed.reference)
            reference = _Reference(path=observed.reference, sha256=sha256, rounding=seen.rounding)
        records[name] = seen.model_copy(update={"reference_rounding": reference.rounding})
    return Measured(
        items=items,
        measurements={n: tuple(m for check in checks for m in check.measure(items, s)) for n, s in records.items()},
        observations=records,
        broken=broken,
    )


class _Reference(Frozen):
    """The stored predictions that every other subject is compared with."""

    path: Path
    sha256: str
    rounding: str


class _Given(Frozen):
    """What every subject is measured with."""

    items: Path
    items_sha256: str
    tokenizer: Path
    tokenizer_sha256: str
    threads: int
    machine: str


def _observed(
    candidate: Candidate, given: _Given, reference: _Reference | None, place: Path, say: Callable[[str], None]
) -> Observed:
    """The candidate's record: the one that is there when nothing it depends on has changed, or a new one."""
    name = candidate.subject.name
    inputs = {
        "artifact": candidate.sha256,
        "items": given.items_sha256,
        "tokenizer": given.tokenizer_sha256,
        "reference": None if reference is None else reference.sha256,
        "threads": given.threads,
        "machine": given.machine,
        **version_inputs(package_versions(("fieldtune", *_ENGINE_PACKAGES[candidate.subject.engine]))),
    }
    request = Request(
        subject=candidate.subject,
        items=given.items,
        tokenizer=given.tokenizer,
        reference=None if reference is None else reference.path,
        size_bytes=candidate.size_bytes,
        threads=given.threads,
    )
    return run_stage(place, f"check {name}", inputs, partial(observe, request, say=say), Observed, say)


def _places(names: Sequence[str], folder: Path) -> list[Path]:
    """A folder of its own for each subject: names that become one without their slashes are told apart."""
    places: list[Path] = []
    for name in names:
        place = folder / name.replace("/", "-")
        places.append(place if place not in places else folder / f"{place.name}-{sha256_of_json(name)[:8]}")
    return places


def _require_finite(reference: Observation) -> None:
    """Raises EngineError for a reference whose predictions are not numbers: nothing can be compared with them."""
    broken = sum(not item.finite for item in reference.items)
    if broken:
        raise EngineError(
            f"the reference {reference.subject} predicts values that are not finite on {broken} of "
            f"{len(reference.items)} rows: nothing can be compared with it. Merge or fetch it again."
        )
