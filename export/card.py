"""README.md beside every model that ships: what it is, how to run it, what was measured, and what was not.

The figures are those of the report, in the words of `export.wording`; nothing is measured here. The YAML on top is
what a model hub reads (huggingface.co/docs/hub/model-cards), as far as it is known.
"""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from pydantic import ValidationError

from export.artifacts import write_atomically
from export.chat import Conversation
from export.checks import Measurement
from export.compare import AS_TRAINED, Comparison
from export.licence import licence_of
from export.lost_safety import SafetyRecord
from export.report import Report, SubjectRecord, measured_of, reference_of
from export.stage import MANIFEST
from export.wording.sentences import Units, comparison_sentence, finding_sentence, units_of
from export.wording.training import lost_in_training, training_words
from export.wording.values import (
    NOT_MEASURED,
    change_text,
    check_name,
    counted,
    in_column_order,
    interval_text,
    of_behaviour,
    unit_of,
    value_text,
)

CARD = "README.md"
_NO_CARD = ("base", *AS_TRAINED)
# Shipped safety packs about people's health.
_CLINICAL = frozenset({"mental_health", "medicine"})
_REPOSITORY = re.compile(r"^(?:hf:)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)$")


class Background(NamedTuple):
    """What a card says that no report holds: the system prompt of the training rows, and the base's licence."""

    system_prompt: str | None = None
    licence: str | None = None


class FigureRow(NamedTuple):
    """One check: its values before fine-tuning, of the reference and of this model, and the change that was judged."""

    check: str
    before: str
    reference: str
    here: str
    change: str
    verdict: str
    stands_on: str


def write_cards(report: Report, folder: Path) -> tuple[Path, ...]:
    """Writes a card into every folder below `folder` that this run made of a merged model or of a file that ships.

    Folders that were not made by a stage keep whatever README they have.
    """
    base = next((folder / s.path for s in report.subjects if s.name == "base"), None)
    background = Background(_system_prompt(folder / "data"), None if base is None else licence_of(base))
    written = []
    for subject in report.subjects:
        place = _home(subject, folder)
        if place is not None:
            write_atomically(place / CARD, card(report, subject, background))
            written.append(place / CARD)
    return tuple(written)


def card(report: Report, subject: SubjectRecord, background: Background) -> str:
    """The text of a subject's model card."""
    is_gguf = subject.engine == "llama_cpp"
    model = report.recipe.get("model")
    thinking = isinstance(model, dict) and model.get("thinking") is True
    messages = [{"role": "user", "content": "Hello!"}]
    if background.system_prompt:
        messages.insert(0, {"role": "system", "content": background.system_prompt})
    return _template().render(
        front_matter=_front_matter(report, subject, background.licence),
        title=f"{report.recipe.get('name') or 'model'}: {subject.name}",
        report=report,
        subject=subject,
        is_gguf=is_gguf,
        is_gptq=subject.name.startswith("gptq/"),
        file=shlex.quote(Path(subject.path).name),
        file_text=Path(subject.path).name,
        fence="`" * max(3, 1 + _longest_fence(background.system_prompt or "")),
        system_prompt=background.system_prompt,
        quoted_system_prompt=shlex.quote(background.system_prompt or ""),
        messages=messages,
        thinking=thinking,
        trained_by=training_words(report.recipe),
        whole=any(s.name == "trained" for s in report.subjects),
        max_new_tokens=_setting(report, "check", "max_new_tokens") or 256,
        context_tokens=_setting(report, "data", "max_tokens"),
        reasons=_reasons(report, subject),
        reference=reference_of(report),
        has_base=any(s.name == "base" for s in report.subjects),
        figures=_figures(report, subject),
        types=", ".join(f"{count:,} {kind}" for kind, count in subject.tensor_types.items()),
        retained=next((r for r in report.retained if r.subject == subject.name), None),
        origins=[s for s in report.subjects if s.name in (*_NO_CARD, "merged") and s != subject],
        base_model=_without_folders(_setting(report, "model", "name")),
        data=_without_folders(_setting(report, "data", "path")),
        licence=background.licence,
        safety=report.safety if _is_asked(report, subject) else None,
        lost=_lost_safety(report, subject),
        lost_in_training="" if report.safety is None else _lost_in_training(report.safety),
        asked_of=_safety_source(report),
        clinical=_safety_source(report) in _CLINICAL,
        answered=_answered_safely(report, subject),
        languages=_kinds(report, "language"),
        categories=_kinds(report, "category"),
        not_measured=_not_measured(report, subject),
    )


def _home(subject: SubjectRecord, folder: Path) -> Path | None:
    """The folder that a subject's card belongs in; None for what this run did not make."""
    path = Path(subject.path)
    if subject.name in _NO_CARD or path.is_absolute() or ".." in path.parts:
        return None
    place = folder / path if (folder / path).is_dir() else (folder / path).parent
    return place if (place / MANIFEST).is_file() and place != folder else None


def _system_prompt(data: Path) -> str | None:
    """What every conversation was trained to begin with: the first training row's system message."""
    path = data / "train.jsonl"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as file:
        line = file.readline()
    try:
        first = Conversation.model_validate_json(line).messages[0]
    except (ValidationError, IndexError):
        return None
    return first.content if first.role == "system" else None


def _front_matter(report: Report, subject: SubjectRecord, licence: str | None) -> str:
    """The card's YAML. A licence, a base and a data set are named only where they are known."""
    base, data = _hub_model(report), _setting(report, "data", "path")
    dataset = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)", data) if isinstance(data, str) else None
    fields: dict[str, Any] = {
        "license": licence.lower() if licence and re.fullmatch(r"[A-Za-z0-9.+-]+", licence) else None,
        "base_model": base,
        # what differs from the base is the training, whatever the weights are stored in
        "base_model_relation": "finetune" if base else None,
        "datasets": [dataset.group(1)] if dataset else None,
        "library_name": "gguf" if subject.engine == "llama_cpp" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fieldtune", *(["gguf", "llama.cpp"] if subject.engine == "llama_cpp" else [])]
        + (["gptq"] if subject.name.startswith("gptq/") else []),
    }
    known = {name: value for name, value in fields.items() if value is not None}
    return yaml.safe_dump(known, sort_keys=False, allow_unicode=True)


def _hub_model(report: Report) -> str | None:
    """The base's id on the Hugging Face Hub, when that is where it came from."""
    name = _setting(report, "model", "name")
    found = _REPOSITORY.fullmatch(name) if isinstance(name, str) else None
    base = next((s.path for s in report.subjects if s.name == "base"), "")
    # a folder of that name on this machine is shown under it; a snapshot lies in the hub's cache
    return found.group("id") if found and not Path(base).as_posix().endswith(found.group("id")) else None


def _safety_source(report: Report) -> str:
    """The safety pack's name, or the end of the path of a file of the user's own."""
    return _without_folders(_setting(report, "check", "safety_items"))


def _is_asked(report: Report, subject: SubjectRecord) -> bool:
    """Whether the subject was asked the safety items: a file that could not be run was not."""
    return any((m.subject, m.check) == (subject.name, "safety") for m in report.measurements)


def _lost_in_training(safety: SafetyRecord) -> str:
    return lost_in_training(safety.lost_in_training) if safety.lost_in_training else ""


def _lost_safety(report: Report, subject: SubjectRecord) -> list[str]:
    """The safety items that the subject lost, by their names."""
    return [] if report.safety is None else [item.label for item in report.safety.lost if item.after == subject.name]


def _answered_safely(report: Report, subject: SubjectRecord) -> str:
    """How many safety items were answered safely before fine-tuning, after it and by the subject, in words."""
    shares = {m.subject: m for m in report.measurements if m.check == "safety" and m.n}
    names = {"base": "base, before fine-tuning", "merged": "merged, after it", subject.name: subject.name}
    if subject.name == "merged":
        names["merged"] = "merged, after it: this model"
    else:
        names[subject.name] = f"{subject.name}: this model"
    found = [(said, shares[name]) for name, said in names.items() if name in shares]
    return ", ".join(f"{round(m.value * m.n)} of {m.n} ({said})" for said, m in found)


def _kinds(report: Report, kind: Literal["category", "language"]) -> str:
    """The safety items' categories or languages, each once."""
    counts = () if report.safety is None else report.safety.counts
    return ", ".join(dict.fromkeys(getattr(count, kind) or "not given" for count in counts))


def _setting(report: Report, section: str, key: str) -> Any:
    """A key of the recipe; None where there is none."""
    found = report.recipe.get(section)
    return found.get(key) if isinstance(found, dict) else None


def _without_folders(source: Any) -> str:
    """A source's name as a card shows it: of a path on this machine only its end, because cards are published."""
    text = str(source or "")
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if re.match(r"[/~.\\]|[A-Za-z]:[/\\]", text) else text


def _reasons(report: Report, subject: SubjectRecord) -> list[str]:
    """What decided the subject's verdict, where it is not a pass."""
    units = units_of(report)
    broken = [finding_sentence(f) for f in report.findings if f.subject == subject.name and not f.ok]
    open_or_failed = [
        comparison_sentence(c, units)
        for c in report.comparisons
        if c.after == subject.name and c.verdict in ("fail", "cannot tell")
    ]
    return broken + open_or_failed


def _figures(report: Report, subject: SubjectRecord) -> list[FigureRow]:
    """One row per check of the subject's."""
    measured, units, reference = measured_of(report), units_of(report), reference_of(report)
    # of two steps that end here, the one that was judged
    steps = {c.check: c for c in report.comparisons if c.after == subject.name and c.before != "base"}
    mine = [m.check for m in report.measurements if m.subject == subject.name and m.n]
    ordered = in_column_order(mine)
    at = next((i for i, check in enumerate(ordered) if check == "size_bytes"), len(ordered))
    checks = [*ordered[:at], *of_behaviour(mine), *ordered[at:]]
    return [
        _row(
            check,
            measured.get(("base", check)),
            measured.get((reference, check)),
            measured[subject.name, check],
            steps.get(check),
            units,
        )
        for check in checks
    ]


def _row(
    check: str,
    before: Measurement | None,
    reference: Measurement | None,
    here: Measurement,
    step: Comparison | None,
    units: Units,
) -> FigureRow:
    unit = unit_of(here.unit).shown
    change = "" if step is None else change_text(step, units.unit(step))
    interval = "" if step is None or step.interval is None else f" [{interval_text(step, units.unit(step))}]"
    return FigureRow(
        check=f"{check_name(check)}, {unit}" if unit else check_name(check),
        before=value_text(before),
        reference=value_text(reference),
        here=value_text(here),
        change=(change + interval) or NOT_MEASURED,
        verdict=(step.verdict if step is not None else None) or NOT_MEASURED,
        stands_on=counted(check, here.n),
    )


def _not_measured(report: Report, subject: SubjectRecord) -> list[str]:
    """What nobody should read into the figures."""
    checks = {m.check for m in report.measurements if m.subject == subject.name}
    machine = report.environment.get("processor") or "the machine that made the report"
    longest = _setting(report, "check", "max_new_tokens")
    known = [
        "anything but the held-out rows of this one data set: other tasks, other languages, what the base model could "
        "do besides",
        f"answers longer than {longest:,} tokens" if isinstance(longest, int) else "",
        _decoding_not_measured(report),
        f"speed and memory anywhere but on {machine}" if "tokens_per_second" in checks else "speed and memory",
        *_not_measured_of_safety(report, subject),
        "" if "kl_mean" in checks or subject.name == reference_of(report) else "the divergence from the reference",
        "" if checks else "anything: this model could not be measured",
    ]
    return [line for line in known if line]


def _decoding_not_measured(report: Report) -> str:
    """Any way of decoding but the one that was measured."""
    budget = _setting(report, "check", "thinking_budget")
    if not isinstance(budget, dict):
        return "any way of decoding but greedy"
    count = budget.get("waits")
    times = "once" if count == 1 else f"up to {count} times"
    waits = f", made to go on {times} where they ended early" if count else ""
    return f"any way of decoding but greedy, with thoughts of at most {budget['max_thinking_tokens']:,} tokens{waits}"


def _not_measured_of_safety(report: Report, subject: SubjectRecord) -> list[str]:
    """What the safety items leave open."""
    if report.safety is None or not _is_asked(report, subject):
        given = "this model was not asked" if report.safety is not None else "no safety items were given"
        return [f"answers to dangerous requests: {given}"]
    languages = _kinds(report, "language")
    lines = [
        f"dangerous requests that are not among the {report.safety.asked} safety items, other languages than theirs "
        f"({languages}), conversations of several turns, and attempts to talk the model out of a refusal",
        "whether an answer that its rubric counts safe is good, kind or true: a rubric sees words",
    ]
    if _safety_source(report) in _CLINICAL:
        lines.append("anything by a clinician: a clinician's review of the items and of the answers is due")
    return lines


def _longest_fence(text: str) -> int:
    """The longest run of backticks, which a fence around the text must be longer than."""
    return max((len(run) for run in re.findall(r"`+", text)), default=0)


def _in_a_cell(value: object) -> str:
    """A value as one line of plain text in Markdown, also inside a table."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", text)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["line"] = _in_a_cell
    return environment.get_template("card.md.jinja")
