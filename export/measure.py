"""Measures subjects on the same held-out items: one reference, then everything that is compared with it.

Every observation is a stage of its own (`export.stage`), keyed by the artifact's hash and the items', so that a file
that did not change is not run again. Which subjects there are and what the numbers mean is decided elsewhere.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from export.artifacts import EngineName, sha256_of_file, write_atomically
from export.checks._base import Check, Measurement
from export.engines._base import Subject
from export.frozen import Frozen
from export.hardware import environment, package_versions
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
    tokenizer: Path,
    threads: int,
    say: Callable[[str], None],
) -> dict[str, tuple[Measurement, ...]]:
    """Each subject's measurements, by its name. The first candidate is the reference of all others.

    `tokenizer` is the folder whose tokenizer decodes what is generated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items_path = folder / "items.json"
    write_atomically(items_path, items.model_dump_json())
    items_sha256 = sha256_of_file(items_path)
    machine = environment()  # speed and memory are this machine's: on another one they are measured again
    observed: dict[str, Observed] = {}
    for candidate in candidates:
        reference = observed.get(candidates[0].subject.name)
        request = _request(candidate, items_path, tokenizer, reference, threads)
        inputs = {
            "artifact": candidate.sha256,
            "items": items_sha256,
            "reference": None if reference is None else candidates[0].sha256,
            "threads": threads,
            "machine": machine.identity,
            **version_inputs(package_versions(_ENGINE_PACKAGES[candidate.subject.engine])),
        }
        name = candidate.subject.name
        place = folder / name.replace("/", "-")
        observed[name] = run_stage(place, f"check {name}", inputs, partial(observe, request, say=say), Observed, say)
    records = {name: done.read() for name, done in observed.items()}
    return {
        name: tuple(m for check in checks for m in check.measure(items.items, seen)) for name, seen in records.items()
    }


def _request(candidate: Candidate, items: Path, tokenizer: Path, reference: Observed | None, threads: int) -> Request:
    return Request(
        subject=candidate.subject,
        items=items,
        tokenizer=tokenizer,
        reference=None if reference is None else reference.reference,
        size_bytes=candidate.size_bytes,
        threads=threads,
    )
