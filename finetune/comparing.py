"""`fieldtune compare`: judges any files against any reference, on any rows, whether or not they were made here.

Here rows become token ids and paths become subjects; what is measured and how it is judged is `export.gate`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from export.chat_tokenizer import load_tokenizer
from export.checks import Items
from export.compare import Gate, compare_against
from export.errors import ModelError, RecipeError
from export.frozen import Frozen
from export.gate import judge
from export.hardware import available_cores, environment
from export.page import write_page
from export.report import Report, write
from export.subjects import Described, describe, shown_path, subject_at
from finetune.data import DataSettings, usable_conversations
from finetune.recipe import CheckSettings, validated
from finetune.subjects import items_of


class ComparisonSettings(Frozen):
    """What `fieldtune compare` does: the parts of a recipe that concern measuring and judging."""

    name: str = Field(default="compare", description="Name of the comparison.")
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seeds the choice of rows and the statistics.")
    thinking: bool = Field(default=False, description="Whether the chat template's thinking mode is on.")
    data: DataSettings = Field(description="The rows.")
    check: CheckSettings = Field(default_factory=CheckSettings, description="Measuring.")
    gate: Gate = Field(default=Gate(), description="How much worse an artifact may be.")


def comparison_settings(rows: str, template: str, overrides: Sequence[str]) -> ComparisonSettings:
    """The settings of a comparison on `rows`, with `a.b=value` overrides. Raises RecipeError with every mistake."""
    given = [f"data.path={json.dumps(rows)}", f"data.template={json.dumps(template)}", *overrides]
    return validated(ComparisonSettings, {}, given, "fieldtune compare")


def compare_files(
    reference: Path,
    artifacts: Sequence[Path],
    settings: ComparisonSettings,
    folder: Path,
    *,
    tokenizer: Path | None,
    say: Callable[[str], None],
) -> Report:
    """Measures `reference` and every artifact on the same rows and judges each artifact against it.

    `tokenizer` is the folder whose tokenizer and chat template make rows into ids; None takes the reference's own
    folder. Raises ModelError when a path is no model, or a GGUF reference has no tokenizer named for it; DataError when
    the rows cannot be used.
    """
    reading = _tokenizer_folder(reference, tokenizer)
    subjects = _subjects(reference, artifacts, folder)
    items = _items(settings, reading, say)
    names = [subject.record.name for subject in subjects]
    bits = {subject.record.name: subject.record.bits_per_weight for subject in subjects}
    judged = judge(
        subjects,
        items,
        settings.check.measures.steps(),
        folder / "check",
        tokenizer=reading,
        compare=lambda measured: compare_against(measured, settings.gate, names[0], bits, seed=settings.seed),
        thinking=settings.thinking,
        threads=settings.check.threads or available_cores(),
        say=say,
    )
    report = Report(
        recipe=settings.model_dump(mode="json"),
        environment=environment().model_dump(mode="json"),
        stages=(),
        subjects=judged.records(subjects),
        measurements=judged.measured.all(),
        comparisons=judged.comparisons,
        findings=judged.findings,
        verdict=judged.verdict,
    )
    write(report, folder)
    write_page(report, judged.measured, tokenizer=reading, folder=folder)
    return report


def refuse_run_folder(folder: Path) -> None:
    """Raises RecipeError for the folder of a run, whose report a comparison would replace."""
    if (folder / "recipe.yaml").is_file():
        raise RecipeError(f"{folder} is a run's folder, with a report of its own. Choose another place with --out.")


def _tokenizer_folder(reference: Path, named: Path | None) -> Path:
    """The folder whose tokenizer reads the rows."""
    if named is not None:
        return named
    subject = subject_at(reference)
    if subject.engine == "llama_cpp":
        raise ModelError(
            f"{reference} is a GGUF file: rows are made into ids by a Hugging Face folder's tokenizer and chat "
            "template. Name the one it was made from with --tokenizer FOLDER."
        )
    return subject.path


def _subjects(reference: Path, artifacts: Sequence[Path], folder: Path) -> tuple[Described, ...]:
    """The reference, then the artifacts, each with a name of its own."""
    described: list[Described] = []
    seen: set[Path] = set()
    for index, path in enumerate([reference, *artifacts]):
        subject = subject_at(path)
        if index > 0 and subject.adapter is not None:
            raise RecipeError(f"{path} is an adapter, which does not ship by itself. Merge it, and name the result.")
        if (lies_at := (subject.adapter or subject.path).resolve()) in seen:
            raise RecipeError(f"{path} is named twice. Name every file once.")
        seen.add(lies_at)
        taken = {other.record.name for other in described}
        name = subject.name if subject.name not in taken else f"{lies_at.parent.name}/{subject.name}"
        named = subject.model_copy(update={"name": name if name not in taken else str(path)})
        described.append(describe(named, ships=index > 0, shown_as=shown_path(path, folder)))
    return tuple(described)


def _items(settings: ComparisonSettings, reading: Path, say: Callable[[str], None]) -> Items:
    tokenizer = load_tokenizer(reading)
    conversations, account = usable_conversations(
        settings.data, tokenizer, seed=settings.seed, thinking=settings.thinking, offline=False
    )
    items = items_of(
        conversations,
        tokenizer,
        settings.check,
        seed=settings.seed,
        thinking=settings.thinking,
        system_prompt=settings.data.system_prompt,
    )
    scored = sum(len(item.scored) for item in items.items)
    say(f"data: {account}; measuring on {len(items.items):,} rows, {scored:,} assistant tokens")
    return items
