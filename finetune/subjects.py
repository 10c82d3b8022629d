"""What a run measures, in order (merged, the reference, then base, adapter and every export), and on what rows."""

import random
from collections.abc import Sequence
from pathlib import Path

from export.artifacts import ModelFolder, QuantizedModel, sha256_of_folder, sha256_of_json
from export.chat import Conversation, encode, encode_prompt
from export.checks._base import Item
from export.engines._base import Subject
from export.errors import DataError
from export.frozen import Frozen
from export.measure import Candidate
from export.observe import Items
from export.report import SubjectRecord
from export.weights import weight_facts
from finetune.base_model import BaseModelSource, load_tokenizer
from finetune.data import Splits
from finetune.methods._base import Adapter
from finetune.recipe import CheckSettings


class MeasuredSubject(Frozen):
    """A subject for the engines, and its entry in the report."""

    candidate: Candidate
    record: SubjectRecord


def subjects_of_run(
    base: BaseModelSource, adapter: Adapter, merged: ModelFolder, exports: Sequence[QuantizedModel], run_folder: Path
) -> tuple[MeasuredSubject, ...]:
    """Every subject of a run, the reference first."""
    return (
        _dense("merged", merged.folder, sha256_of_folder(merged.folder), run_folder),
        _dense("base", base.path, base.sha256, run_folder),
        _attached(adapter, base, run_folder),
        *(_exported(model, run_folder) for model in exports),
    )


def held_out_items(splits: Splits, merged: ModelFolder, settings: CheckSettings, *, seed: int, thinking: bool) -> Items:
    """The held-out rows as token ids: at most `settings.rows` of them, drawn with the recipe's seed."""
    tokenizer = load_tokenizer(merged.folder)
    conversations = list(splits.conversations("held_out"))
    if not conversations:
        raise DataError("the held-out split is empty: there is nothing to measure on. Raise data.held_out_share.")
    chosen = random.Random(seed).sample(conversations, min(settings.rows, len(conversations)))

    def item(conversation: Conversation) -> Item:
        encoded = encode(tokenizer, conversation, thinking=thinking)
        return Item(
            ids=encoded.ids,
            scored=encoded.scored_positions,
            prompt=encode_prompt(tokenizer, conversation.prompt, thinking=thinking),
            answer=conversation.answer,
        )

    return Items(
        items=tuple(item(conversation) for conversation in chosen),
        vocabulary_size=len(tokenizer),
        max_new_tokens=settings.max_new_tokens,
    )


def _dense(name: str, path: Path, sha256: str, run_folder: Path) -> MeasuredSubject:
    facts = weight_facts(path)
    return MeasuredSubject(
        candidate=Candidate(
            subject=Subject(name=name, engine="hf", path=path), sha256=sha256, size_bytes=facts.size_bytes
        ),
        record=SubjectRecord(
            name=name,
            path=shown_path(path, run_folder),
            sha256=sha256,
            size_bytes=facts.size_bytes,
            bits_per_weight=facts.bits_per_weight,
            engine="hf",
            tensor_types=facts.tensor_types,
        ),
    )


def _attached(adapter: Adapter, base: BaseModelSource, run_folder: Path) -> MeasuredSubject:
    """The adapter beside its base, which is held in NF4 when it was trained so; bytes are those of both on disk."""
    own, below = weight_facts(adapter.folder, "adapter_model.safetensors"), weight_facts(base.path)
    sha256 = sha256_of_json([sha256_of_folder(adapter.folder), base.sha256])
    compute = adapter.dtype if adapter.four_bit_base else None
    subject = Subject(name="adapter", engine="hf", path=base.path, adapter=adapter.folder, four_bit_compute=compute)
    size_bytes = own.size_bytes + below.size_bytes
    return MeasuredSubject(
        candidate=Candidate(subject=subject, sha256=sha256, size_bytes=size_bytes),
        record=SubjectRecord(
            name="adapter",
            path=shown_path(adapter.folder, run_folder),
            sha256=sha256,
            size_bytes=size_bytes,
            bits_per_weight=size_bytes * 8 / (own.weights + below.weights),
            engine="hf",
            tensor_types=own.tensor_types,
        ),
    )


def _exported(model: QuantizedModel, run_folder: Path) -> MeasuredSubject:
    return MeasuredSubject(
        candidate=Candidate(
            subject=Subject(name=model.subject, engine=model.engine, path=model.path),
            sha256=model.sha256,
            size_bytes=model.size_bytes,
        ),
        record=SubjectRecord(
            name=model.subject,
            path=shown_path(model.path, run_folder),
            sha256=model.sha256,
            size_bytes=model.size_bytes,
            bits_per_weight=model.bits_per_weight,
            engine=model.engine,
            tensor_types=model.tensor_types,
            fallbacks=model.fallbacks,
            tools=model.tools,
        ),
    )


def shown_path(path: Path, run_folder: Path) -> str:
    """A path as a report shows it: relative to the run folder where it lies inside, so that the folder can be moved."""
    inside = path.resolve().is_relative_to(run_folder.resolve())
    return path.resolve().relative_to(run_folder.resolve()).as_posix() if inside else str(path)
