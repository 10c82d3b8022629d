"""What a model folder is, dense or GPTQ, compared with its reference: read with its own tokenizer and template."""

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from export.artifacts import read_model_config
from export.errors import ModelError
from export.identity._reading import (
    Read,
    Reference,
    ids_of,
    rendered_by,
    template_finding,
    template_of,
    token_ids_finding,
    token_texts,
)
from export.identity._settings import folder_settings_finding
from export.identity._stops import folder_stops_finding
from export.identity._tensors import folder_weights_finding
from export.identity._vocabulary import added_finding, plain_text_ids, vocabulary_finding
from export.identity._weights import folder_tied_finding, folder_types_finding
from export.identity.finding import Finding
from export.loading import open_tokenizer
from export.promises import Promise
from export.quantization_record import RECORD, QuantizationRecord
from export.readers.folder import PACKED, FolderTensors, open_tensors, refuse_broken_settings
from export.weights import weight_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

_MATRICES = ("embed_tokens.weight", "lm_head.weight")
_INDEX = "model.safetensors.index.json"


def folder_findings(
    subject: str,
    path: Path,
    reference: Reference,
    held_out: "Sequence[str]",
    promise: Promise,
    *,
    compare_weights: bool,
) -> "tuple[Finding, ...]":
    """Everything that is looked at in a folder. Raises ModelError when it cannot be opened or is not complete.

    `held_out` are the hashes of the held-out rows, of which none may be among the rows GPTQ was calibrated on.
    """
    config = read_model_config(path)
    refuse_broken_settings(config)
    _refuse_cut_short(path)
    tokenizer = open_tokenizer(path)
    read = _read(tokenizer, reference)
    with open_tensors(path) as tensors:
        _refuse_missing_shards(path, tensors)
        rows = {name: tensors.shape(name)[0] for name in tensors.names if name.endswith(_MATRICES)}
        return (
            template_finding(subject, read, reference),
            token_ids_finding(subject, read, reference),
            folder_stops_finding(subject, path, tokenizer, reference),
            added_finding(subject, plain_text_ids(tokenizer), reference),
            vocabulary_finding(subject, token_texts(tokenizer), rows, reference, rows_are_tokens=False),
            folder_types_finding(subject, tensors, reference, promise.bits),
            folder_tied_finding(subject, tensors, config, reference),
            folder_settings_finding(subject, path, reference),
            *([folder_weights_finding(subject, tensors, reference)] if compare_weights else []),
            *_calibration_finding(subject, path, tensors, held_out),
        )


def _read(tokenizer: "PreTrainedTokenizerBase", reference: Reference) -> Read:
    template = template_of(tokenizer)
    texts = rendered_by(tokenizer, template, reference)
    of_cases = tuple(ids_of(tokenizer, seen.text) for seen in texts)
    return Read(template, texts, of_cases, tuple(ids_of(tokenizer, row.text) for row in reference.rows))


def _refuse_cut_short(path: Path) -> None:
    try:
        weight_facts(path)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, struct.error) as error:
        raise ModelError(f"a safetensors file in {path} is damaged: {error}. Copy the folder again.") from error


def _refuse_missing_shards(path: Path, tensors: FolderTensors) -> None:
    """The index of a model in several files names every tensor: those that are not there lie in a missing file."""
    index = path / _INDEX
    if not index.is_file():
        return
    try:
        listed: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index} cannot be read: {error}. Copy the folder again.") from error
    missing = {name: file for name, file in listed.items() if name not in tensors}
    if missing:
        files = ", ".join(sorted({str(file) for file in missing.values()}))
        raise ModelError(f"{len(missing)} tensors are missing from {path}; they should be in {files}. Copy it again.")


def _calibration_finding(
    subject: str, path: Path, tensors: FolderTensors, held_out: "Sequence[str]"
) -> "tuple[Finding, ...]":
    """Whether held-out rows were among those that GPTQ was calibrated on; nothing for a folder that is not packed."""
    if not any(name.endswith(PACKED) for name in tensors.names):
        return ()
    recorded = _recorded_rows(path)
    expected = f"none of the {len(held_out)} held-out rows"
    if recorded is None or not held_out:
        note = f"{RECORD} lists no row's hash" if recorded is None else "there are no held-out rows to look for"
        found, ok = "not recorded" if recorded is None else f"{len(recorded)} rows", True
    else:
        seen = len(set(held_out) & set(recorded))
        ok, note = seen == 0, "a row is recognised by the hash of its token ids: one that was changed would not be"
        found = f"{seen} of the {len(held_out)} held-out rows among the {len(recorded)} it was calibrated on"
    finding = Finding(what="calibration rows", subject=subject, ok=ok, found=found, expected=expected, note=note)
    return (finding,)


def _recorded_rows(path: Path) -> tuple[str, ...] | None:
    """The hashes of the rows that the folder was calibrated on; None for one that was not made here."""
    record = path / RECORD
    if not record.is_file():
        return None
    try:
        rows = QuantizationRecord.model_validate_json(record.read_text(encoding="utf-8")).calibration.rows_sha256
    except (ValidationError, ValueError):
        return None
    return rows or None
