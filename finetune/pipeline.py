"""The stages in their order: data, train, merge, quantize, check, report. The only file that sees all of them.

Each stage is run through `export.stage.run_stage`, keyed by its part of the recipe, the results it builds on and the
versions of the libraries that make it, so that a second run does only what has to be done again.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from export.artifacts import (
    ModelFolder,
    QuantizedModel,
    StageResult,
    sha256_of_folder,
    sha256_of_json,
    write_atomically,
)
from export.card import write_cards
from export.categories import by_category
from export.chat_tokenizer import load_tokenizer
from export.checks import Items, Measurement
from export.companions import Compare
from export.compare import Comparison, Gate, compare_steps
from export.errors import TrainingError
from export.gate import Judged, judge
from export.hardware import available_cores, environment, package_versions, return_freed_memory
from export.page import write_page
from export.report import Report, write
from export.retained import RetainedShares, retained_in
from export.stage import Inputs, Manifest, flatten, read_manifest, run_stage, version_inputs
from export.subjects import Described
from finetune import earlier_run
from finetune.base_model import BaseModelSource, open_base
from finetune.companions import companions_of
from finetune.data import DataSettings, Splits, identity, prepare
from finetune.data.draw import lengths_of
from finetune.data.mixing import account, mix
from finetune.data.report import lines
from finetune.device_target import DeviceBudget, budget_folder
from finetune.export_rows import RowsToDraw
from finetune.exporting import Exporting
from finetune.hub import is_on_a_hub
from finetune.merge_choice import is_measured, merge_as_asked
from finetune.methods import Adapter, TrainingResult
from finetune.preflight import inspect, inspect_base
from finetune.recipe import Recipe, dump
from finetune.subjects import items_of, subjects_of_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Stage = Literal["data", "train", "merge", "quantize", "check"]
R = TypeVar("R", bound=StageResult)
STAGES: tuple[Stage, ...] = get_args(Stage)


class Run:
    """One recipe in one run folder. Each stage is a property: computed, or found finished, when first asked for."""

    def __init__(self, recipe: Recipe, folder: Path, say: Callable[[str], None], *, rows: Splits | None = None) -> None:
        """`rows` are those of another run, in place of the recipe's own."""
        self.recipe = recipe
        self.folder = folder
        self._say = say
        self._given_rows = rows

    def until(self, last: Stage) -> Report | None:
        """Runs the stages up to `last`; the report when that is the check."""
        earlier_run.refuse_another(self.folder, self.recipe)
        self._preflight()
        self.splits  # noqa: B018 - asking for a stage runs it; rows that cannot be used leave nothing behind
        self._write_recipe()
        if last == "train":
            self.trained  # noqa: B018
        elif last == "merge":
            self.merged  # noqa: B018
        elif last == "quantize":
            self.exports  # noqa: B018
        report = self.report() if last == "check" else None
        self._tell_of_leftovers()
        return report

    def preview(self, count: int) -> None:
        """Shows the first training rows token by token; also of rows that break the contract, to see why."""
        from finetune.data.preview import show_preview

        self._preflight()
        tokenizer = load_tokenizer(self.base.path)
        shown = [(f"train, row {n}", row) for n, row in enumerate(self.rows.conversations("train")[:count], start=1)]
        show_preview(shown, tokenizer, thinking=self.recipe.model.thinking)

    def _write_recipe(self) -> None:
        """Keeps the resolved recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "recipe.yaml", dump(self.recipe))

    def _tell_of_leftovers(self) -> None:
        """Names what lies in the run folder from an earlier recipe or training, so that nobody ships it by mistake."""
        ingredients = (name for step in self.recipe.export.steps() for name in step.ingredients())
        made = {step.folder for step in (self.splits, *self._finished())}
        made |= {self.folder / "export" / name for name in ingredients}
        if left := earlier_run.leftovers(self.folder, made):
            self._say(f"from an earlier run, not made or checked by this one: {', '.join(map(str, left))}")

    def _finished(self) -> tuple[StageResult, ...]:
        """The results that this run has made or found finished, besides the rows."""
        known = [vars(self).get(stage) for stage in ("trained", "merged")]
        exporting: Exporting | None = vars(self).get("_exporting")
        made = () if exporting is None else exporting.made.values()
        return (*(result for result in known if result is not None), *made)

    def report(self) -> Report:
        """Judges every file against the merged model, and writes report.json, report.html and the model cards."""
        judged = self._judged()
        while self._exporting.try_next(judged.verdicts):
            judged = self._judged()
        report = Report(
            recipe=self.recipe.model_dump(mode="json"),
            environment=environment().model_dump(mode="json"),
            stages=self._manifests(),
            subjects=judged.records(self._subjects()),
            measurements=judged.measurements,
            comparisons=judged.comparisons,
            findings=judged.findings,
            by_category=by_category(judged.measured),
            retained=self._retained().subjects,
            merge_candidates=self.merged.merge_candidates,
            safety=judged.safety,
            verdict=judged.verdict,
        )
        write(report, self.folder)
        write_page(report, judged.measured, tokenizer=self.merged.folder, folder=self.folder)
        write_cards(report, self.folder)
        return report

    def _subjects(self) -> tuple[Described, ...]:
        return subjects_of_run(self.base, self.trained, self.merged, self.exports, self.folder)

    def _judged(self) -> Judged:
        """The gate's word on every file there is; what was measured before is not measured again."""
        tokenizer = load_tokenizer(self.merged.folder)
        return judge(
            self._subjects(),
            self.items(tokenizer),
            self.recipe.check.measures.steps(),
            self.folder / "check",
            tokenizer=self.merged.folder,
            compare=self._comparing(self.recipe.gate),
            thinking=self.recipe.model.thinking,
            threads=self.recipe.check.threads or available_cores(),
            say=self._say,
            companions=companions_of(self.recipe, self.splits, self.general, tokenizer, self._comparing),
        )

    def items(self, tokenizer: "PreTrainedTokenizerBase") -> Items:
        """The held-out rows, and the safety items, as token ids."""
        data, settings = self.recipe.data, self.recipe.check
        return items_of(
            self.splits.conversations("held_out"),
            tokenizer,
            settings,
            seed=self.recipe.seed,
            thinking=self.recipe.model.thinking,
            system_prompt=data.system_prompt,
            labels=self.splits.labels,
        )

    def _comparing(self, gate: Gate | None) -> Compare:
        """How the subjects of a set are compared, under a gate or under none."""
        # merged onto the weights it was trained beside, an adapter is not allowed the rounding of the other ones
        trained = self.trained
        bits = {model.subject: model.bits_per_weight for model in self.exports}
        four_bit = isinstance(trained, Adapter) and trained.four_bit_base and self.merged.merged_onto != "nf4"

        def compare(measured: Mapping[str, Sequence[Measurement]]) -> tuple[Comparison, ...]:
            return compare_steps(measured, gate, four_bit_base=four_bit, seed=self.recipe.seed, bits=bits)

        return compare

    def _retained(self) -> RetainedShares:
        """How much of what fine-tuning changed each file kept."""
        inputs = {
            "base": self.base.sha256,
            "merged": sha256_of_folder(self.merged.folder),
            **{f"artifact {model.subject}": model.sha256 for model in self.exports},
        }

        def work(out: Path) -> RetainedShares:
            shares = retained_in(self.exports, self.merged.folder, self.base.path, out)
            if self.merged.merged_onto == "nf4":
                said = "the change is from the 16-bit base, and holds the rounding of the NF4 base that was merged onto"
                shares = tuple(share.model_copy(update={"note": f"{said}; {share.note}"}) for share in shares)
            return RetainedShares(folder=out, subjects=shares)

        return self._stage(self.folder / "check" / "retained", "retained change", inputs, work, RetainedShares)

    def _manifests(self) -> tuple[Manifest, ...]:
        """The manifests of the stages this report stands on."""
        rows = dict.fromkeys(splits.folder for splits in (self.splits, self.general, self.training_rows) if splits)
        made = (self.trained, self.merged, *self.exports, *self._exporting.budgets)
        folders = [*rows, *(stage.folder for stage in made)]
        return tuple(manifest for folder in folders if (manifest := read_manifest(folder)) is not None)

    @cached_property
    def base(self) -> BaseModelSource:
        """The base model, on this machine."""
        if is_on_a_hub(self.recipe.model.name) and not self.recipe.model.offline:
            self._say(f"model: looking up {self.recipe.model.name} (what is not on this machine yet is downloaded)")
        return open_base(self.recipe.model)

    @cached_property
    def _source(self) -> dict[str, str]:
        """What the rows are made of, by content. A large file is hashed once for a whole run."""
        return self._identity(self.recipe.data)

    def _identity(self, settings: DataSettings) -> dict[str, str]:
        return identity(settings, seed=self.recipe.seed, offline=self.recipe.model.offline)

    @cached_property
    def splits(self) -> Splits:
        """Rows that keep the contract. Raises ContractError where they do not."""
        splits = self.rows
        splits.require_contract()
        check = self.recipe.check
        check.options(splits.labels)  # what cannot be measured is refused before anything is trained
        counted = any(step.right_or_wrong for step in check.measures.steps()) and self._given_rows is None
        if counted and (few := splits.warning(self.recipe.gate, check.rows)):
            self._say(f"data: {few}")
        return splits

    @cached_property
    def rows(self) -> Splits:
        """Rows as conversations, split into train, valid and held-out, whether or not they keep the contract."""
        if self._given_rows is not None:
            return self._given_rows
        return self._prepared(self.recipe.data, self._source, "data")

    @cached_property
    def general(self) -> Splits | None:
        """General rows that keep their contract, in three splits; None where the recipe has none."""
        if self.recipe.general is None:
            return None
        settings = self.recipe.general.data
        general = self._prepared(settings, self._identity(settings), "general")
        general.require_contract()
        self.recipe.general.check.options(general.labels)
        return general

    @cached_property
    def training_rows(self) -> Splits:
        """The domain's rows, with general ones among those that are trained on where the recipe asks for a share."""
        recipe, general = self.recipe.general, self.general
        if recipe is None or general is None or not recipe.share:
            return self.splits
        share, seed, thinking = recipe.share, self.recipe.seed, self.recipe.model.thinking
        inputs: Inputs = {"data": self.splits.fingerprint, "general": general.fingerprint, "share": share, "seed": seed}

        def work(out: Path) -> Splits:
            lengths = lengths_of(general, load_tokenizer(self.base.path), thinking=thinking)
            return mix(self.splits, general, lengths, share, seed, out)

        mixed = self._stage(self.folder / "mixed", "mix", inputs, work, Splits)
        self._say(f"data: {account(mixed, share)}")
        return mixed

    def _prepared(self, settings: DataSettings, source: dict[str, str], name: str) -> Splits:
        """The stage that reads and splits rows, in the folder of this name."""
        inputs = {
            **flatten("data", settings.model_dump(mode="json", exclude={"path", "template"})),
            **flatten("source", source),
            "tokenizer": self.base.tokenizer_sha256,
            "thinking": self.recipe.model.thinking,
            "seed": self.recipe.seed,
            # they render, cut into tokens, and tell what is personal
            **version_inputs(package_versions(("transformers", "tokenizers", "phonenumbers", "python-stdnum"))),
        }

        def work(out: Path) -> Splits:
            return prepare(
                settings,
                load_tokenizer(self.base.path),
                name=self.recipe.name,
                seed=self.recipe.seed,
                thinking=self.recipe.model.thinking,
                offline=self.recipe.model.offline,
                out=out,
                source=source,
                say=self._say,
            )

        splits = self._stage(self.folder / name, name, inputs, work, Splits)
        for line in lines(splits.report()):
            self._say(f"{name}: {line}")
        return splits

    @cached_property
    def trained(self) -> TrainingResult:
        """The model as training left it: an adapter, or all weights."""
        inputs = {
            **flatten("train", self.recipe.train.model_dump(mode="json")),
            "data": self.training_rows.fingerprint,
            "base": self.base.sha256,
            "thinking": self.recipe.model.thinking,
            "dtype": self.base.dtype,
            "seed": self.recipe.seed,
            **version_inputs(package_versions(("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"))),
        }

        # a checkpoint is gone on from only by a training that would make the very same weights
        every = self.folder / ".checkpoints"
        own = every / sha256_of_json(inputs)[:16]

        def work(out: Path) -> TrainingResult:
            for other in every.glob("*"):
                if other != own:
                    shutil.rmtree(other)
            try:
                return self.recipe.train.train(
                    self.base, self.training_rows, out, checkpoints=own, seed=self.recipe.seed, say=self._say
                )
            except TrainingError:
                shutil.rmtree(own, ignore_errors=True)  # it would go wrong again from there
                raise

        result_type = self.recipe.train.result
        trained = self._stage(self.folder / result_type.name, "train", inputs, work, result_type)
        shutil.rmtree(every, ignore_errors=True)
        return trained

    @cached_property
    def merged(self) -> ModelFolder:
        """The 16-bit model: the adapter folded into the base's weights, or all weights as trained, rounded."""
        measured = is_measured(self.trained, self.recipe.merge)
        inputs = {
            **flatten("merge", self.recipe.merge.model_dump(mode="json")),
            self.trained.name: self.trained.weights_sha256(),
            "base": self.base.sha256,
            "data": self.splits.fingerprint if measured else None,
            "seed": self.recipe.seed if measured else None,
            "thinking": self.recipe.model.thinking if measured else None,
            "dtype": self.trained.dtype if measured else None,
            **version_inputs(package_versions(("torch", "transformers", "peft", "bitsandbytes"))),
        }

        def work(out: Path) -> ModelFolder:
            return merge_as_asked(
                self.trained, self.base, self.recipe.merge, self.splits, out, seed=self.recipe.seed, say=self._say
            )

        return self._stage(self.folder / "merged", "merge", inputs, work, ModelFolder)

    @property
    def exports(self) -> tuple[QuantizedModel, ...]:
        """Every artifact of every format the recipe asks for, in order, and what was tried where none passed."""
        return self._exporting.all()

    @cached_property
    def _exporting(self) -> Exporting:
        """What makes them."""
        rows = RowsToDraw(
            self.training_rows,
            self.splits,
            self.general,
            self.merged.folder,
            seed=self.recipe.seed,
            thinking=self.recipe.model.thinking,
        )

        def stage(variant: str, inputs: Inputs, work: Callable[[Path], QuantizedModel]) -> QuantizedModel:
            return self._stage(self.folder / "export" / variant, f"quantize {variant}", inputs, work, QuantizedModel)

        def budget(variant: str, inputs: Inputs, work: Callable[[Path], DeviceBudget]) -> DeviceBudget:
            return self._stage(budget_folder(self.folder, variant), f"room for {variant}", inputs, work, DeviceBudget)

        return Exporting(
            self.recipe.export.steps(),
            self.merged,
            sha256_of_folder(self.merged.folder),
            rows,
            stage,
            budget,
            self._say,
        )

    def _preflight(self) -> None:
        """Everything that can be known to fail before anything is trained."""
        inspect(self.recipe)
        self._source  # noqa: B018 - rows that are not there, or whose form cannot be told
        inspect_base(self.recipe, self.base, self._say)

    def _stage(self, folder: Path, stage: str, inputs: Inputs, work: Callable[[Path], R], result_type: type[R]) -> R:
        inputs = {**inputs, **version_inputs(package_versions(("fieldtune",)))}

        def replacing(out: Path) -> R:
            earlier_run.drop_report(self.folder, self._say)
            return work(out)

        result = run_stage(folder, stage, inputs, replacing, result_type, self._say)
        return_freed_memory()
        return result
