"""`fieldtune sweep`: the same recipe trained on more and more of its rows, several times each, and measured.

The rows are split once; every training draws its own from the training rows, of a larger budget all that a smaller
one with the same seed draws, and all of them are measured on the same held-out rows.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.artifacts import write_atomically
from export.chat_tokenizer import load_tokenizer
from export.checks import Measurement
from export.engines import Subject
from export.errors import RecipeError
from export.frozen import Frozen
from export.hardware import available_cores, environment, package_versions
from export.measure import Candidate, measure
from export.stage import Inputs, run_stage, version_inputs
from export.subjects import describe
from finetune.data.draw import Lengths, draw, lengths_of
from finetune.data.splits import Splits
from finetune.learning_curve import CurvePoint, CurveStep, Trained, curve, steps
from finetune.methods import TrainingResult
from finetune.pipeline import Run
from finetune.recipe import Recipe
from finetune.subjects import described_as_trained
from finetune.sweep_page import write_sweep_page

# What is drawn as a curve, where the recipe measures it: what the fine-tuned model can do, not what it costs.
_LEFT_OUT = frozenset(
    {"size_bytes", "peak_memory_bytes", "tokens_per_second", "same_top_token"}
    | {"kl_mean", "kl_median", "kl_percentile_99", "kl_max"}  # from the base, which training is to move away from
)


class SweepReport(Frozen):
    """What `fieldtune sweep` found; the content of its report.json."""

    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    train_tokens: int
    base: tuple[Measurement, ...]
    points: tuple[CurvePoint, ...]
    steps: tuple[CurveStep, ...]


def parse_budgets(text: str) -> tuple[int, ...]:
    """Token budgets such as `25k,50k,1m`, ascending. Raises RecipeError for anything else."""
    budgets = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([km]?)\s*", part, re.I)
        budget = 0 if found is None else round(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6}[found[2].lower()])
        if budget < 1:
            raise RecipeError(f"--tokens {text}: {part.strip()!r} is no number of tokens. Write, say, 25k,50k,100k,1m.")
        budgets.append(budget)
    if len(set(budgets)) != len(budgets):
        raise RecipeError(f"--tokens {text}: a budget stands there twice. Keep each once.")
    return tuple(sorted(budgets))


def sweep(recipe: Recipe, budgets: Sequence[int], seeds: int, folder: Path, say: Callable[[str], None]) -> SweepReport:
    """Trains and measures every budget with every seed, and writes report.json and report.html into `folder`.

    What is done is not done again: a sweep that was stopped goes on. Raises RecipeError when `folder` is a run's, a
    budget exceeds the training rows or nothing is measured, ContractError when the rows break the recipe's contract.
    """
    _refuse_run_folder(folder)
    whole = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_train_tokens": None})})
    run = Run(whole, folder, say)
    run.until("data")
    available = run.splits.train.tokens
    if budgets[-1] > available:
        raise RecipeError(
            f"--tokens: {budgets[-1]:,} tokens were asked for; the training rows hold {available:,} (of "
            f"{run.splits.train.rows:,} rows). Ask for at most that, or give more rows."
        )
    measuring = _Measuring(run, folder / "check", say)
    checks = [c for c, m in measuring.base().items() if c not in _LEFT_OUT and m.higher_is_better is not None]
    if not checks:
        raise RecipeError(
            "a sweep draws what a model can do over its training tokens, and the recipe measures none of it: "
            "check.measures needs exact_match, perplexity or another check of answers."
        )
    lengths = lengths_of(run.splits, load_tokenizer(run.base.path), thinking=recipe.model.thinking)
    trainings = [(budget, seed) for budget in budgets for seed in range(recipe.seed, recipe.seed + seeds)]
    trained = []
    for number, (budget, seed) in enumerate(trainings, start=1):
        say(f"sweep: training {number} of {len(trainings)}: {budget:,} tokens, seed {seed}")
        result, drawn = _train(run, budget, seed, lengths, folder / "trainings" / f"{budget}-seed{seed}", say)
        found = measuring.of(result, f"{budget}-seed{seed}")
        trained.append(Trained(budget, seed, drawn.train.tokens, drawn.train.rows, found))
    report = SweepReport(
        name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
        environment=environment().model_dump(mode="json"),
        train_tokens=available,
        base=tuple(m.model_copy(update={"sample": ()}) for c, m in measuring.base().items() if c in checks),
        points=curve(trained, checks),
        steps=steps(trained, checks),
    )
    write_atomically(folder / "report.json", report.model_dump_json(indent=2) + "\n")
    write_sweep_page(report, folder)
    return report


def _refuse_run_folder(folder: Path) -> None:
    """Raises RecipeError for the folder of a run, whose rows and report a sweep would replace."""
    if any((folder / stage).exists() for stage in ("adapter", "trained", "merged", "export")):
        raise RecipeError(f"{folder} is a run's folder, with rows and a report of its own. Choose another with --out.")


def _train(
    run: Run, budget: int, seed: int, lengths: Sequence[Lengths], place: Path, say: Callable[[str], None]
) -> tuple[TrainingResult, Splits]:
    """One training on a draw of the training rows."""
    inputs: Inputs = {
        "data": run.splits.fingerprint,
        "max_train_tokens": budget,
        "seed": seed,
        # by which rows are counted in tokens
        "tokenizer": run.base.tokenizer_sha256,
        "thinking": run.recipe.model.thinking,
        **version_inputs(package_versions(("fieldtune", "transformers", "tokenizers"))),
    }
    drawn = run_stage(
        place / "data", "draw", inputs, lambda out: draw(run.splits, lengths, budget, seed, out), Splits, say
    )
    own = Run(run.recipe.model_copy(update={"seed": seed}), place, say, rows=drawn)
    return own.trained, drawn


class _Measuring:
    """Measures trained models and their base, all on the same held-out rows; the base is run once."""

    def __init__(self, run: Run, folder: Path, say: Callable[[str], None]) -> None:
        self._run = run
        self._folder = folder
        self._say = say
        self._items = run.items(load_tokenizer(run.base.path))
        base = run.base
        subject = Subject(name="base", engine="hf", path=base.path)
        self._base = describe(subject, ships=False, shown_as=str(base.path), sha256=base.sha256).candidate

    def base(self) -> dict[str, Measurement]:
        """The base's measurements by check."""
        return self._measured([self._base], "base")

    def of(self, trained: TrainingResult, name: str) -> dict[str, Measurement]:
        """A trained model's measurements by check; the base is the reference that divergences are from."""
        described = described_as_trained(trained, self._run.base, name, shown_as=str(trained.folder))
        return self._measured([self._base, described.candidate], name)

    def _measured(self, candidates: Sequence[Candidate], name: str) -> dict[str, Measurement]:
        recipe = self._run.recipe
        measured = measure(
            candidates,
            self._items,
            recipe.check.measures.steps(),
            self._folder,
            tokenizer=self._run.base.path,
            threads=recipe.check.threads or available_cores(),
            say=self._say,
        )
        return {measurement.check: measurement for measurement in measured.measurements[name]}
