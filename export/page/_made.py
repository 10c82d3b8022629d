"""What was really made of the weights, and where everything came from: the page's last two sections. Only words."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from export.artifacts import Fallback
from export.page._tables import from_base_to_files
from export.page.details import Details
from export.promises import promised
from export.quantization_record import QuantizationRecord
from export.report import Report, SubjectRecord
from export.wording.training import training_words
from export.wording.values import NOT_MEASURED, plain, unit_of, with_error

# A model of 32 layers falls back 32 times for one reason.
_FALLBACKS_SHOWN = 12
_LOWEST_SHOWN = 3


class MadeRow(NamedTuple):
    """One artifact: what its name promises, and what lies on disk."""

    name: str
    path: str
    nominal: str
    bits_per_weight: str
    types: str
    megabytes: str
    fallbacks: str
    tools: str
    sha256: str


class FallbackRow(NamedTuple):
    """Something done otherwise than asked, and in which file."""

    subject: str
    fallback: Fallback


class LayerRow(NamedTuple):
    """All layers of one kind in a GPTQ model; `worst` is the one with the largest loss."""

    kind: str
    layers: int
    median_loss: str
    largest_loss: str
    worst: str
    damp: str
    rounded: int
    unused_inputs: int


class Layers(NamedTuple):
    """How GPTQ went: its settings in a sentence, and its layers by kind."""

    subject: str
    settings: str
    rows: tuple[LayerRow, ...]


class RetainedRow(NamedTuple):
    """How much of the fine-tuning change a file kept; `exact` is empty where nothing was changed."""

    subject: str
    share: str
    exact: str
    quartiles: str
    lowest: tuple[tuple[str, str], ...]
    tensors: str
    weights: str
    note: str


class MergeRow(NamedTuple):
    """A merge that was tried: what onto, its divergence from the adapter as it was trained, and whether it was kept."""

    onto: str
    divergence: str
    rows: str
    tokens: str
    kept: str
    note: str


class Fact(NamedTuple):
    """A name and what is to be said about it; `is_code` for hashes, versions and paths."""

    name: str
    value: str
    is_code: bool = False


def made_rows(report: Report) -> tuple[MadeRow, ...]:
    """Every subject's weights as they are stored."""
    return tuple(_made(subject) for subject in from_base_to_files(report.subjects))


def _made(subject: SubjectRecord) -> MadeRow:
    return MadeRow(
        name=subject.name,
        path=subject.path,
        nominal=str(promised(subject.name).bits or "none promised"),
        bits_per_weight=f"{subject.bits_per_weight:.2f}",
        types=", ".join(f"{count:,}\u00a0×\u00a0{kind}" for kind, count in subject.tensor_types.items()),
        megabytes=f"{subject.size_bytes / 1e6:,.1f}",
        fallbacks=str(len(subject.fallbacks)) if subject.fallbacks else "none",
        tools="; ".join(filter(None, (_tools(subject), _importance(subject)))),
        sha256=subject.sha256,
    )


def _tools(subject: SubjectRecord) -> str:
    return ", ".join(f"{name} {version}" for name, version in subject.tools.items())


def _importance(subject: SubjectRecord) -> str:
    """What the importance data was measured on, and how far it reaches; empty where there was none."""
    used = subject.importance
    if used is None:
        return ""
    without = f", none for {', '.join(used.without)}" if used.without else ""
    never = _never_active(used.never_active_channels)
    measured = f"importance measured on {used.rows:,} training rows ({used.tokens:,} tokens)"
    rounding = f", {used.rounding}" if used.rounding else ""
    return f"{measured} for {used.tensors:,} matrices{without}{never}{rounding}"


def _never_active(channels: Mapping[str, int]) -> str:
    """In how many channels of which matrices nothing was seen, the worst of them by name."""
    if not channels:
        return ""
    worst = max(channels, key=lambda name: channels[name])
    return (
        f", {sum(channels.values()):,} channels of {len(channels):,} matrices never active (most in {worst}: "
        f"{channels[worst]:,})"
    )


def fallback_rows(report: Report) -> tuple[tuple[FallbackRow, ...], tuple[FallbackRow, ...]]:
    """What was done otherwise than asked: the first ones, and the rest."""
    rows = [FallbackRow(subject.name, fallback) for subject in report.subjects for fallback in subject.fallbacks]
    return tuple(rows[:_FALLBACKS_SHOWN]), tuple(rows[_FALLBACKS_SHOWN:])


def retained_rows(report: Report) -> tuple[RetainedRow, ...]:
    """What each file kept of what fine-tuning changed."""
    return tuple(
        RetainedRow(
            subject=kept.subject,
            share=_percent(kept.share, 2),
            exact=repr(kept.share) if math.isfinite(kept.share) else "",
            quartiles=" / ".join(_percent(quartile, 1) for quartile in kept.quartiles),
            lowest=tuple((name, _percent(share, 1)) for name, share in kept.lowest[:_LOWEST_SHOWN]),
            tensors=f"{kept.tensors:,}",
            weights=f"{kept.weights:,}",
            note=kept.note,
        )
        for kept in report.retained
    )


def _percent(share: float, digits: int) -> str:
    return f"{plain(share * 100, digits)} %" if math.isfinite(share) else NOT_MEASURED


def merge_rows(report: Report) -> tuple[MergeRow, ...]:
    """The merges between which was chosen by measuring."""
    return tuple(
        MergeRow(
            onto={"16bit": "the base's own 16-bit weights", "nf4": "the de-quantized NF4 weights"}[candidate.onto],
            divergence=with_error(candidate.kl_mean, candidate.stderr, unit_of("nats")),
            rows=f"{candidate.n_rows:,}",
            tokens=f"{candidate.n_tokens:,}",
            kept="kept" if candidate.kept else "not kept",
            note=candidate.note,
        )
        for candidate in report.merge_candidates
    )


def layers(details: Details) -> tuple[Layers, ...]:
    """GPTQ's record of each model that has one, by kind of layer."""
    return tuple(
        Layers(name, _settings(record), tuple(_kinds(record))) for name, record in details.quantization.items()
    )


def _settings(record: QuantizationRecord) -> str:
    used = record.calibration
    general = f" ({used.general_rows:,} of them general)" if used.general_rows else ""
    order = "columns in order of activation size" if record.desc_act else "columns in their own order"
    steps = record.tuning_steps
    how = f"damping {record.damp:g}, {order}" if steps is None else f"rounding tuned in {steps:,} steps (AutoRound)"
    return (
        f"{record.bits} bits, groups of {record.group_size}, {how}, "
        f"{'symmetric' if record.symmetric else 'asymmetric'}, computed in {record.computed_in}; calibrated on "
        f"{used.rows:,} training rows{general}, packed into {used.sequences:,} sequences of "
        f"{used.sequence_tokens:,} tokens."
    )


def _kinds(record: QuantizationRecord) -> list[LayerRow]:
    """One row per kind of layer: the last two parts of its name."""
    kinds = dict.fromkeys(".".join(module.name.split(".")[-2:]) for module in record.modules)
    rows = []
    for kind in kinds:
        modules = [m for m in record.modules if m.name.endswith(kind)]
        losses = {m.name: m.loss for m in modules if m.loss is not None}
        worst = max(losses, key=lambda name: losses[name]) if losses else ""
        rows.append(
            LayerRow(
                kind=kind,
                layers=len(modules),
                median_loss=plain(statistics.median(losses.values())) if losses else "–",
                largest_loss=plain(losses[worst]) if losses else "–",
                worst=worst,
                damp=f"{max(m.damp for m in modules):g}",
                rounded=sum(m.method == "plain rounding" for m in modules),
                unused_inputs=sum(m.unused_inputs for m in modules),
            )
        )
    return rows


def provenance(report: Report, details: Details) -> tuple[tuple[str, tuple[Fact, ...]], ...]:
    """Named groups of facts: the models, the data, the machine."""
    groups = [
        ("Models", _models(report, details)),
        ("Data", _data(report)),
        ("Machine", _machine(report.environment)),
        ("Software", _software(report.environment)),
    ]
    return tuple((name, tuple(facts)) for name, facts in groups if facts)


def _models(report: Report, details: Details) -> list[Fact]:
    if not report.subjects:
        return []
    reference = report.subjects[0]
    types = ", ".join(reference.tensor_types)
    facts = [
        Fact("reference", f"{reference.name} ({types}), {reference.path}", True),
        Fact("reference, SHA-256", reference.sha256, True),
    ]
    facts += [Fact(f"{s.name}, SHA-256", s.sha256, True) for s in report.subjects[1:]]
    model = _section(report.recipe, "model")
    if "name" in model:
        revision = f" at {model['revision']}" if model.get("revision") else ""
        facts.insert(0, Fact("base model", f"{model['name']}{revision}", True))
    if trained_by := training_words(report.recipe):
        facts.append(Fact("trained by", trained_by))
    # in a run all else is made from the base, and its cards repeat what the base says
    stated = {"base": details.licences["base"]} if "base" in details.licences else details.licences
    facts += [Fact(f"licence of {name}", f"{licence} (as its folder states)") for name, licence in stated.items()]
    if not stated:
        facts.append(Fact("licence", "no folder states one: ask whoever made the base model"))
    return facts


def _data(report: Report) -> list[Fact]:
    settings = _section(report.recipe, "data")
    facts = [Fact("source", str(settings["path"]), True)] if "path" in settings else []
    if settings.get("template"):
        facts.append(Fact("data template", str(settings["template"]), True))
    result = next((stage.result for stage in report.stages if stage.stage == "data"), {})
    for split in ("train", "valid", "held_out"):
        counts = result.get(split)
        if isinstance(counts, dict) and "rows" in counts:
            scored = f", {counts['scored_tokens']:,} of its tokens scored" if "scored_tokens" in counts else ""
            facts.append(Fact(f"{split.replace('_', '-')} rows", f"{counts['rows']:,}{scored}"))
    source = result.get("source")
    if isinstance(source, dict):
        facts += [Fact(name.replace("_", " "), str(value), True) for name, value in source.items() if "sha256" in name]
    if "fingerprint" in result:
        facts.append(Fact("fingerprint of the splits", str(result["fingerprint"]), True))
    if facts:
        facts.append(Fact("licence of the data", "not recorded: it is whatever the rows' owner grants"))
    return facts


def _machine(environment: dict[str, Any]) -> list[Fact]:
    named = {"processor": "processor", "cores": "cores", "accelerator": "accelerator", "platform": "system"}
    facts = [Fact(shown, str(environment[key])) for key, shown in named.items() if environment.get(key) is not None]
    if environment and environment.get("accelerator") is None:
        facts.append(Fact("accelerator", "none"))
    if isinstance(environment.get("memory_bytes"), int):
        facts.append(Fact("memory", f"{environment['memory_bytes'] / 1e9:,.1f} GB"))
    return facts


def _software(environment: dict[str, Any]) -> list[Fact]:
    facts = [Fact("Python", str(environment["python"]), True)] if "python" in environment else []
    if environment.get("git_commit"):
        facts.append(Fact("commit of fieldtune", str(environment["git_commit"]), True))
    packages = _section(environment, "packages")
    return facts + [Fact(name, str(version), True) for name, version in packages.items()]


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a recipe or an environment; empty where it is missing."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def settings_text(report: Report) -> str:
    """The recipe, or the comparison's settings, as they were resolved."""
    return json.dumps(report.recipe, indent=2, ensure_ascii=False) if report.recipe else ""


def stage_rows(report: Report) -> Sequence[tuple[str, str]]:
    """Each stage and its seconds."""
    return [(stage.stage, f"{stage.seconds:,.1f}") for stage in report.stages]
