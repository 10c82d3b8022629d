"""Reports written by hand for tests of what is shown of them: drawn numbers, judged by the real checks.

Answers and divergences are random, seeded, and worse the fewer bits a file has. No model is run.
"""

import random
from collections.abc import Mapping, Sequence

from export.artifacts import EngineName, Fallback, MergeCandidate
from export.checks import Item, ItemObservation, Items, Observation
from export.checks.behaviour import Behaviour
from export.checks.divergence import Divergence
from export.checks.exact_match import ExactMatch
from export.checks.perplexity import Perplexity
from export.checks.resources import Resources
from export.checks.stops import Stops
from export.compare import Gate, compare_against, compare_steps, overall, worst_by_subject
from export.identity import Finding
from export.page.details import Details, LossPoint, Row
from export.quantization_record import CalibrationRecord, ModuleRecord, QuantizationRecord
from export.report import Report, SubjectRecord
from export.retained import Retained
from export.stage import Manifest

CHECKS = (Divergence(), ExactMatch(), Perplexity(), Resources(), Stops(), Behaviour())
# how far a file strays: the scale of its divergences, and the share of its answers that change
FILES = {"gguf/f16": (1e-7, 0.0), "gguf/q8_0": (1e-4, 0.0), "gguf/q4_k_m": (0.01, 0.03), "gptq/4bit": (0.008, 0.02)}
TOKENS_PER_ROW = 6
BASE_SHA256 = "b" * 64


def observation(
    name: str,
    expected: Sequence[str],
    *,
    strays: float | None,
    changed: float,
    size_bytes: int = 5_000_000,
    engine: EngineName | None = None,
) -> Observation:
    """What a subject did: `strays` None is the reference itself, `changed` the share of answers that differ."""
    draw = random.Random(f"{name} {len(expected)}")

    def item(answer: str) -> ItemObservation:
        kl = () if strays is None else tuple(strays * draw.lognormvariate(-1, 1.2) for _ in range(TOKENS_PER_ROW))
        return ItemObservation(
            log_probs=tuple(-0.01 - draw.random() * 0.02 - (strays or 0.0) for _ in range(TOKENS_PER_ROW)),
            kl=kl,
            same_top=() if strays is None else tuple(draw.random() > strays for _ in range(TOKENS_PER_ROW)),
            generated=answer if draw.random() >= changed else f"{answer} instead",
            stopped=True,
            generated_tokens=5,
            finite=True,
        )

    return Observation(
        subject=name,
        engine=engine or ("llama_cpp" if name.startswith("gguf") else "hf"),
        items=tuple(item(answer) for answer in expected),
        peak_memory_bytes=700_000_000,
        size_bytes=size_bytes,
        tokens_per_second=(100.0, 110.0, 104.0),
        has_reference=strays is not None,
    )


def observations(expected: Sequence[str], files: Mapping[str, tuple[float, float]]) -> dict[str, Observation]:
    """Those of a run: the merged model, its base, the adapter and the files."""
    sizes = {name: 3_000_000 + 2_000_000 * index for index, name in enumerate(reversed(files))}
    return {
        "merged": observation("merged", expected, strays=None, changed=0.05, size_bytes=14_000_000),
        "base": observation("base", expected, strays=3.0, changed=1.0, size_bytes=14_000_000),
        "adapter": observation("adapter", expected, strays=1e-8, changed=0.0, size_bytes=15_000_000),
        **{
            name: observation(name, expected, strays=strays, changed=changed, size_bytes=sizes[name])
            for name, (strays, changed) in files.items()
        },
    }


def run_report(
    expected: Sequence[str],
    files: Mapping[str, tuple[float, float]] = FILES,
    *,
    prompts: Sequence[str] | None = None,
    findings: Sequence[Finding] = (),
    seen: Mapping[str, Observation] | None = None,
    checks: Sequence[object] = CHECKS,
    labels: tuple[str, ...] = (),
    whole: bool = False,
) -> tuple[Report, Details]:
    """A run's report and its details, as the pipeline would have them; `whole`: all weights were trained."""
    seen = observations(expected, files) if seen is None else dict(seen)
    if whole:
        names = {name: "trained" if name == "adapter" else name for name in seen}
        seen = {names[name]: one.model_copy(update={"subject": names[name]}) for name, one in seen.items()}
    items = items_of(expected).model_copy(update={"labels": labels})
    measured = {name: tuple(m for c in checks for m in c.measure(items, s)) for name, s in seen.items()}
    comparisons = compare_steps(measured, Gate(), four_bit_base=False, seed=0)
    verdicts = dict(worst_by_subject(comparisons)) | {f.subject: "fail" for f in findings if not f.ok}
    losses = [{"step": step, "tokens": step, "loss": 3.0 / step, "valid_loss": None} for step in range(1, 60)]
    losses += [{"step": step, "tokens": step, "loss": None, "valid_loss": 3.2 / step} for step in (30, 59)]
    report = Report(
        recipe={
            "name": "a run",
            "model": {"name": "starter"},
            "data": {"path": "generated:cleaning_robot"},
            "train": {"method": "full", "learning_rate": 1e-5} if whole else {"method": "sft", "lora": {"rank": 16}},
        },
        environment={"python": "3.11.7", "processor": "a processor", "cores": 2, "packages": {"torch": "2.13.0"}},
        stages=(Manifest(stage="train", inputs={}, result={"losses": losses}, seconds=12.5),),
        subjects=tuple(record(name, s, verdicts.get(name)) for name, s in seen.items()),
        measurements=tuple(m for found in measured.values() for m in found),
        comparisons=comparisons,
        findings=tuple(findings),
        retained=tuple(retained(name) for name in files),
        merge_candidates=tuple(merges()),
        verdict=overall(tuple(verdicts.values())),
    )
    details = Details(
        rows=tuple(Row(prompt=p, expected=e) for p, e in zip(prompts or expected, expected, strict=True)),
        answers={name: tuple(item.generated for item in s.items) for name, s in seen.items()},
        divergences={name: tuple(item.kl for item in s.items) for name, s in seen.items() if s.has_reference},
        losses=tuple(LossPoint(step=p["step"], loss=p["loss"], valid_loss=p["valid_loss"]) for p in losses),
        quantization={name: quantization() for name in files if name.startswith("gptq")},
        licences={"base": "apache-2.0"},
    )
    return report, details


def comparison_report(expected: Sequence[str]) -> tuple[Report, Details]:
    """Two GGUF files held against one another, neither of them made here."""
    seen = {
        "model-f16": observation("model-f16", expected, strays=None, changed=0.0, engine="llama_cpp"),
        "model-Q5_K_M": observation("model-Q5_K_M", expected, strays=0.002, changed=0.01, engine="llama_cpp"),
    }
    items = items_of(expected)
    measured = {name: tuple(m for c in CHECKS for m in c.measure(items, s)) for name, s in seen.items()}
    comparisons = compare_against(measured, Gate(), "model-f16", {}, seed=0)
    verdicts = worst_by_subject(comparisons)
    report = Report(
        recipe={"name": "compare", "data": {"path": "rows.jsonl"}},
        environment={},
        stages=(),
        subjects=tuple(record(name, s, verdicts.get(name)) for name, s in seen.items()),
        measurements=tuple(m for found in measured.values() for m in found),
        comparisons=comparisons,
        verdict=overall(tuple(verdicts.values())),
    )
    answers = {name: tuple(item.generated for item in s.items) for name, s in seen.items()}
    return report, Details(rows=tuple(Row(prompt=e, expected=e) for e in expected), answers=answers)


def record(name: str, seen: Observation, verdict: str | None) -> SubjectRecord:
    """A subject's entry, with a path like those of a run folder."""
    folders = {"merged": "merged", "adapter": "adapter", "trained": "trained", "base": "/somewhere/base"}
    folder = f"export/{name.replace('/', '-')}"
    file = f"{folder}/model.gguf" if name.startswith("gguf") else folder
    return SubjectRecord(
        name=name,
        path=folders.get(name, file),
        sha256=BASE_SHA256 if name == "base" else name.encode().hex().ljust(64, "0")[:64],
        size_bytes=seen.size_bytes,
        bits_per_weight=16 if name in folders else 5.1,
        engine=seen.engine,
        tensor_types={"q4_k": 38, "f32": 25} if name.startswith("gguf") else {"bf16": 68},
        fallbacks=(Fallback(what="blk.0.ffn_down", asked="q4_k", used="q5_0", reason="256 does not divide 896"),)
        if name == "gguf/q4_k_m"
        else (),
        tools={"llama-cpp-python": "0.3.36"} if name.startswith("gguf") else {},
        verdict=verdict,
    )


def retained(name: str) -> Retained:
    """A file that kept nearly all of the fine-tuning change."""
    lowest = tuple((f"blk.{index}.attn_k.weight", 0.8 + index / 50) for index in range(5))
    quartiles = (0.97, 0.991, 1.002)
    return Retained(subject=name, share=0.9871, quartiles=quartiles, lowest=lowest, tensors=42, weights=4_718_592)


def merges() -> list[MergeCandidate]:
    """Two merges, of which one was kept."""
    rows = {"n_rows": 200, "n_tokens": 5021}
    return [
        MergeCandidate(onto="16bit", kl_mean=0.0123, stderr=0.0011, kept=False, **rows),
        MergeCandidate(onto="nf4", kl_mean=0.0007, stderr=None, kept=True, note="the nearer one", **rows),
    ]


def quantization() -> QuantizationRecord:
    """GPTQ's record of two layers, one of them rounded plainly."""
    common = {"samples": 15360, "inputs": 256, "damp": 0.1, "unused_inputs": 0, "diagonal_raised": False}
    return QuantizationRecord(
        bits=4,
        group_size=128,
        damp=0.1,
        desc_act=False,
        symmetric=True,
        computed_in="bfloat16",
        calibration=CalibrationRecord(rows=256, sequences=30, sequence_tokens=512, tokens=15360),
        modules=(
            ModuleRecord(name="model.layers.0.mlp.up_proj", method="gptq", loss=5.3e-5, **common),
            ModuleRecord(name="model.layers.1.mlp.up_proj", method="plain rounding", loss=None, **common),
        ),
    )


def findings(files: Sequence[str], *, broken: str | None = None) -> list[Finding]:
    """Identity findings on every file, one of which may be broken in its stop ids."""
    return [
        Finding(
            what=what,
            subject=name,
            ok=not (name == broken and what == "stop ids"),
            found="[151643]" if name == broken and what == "stop ids" else "[151645]",
            expected="[151645]",
            note="the answers would never end" if name == broken and what == "stop ids" else "",
        )
        for name in files
        for what in ("token ids", "stop ids", "chat template")
    ]


def items_of(expected: Sequence[str]) -> Items:
    """Rows of two prompt tokens, each with its expected answer."""
    ids = tuple(range(TOKENS_PER_ROW + 2))
    items = tuple(Item(ids=ids, scored=ids[2:], prompt=ids[:2], answer=answer) for answer in expected)
    return Items(items=items, vocabulary_size=300, max_new_tokens=16)
