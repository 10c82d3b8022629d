"""`fieldtune compare`: judges any files against any reference, on any rows, whether or not they were made here.

Here rows become token ids and paths become subjects; what is measured and how it is judged is `export.gate`.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from export.categories import by_category
from export.chat_template import thinking_is_ignored
from export.chat_tokenizer import load_tokenizer
from export.checks import Items
from export.compare import Gate, compare_against
from export.errors import FieldtuneError, ModelError, RecipeError
from export.frozen import Frozen
from export.gate import judge
from export.hardware import available_cores, environment
from export.page import write_page
from export.report import Report, write
from export.subjects import Described, describe, shown_path, subject_at
from export.weights import declared_bits
from finetune.data import DataSettings, usable_conversations
from finetune.data.sources import files_of
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
    the rows cannot be used; RecipeError with all that can be seen of these at once, where there are several.
    """
    _refuse_unusable(reference, artifacts, settings, tokenizer)
    reading = tokenizer or subject_at(reference).path
    subjects = _subjects(reference, artifacts, folder)
    items = _items(settings, reading, say)
    names = [subject.record.name for subject in subjects]
    bits = {subject.record.name: _bits(subject) for subject in subjects}
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
        by_category=by_category(judged.measured),
        safety=judged.safety,
        verdict=judged.verdict,
    )
    write(report, folder)
    write_page(report, judged.measured, tokenizer=reading, folder=folder)
    return report


def _bits(described: Described) -> float:
    """The bits per weight whose limits a subject is held to where its name says none."""
    declared = declared_bits(described.candidate.subject.path)
    return described.record.bits_per_weight if declared is None else declared


def says_replaced(folder: Path) -> str | None:
    """A line on the report of an earlier comparison that lies in `folder`; None where there is none."""
    if not (folder / "report.json").is_file():
        return None
    return (
        f"{folder} holds the report of an earlier comparison, which this one replaces when it is done (--out names "
        "another place)"
    )


def refuse_run_folder(folder: Path) -> None:
    """Raises RecipeError for the folder of a run, whose report a comparison would replace."""
    if (folder / "recipe.yaml").is_file():
        raise RecipeError(f"{folder} is a run's folder, with a report of its own. Choose another place with --out.")


# Names that say what kind of file it is, and not whose: of the file, or of a folder around it.
_SAYS_LITTLE = re.compile(r"(ggml-)?model([-_.].*)?|(gguf|gptq)([-_].*)?|merged|export|adapter|checks?", re.IGNORECASE)


def default_folder(artifacts: Sequence[Path]) -> Path:
    """Where a comparison goes for which no place was named: by the last artifact, and where its name says little by
    the nearest folder around it that says more, so that two runs' `model-q8_0.gguf` do not share a place.
    """
    named = artifacts[-1]
    # the folder is resolved and the file is not: in a hub's cache it links to a blob whose name says nothing
    last = named.parent.resolve() / named.name if named.name not in ("", "..") else named.resolve()
    name = last.stem if last.suffix == ".gguf" else last.name
    if _SAYS_LITTLE.fullmatch(name):
        whose = next((p.name for p in last.parents if p.name and not _SAYS_LITTLE.fullmatch(p.name)), "")
        name = f"{whose}-{name}" if whose else name
    return Path("runs") / f"compare-{name or 'files'}"


def _refuse_unusable(
    reference: Path, artifacts: Sequence[Path], settings: ComparisonSettings, tokenizer: Path | None
) -> None:
    """Raises what is wrong with the paths that were named, all of it at once: only what is seen without reading."""
    looks: list[Callable[[], object]] = [partial(_refuse_without_tokenizer, reference, tokenizer)]
    looks += [partial(subject_at, path) for path in artifacts]
    if settings.data.origin == "local":
        looks.append(partial(files_of, Path(settings.data.path)))
    problems: list[FieldtuneError] = []
    for look in looks:
        try:
            look()
        except FieldtuneError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise RecipeError(f"what was named cannot be compared, for {len(problems)} reasons:{lines}")


def _refuse_without_tokenizer(reference: Path, named: Path | None) -> None:
    """Raises ModelError for a reference that is no model, or where no tokenizer was named that it needs."""
    subject = subject_at(reference)
    if named is None and subject.engine == "llama_cpp":
        raise ModelError(
            f"{reference} is a GGUF file: rows are made into ids by a Hugging Face folder's tokenizer and chat "
            "template. Name the one it was made from with --tokenizer FOLDER."
        )
    place = named or subject.path
    if not (place / "tokenizer.json").is_file():
        whose = "the reference" if named is None else "--tokenizer"
        found = "holds no tokenizer.json" if place.is_dir() else "is a file" if place.exists() else "is not there"
        raise ModelError(
            f"{whose} {place} {found}; expected a Hugging Face folder with tokenizer.json and a chat template. Name "
            "the one that the model was made from with --tokenizer FOLDER."
        )


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
        try:
            described.append(describe(named, ships=index > 0, shown_as=shown_path(path, folder)))
        except ModelError as error:  # an artifact that cannot be read is described all the same
            raise ModelError(f"the reference cannot be used: {error}") from None
    return tuple(described)


def _items(settings: ComparisonSettings, reading: Path, say: Callable[[str], None]) -> Items:
    tokenizer = load_tokenizer(reading)
    if settings.thinking and (ignored := thinking_is_ignored(reading)):
        say(f"thinking: {ignored}")
    rows = usable_conversations(
        settings.data, tokenizer, seed=settings.seed, thinking=settings.thinking, offline=False, say=say
    )
    items = items_of(
        rows.conversations,
        tokenizer,
        settings.check,
        seed=settings.seed,
        thinking=settings.thinking,
        system_prompt=settings.data.system_prompt,
        labels=rows.labels,
    )
    scored = sum(len(item.scored) for item in items.items)
    say(f"data: {rows.account}; measuring on {len(items.items):,} rows, {scored:,} assistant tokens")
    return items
