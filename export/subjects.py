"""What lies at a path: which engine runs it, and what it is to the byte. For files made here and for any others.

Nothing is loaded. What a subject is worth is measured by `export.measure`, and whether it is what it should be is
looked at by `export.identity`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from export.artifacts import (
    QuantizedModel,
    sha256_of_file,
    sha256_of_folder,
    sha256_of_json,
    size_of_folder_bytes,
)
from export.engines import Subject
from export.errors import ModelError
from export.measure import Candidate
from export.report import SubjectRecord
from export.stage import read_manifest
from export.weights import WeightFacts, gguf_facts, weight_facts

# Models that a message names; a folder may hold any number.
_NAMED = 8
_CONFIGS = ("config.json", "adapter_config.json")


class Described(NamedTuple):
    """A subject for the engines, and its entry in the report."""

    candidate: Candidate
    record: SubjectRecord


def subject_at(path: Path, name: str | None = None) -> Subject:
    """The subject that `path` names: a .gguf file, a folder that holds one, a model folder, or an adapter's.

    Raises ModelError when it is none of these, or an adapter whose base is not on this machine.
    """
    if path.is_file() and path.suffix == ".gguf":
        return Subject(name=name or path.stem, engine="llama_cpp", path=path)
    if (path / "adapter_config.json").is_file():
        return _adapter(path, name or path.name)
    if (path / "config.json").is_file():
        return Subject(name=name or path.name, engine="hf", path=path)
    inside = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(inside) == 1:
        return Subject(name=name or inside[0].stem, engine="llama_cpp", path=inside[0])
    raise ModelError(_no_subject(path, inside))


def _no_subject(path: Path, files: Sequence[Path]) -> str:
    """What is said of a path that is no model: what was found, and where models are, if there are any below it."""
    expected = "a .gguf file, a model folder (config.json), a GPTQ folder or an adapter folder (adapter_config.json)"
    if files:
        return f"{path} holds {len(files)} .gguf files; expected one model. Name one of them: {_listed(files)}."
    if not path.is_dir():
        return f"{path} is {'a file of another kind' if path.exists() else 'not there'}: expected {expected}."
    # a run's folder, its export folder, or anybody's folder of models
    patterns = (f"{depth}{name}" for depth in ("*/", "*/*/") for name in (*_CONFIGS, "*.gguf"))
    found = [file if file.suffix == ".gguf" else file.parent for pattern in patterns for file in path.glob(pattern)]
    if found:
        return f"{path} holds no config.json of its own, and is no model. Name one that lies in it: {_listed(found)}."
    return f"{path} is a folder that holds neither config.json nor a .gguf file: expected {expected}."


def _listed(places: Sequence[Path]) -> str:
    shown = sorted(set(places))
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(map(str, shown[:_NAMED])) + more


def _adapter(path: Path, name: str) -> Subject:
    """An adapter beside the base it was trained on, held as it was held in training."""
    file = path / "adapter_config.json"
    try:
        base = Path(str(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""))
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file} is not an adapter's config ({error}). Train or fetch the adapter again.") from None
    if not (base / "config.json").is_file():
        raise ModelError(f"the adapter {path} was trained on {base}, which is not on this machine.")
    manifest = read_manifest(path)
    compute = manifest.result["dtype"] if manifest and manifest.result.get("four_bit_base") else None
    return Subject(name=name, engine="hf", path=base, adapter=path, four_bit_compute=compute)


def describe(subject: Subject, *, ships: bool, shown_as: str, sha256: str | None = None) -> Described:
    """A subject's hash, bytes and types. `shown_as` is its path in the report; `sha256` its hash where it is known.

    One that ships and cannot be read is described by its bytes alone: that it is broken is for the gate to find.
    Raises ModelError when the weights of any other cannot be read.
    """
    if subject.adapter is not None:
        return _describe_attached(subject, subject.adapter, ships=ships, shown_as=shown_as, base_sha256=sha256)
    known = sha256 or (sha256_of_file if subject.path.is_file() else sha256_of_folder)(subject.path)
    try:
        facts = gguf_facts(subject.path) if subject.engine == "llama_cpp" else weight_facts(subject.path)
    except ModelError:
        if not ships:
            raise
        facts = WeightFacts(size_bytes=_size_bytes(subject.path), weight_bytes=0, weights=0, tensor_types={})
    return _described(subject, facts, known, ships=ships, shown_as=shown_as)


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else size_of_folder_bytes(path)


def describe_made(model: QuantizedModel, *, shown_as: str) -> Described:
    """An artifact that was made here: its maker knows what it is, and what it could not do as it was asked."""
    subject = Subject(name=model.subject, engine=model.engine, path=model.path)
    record = SubjectRecord(
        name=model.subject,
        path=shown_as,
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        bits_per_weight=model.bits_per_weight,
        engine=model.engine,
        tensor_types=model.tensor_types,
        fallbacks=model.fallbacks,
        tools=model.tools,
        importance=model.importance,
    )
    candidate = Candidate(subject=subject, sha256=model.sha256, size_bytes=model.size_bytes, ships=True)
    return Described(candidate, record)


def shown_path(path: Path, folder: Path) -> str:
    """A path as a report in `folder` shows it: relative where it lies inside, so that the folder can be moved.

    Any other is absolute: what a report shows is looked for from its folder, and not from where it was asked for.
    """
    inside = path.resolve().is_relative_to(folder.resolve())
    return path.resolve().relative_to(folder.resolve()).as_posix() if inside else str(path.absolute())


def _describe_attached(
    subject: Subject, adapter: Path, *, ships: bool, shown_as: str, base_sha256: str | None
) -> Described:
    """An adapter beside its base; bytes and weights are those of both on disk, types the adapter's own."""
    own, below = weight_facts(adapter, "adapter_model.safetensors"), weight_facts(subject.path)
    both = WeightFacts(
        size_bytes=own.size_bytes + below.size_bytes,
        weight_bytes=own.weight_bytes + below.weight_bytes,
        weights=own.weights + below.weights,
        tensor_types=own.tensor_types,
    )
    known = sha256_of_json([sha256_of_folder(adapter), base_sha256 or sha256_of_folder(subject.path)])
    return _described(subject, both, known, ships=ships, shown_as=shown_as)


def _described(subject: Subject, facts: WeightFacts, sha256: str, *, ships: bool, shown_as: str) -> Described:
    record = SubjectRecord(
        name=subject.name,
        path=shown_as,
        sha256=sha256,
        size_bytes=facts.size_bytes,
        bits_per_weight=facts.bits_per_weight,
        engine=subject.engine,
        tensor_types=facts.tensor_types,
    )
    candidate = Candidate(subject=subject, sha256=sha256, size_bytes=facts.size_bytes, ships=ships)
    return Described(candidate, record)
