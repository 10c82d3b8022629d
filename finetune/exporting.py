"""The exports of a run: each artifact made once, a device's limits as bytes, and what is tried where no file passes.

What an artifact is made with is its format's to say (`export.formats`); stages are run, and files judged, by
`finetune.pipeline`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from export.artifacts import Fallback, ModelFolder, QuantizedModel
from export.errors import EngineError, ExportError, FieldtuneError
from export.formats import ExportRows, Format
from export.formats.gguf import SIXTEEN_BIT
from export.formats.target import Target
from export.stage import Inputs, flatten, version_inputs
from export.verdict import Verdict
from finetune.device_target import DeviceBudget, device_budget, limits_of
from finetune.devices import device_identity, find_device
from finetune.export_rows import RowsToDraw

# Runs a stage: the variant, what it depends on, the work.
RunStage = Callable[[str, Inputs, Callable[[Path], QuantizedModel]], QuantizedModel]
# The same for a target's device: the target's variant, what its bytes depend on, the work.
RunBudget = Callable[[str, Inputs, Callable[[Path], DeviceBudget]], DeviceBudget]


class Exporting:
    """Makes artifacts of one merged model. `merged_sha256` is that of its folder."""

    def __init__(
        self,
        steps: Sequence[Format],
        merged: ModelFolder,
        merged_sha256: str,
        rows: RowsToDraw,
        run_stage: RunStage,
        run_budget: RunBudget,
        say: Callable[[str], None],
    ) -> None:
        self._asked, self._merged, self._merged_sha256 = tuple(steps), merged, merged_sha256
        self._rows, self._run_stage, self._run_budget, self._say = rows, run_stage, run_budget, say
        self._tried: dict[str, QuantizedModel] = {}
        self._refused: set[str] = set()
        self.made: dict[str, QuantizedModel] = {}
        self.budgets: list[DeviceBudget] = []

    def all(self) -> tuple[QuantizedModel, ...]:
        """Every artifact that is asked for, in order, and what was tried besides."""
        asked = (self._export(step, variant) for step in self._steps for variant in step.variants())
        return (*asked, *self._tried.values())

    def try_next(self, verdicts: Mapping[str, Verdict]) -> bool:
        """Makes the next variant of the first format of which every file failed; False where there is none to make.

        `verdicts` are by subject. A file of which it cannot be told has not failed: what would settle it is rows.
        """
        for step in self._steps:
            files = [self.made[v] for v in (*step.variants(), *step.further()) if v in self.made]
            files = [file for file in files if file.subject != f"gguf/{SIXTEEN_BIT}"]
            left = [variant for variant in step.further() if variant not in self._tried.keys() | self._refused]
            if not files or any(verdicts.get(file.subject) != "fail" for file in files):
                continue
            failed = ", ".join(file.subject for file in files)
            for variant in left:
                self._say(f"every file failed ({failed}): trying {variant}")
                try:
                    made = self._export(step, variant)
                except (ExportError, EngineError) as error:
                    self._not_made(variant, files[0].subject, error)
                    continue
                self._tried[variant] = self._in_place_of(files, made)
                return True
            if step.further():
                self._say(f"every file failed ({failed}), and nothing is left to try")
        return False

    def _not_made(self, variant: str, beside: str, error: FieldtuneError) -> None:
        """Tells of a variant that was to be tried with the first file that failed, so that the report holds it."""
        self._say(f"{variant} could not be made: {error}")
        fallback = Fallback(what="file", asked=variant, used="none", reason=f"it could not be made: {error}")
        (name,) = [name for name, file in self.made.items() if file.subject == beside]
        file = self.made[name]
        self.made[name] = file.model_copy(update={"fallbacks": (*file.fallbacks, fallback)})
        self._refused.add(variant)

    def _in_place_of(self, failed: Sequence[QuantizedModel], model: QuantizedModel) -> QuantizedModel:
        """The artifact, with why it was made: a file beyond those asked for is part of the result."""
        nearest = max(failed, key=lambda file: file.size_bytes)
        more = (model.size_bytes - nearest.size_bytes) / 1e6
        fallback = Fallback(
            what="file",
            asked=", ".join(file.subject for file in failed),
            used=model.subject,
            reason=f"none of them passed; {more:+,.1f} MB beside {nearest.subject}",
        )
        return model.model_copy(update={"fallbacks": (*model.fallbacks, fallback)})

    @cached_property
    def _steps(self) -> tuple[Format, ...]:
        """The formats, a device's target with the bytes that it leaves."""
        return tuple(map(self._sized, self._asked))

    def _sized(self, step: Format) -> Format:
        if not isinstance(step, Target) or step.device is None:
            return step
        name, sixteen_bit = step.device, f"gguf-{SIXTEEN_BIT}"
        limits = limits_of(step)
        inputs = {
            **flatten("limits", limits.model_dump(mode="json")),
            **flatten("file", step.settings_for(sixteen_bit)),
            "device": device_identity(name),
            "types": ", ".join(step.types),
            "merged": self._merged_sha256,
            **version_inputs(step.tool_versions()),
        }

        def work(out: Path) -> DeviceBudget:
            sixteen_bit_file, device = self._export(step, sixteen_bit).path, find_device(name, self._say)
            return device_budget(sixteen_bit_file, device, limits, out, types=step.types)

        (variant,) = step.variants()
        budget = self._run_budget(variant, inputs, work)
        self.budgets.append(budget)
        self._say(f"target: {budget.sentence()}")
        return step.sized(budget.size_bytes)

    def _export(self, step: Format, variant: str) -> QuantizedModel:
        """One artifact, made once in this process however many others are made from it."""
        if variant not in self.made:
            self.made[variant] = self._quantize(step, variant)
        return self.made[variant]

    def _quantize(self, step: Format, variant: str) -> QuantizedModel:
        wanted = step.rows_wanted(variant)
        inputs = {
            **flatten("export", step.settings_for(variant)),
            "merged": self._merged_sha256,
            **self._rows.inputs(wanted),
            **version_inputs(step.tool_versions()),
        }

        def work(out: Path) -> QuantizedModel:
            rows = self._rows.draw(wanted) if any(wanted) else ExportRows()
            return step.quantize(variant, self._merged, rows, out, lambda name: self._export(step, name), self._say)

        return self._run_stage(variant, inputs, work)
