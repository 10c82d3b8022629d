"""GPTQ: rounds each linear layer so that its output on calibration rows changes least, and writes a folder that
`AutoModelForCausalLM.from_pretrained` loads.

Quantizes through optimum's GPTQQuantizer over gptqmodel (Frantar et al. 2022, arXiv 2210.17323). What those two do
otherwise than asked is recorded by `_gptq_recording`, what a model allows is found by `_gptq_plan`; running the result
is the hf engine's affair.
"""

import contextlib
import gc
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from export.artifacts import (
    Fallback,
    ModelFolder,
    QuantizedModel,
    read_model_config,
    sha256_of_folder,
)
from export.engines import Subject, hf
from export.errors import ExportError
from export.formats._base import ExportRows, Format, RowsWanted
from export.formats._gptq_plan import WORD_BITS, Plan, check_blocks_take_the_same, plan_for, require_packages
from export.formats._gptq_recording import recording
from export.formats._gptq_tuned import Tuning, require_tuning, tune
from export.hardware import compute_dtype, package_versions
from export.loading import open_model
from export.quantization_record import RECORD, CalibrationRecord, ModuleRecord, QuantizationRecord, row_sha256
from export.weights import weight_facts

if TYPE_CHECKING:
    import torch

Bits = Literal[2, 3, 4, 8]
_ComputedIn = Literal["float32", "bfloat16"]
GROUP_SIZES = (128, 64, 32)
_TUNED, _TUNER = "-tuned", "auto-round"


class _Work(NamedTuple):
    """One model to be rounded: how, from which folder into which, and on which calibration sequences."""

    bits: int
    group_size: int
    plan: Plan
    source: Path
    sequences: list[tuple[int, ...]]
    out: Path
    computed_in: _ComputedIn


class Gptq(Format):
    """GPTQ folders for transformers, vLLM and other GPU runtimes, calibrated on the recipe's own training rows."""

    bits: Annotated[tuple[Bits, ...], BeforeValidator(lambda v: (v,) if isinstance(v, int) else v)] = Field(
        default=(4,), min_length=1, description="bits per weight: 2, 3, 4 or 8, or a list of them (one folder each)"
    )
    when_failing: Annotated[
        tuple[Bits | Literal["tuned"], ...], BeforeValidator(lambda v: (v,) if isinstance(v, int | str) else v)
    ] = Field(
        default=(),
        description="what to try in this order, one at a time, while every one of `bits` fails the gate: more bits, or "
        "'tuned', the same bits with rounding that AutoRound tunes",
    )
    tuning_steps: int = Field(default=200, ge=1, description="steps that 'tuned' takes for each block")
    group_size: Literal["auto", 128, 64, 32] = Field(
        default="auto",
        description="weights that share a scale; 'auto' takes the largest of 128, 64, 32 that divides every layer",
    )
    desc_act: bool = Field(
        default=False,
        description="quantize columns in order of activation size; slower, and some runtimes refuse such files",
    )
    symmetric: bool = Field(
        default=True,
        description="zero sits in the middle of the grid; false writes the gptq_v2 form, which fewer runtimes read",
    )
    damp: float = Field(
        default=0.1, gt=0, lt=1, description="share of the Hessian's mean diagonal added to it before inverting"
    )
    calibration_rows: int = Field(default=256, ge=1, description="training rows to calibrate on")
    general_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="share of the calibration rows that are general ones, where the recipe has `general` rows",
    )
    calibration_tokens: int = Field(
        default=512, ge=32, description="tokens per calibration sequence; rows are packed end to end into these"
    )

    def variants(self) -> tuple[str, ...]:
        """See `Format.variants`."""
        return tuple(f"gptq-{bits}bit" for bits in dict.fromkeys(self.bits))

    def further(self) -> tuple[str, ...]:
        """See `Format.further`."""
        further = (
            f"gptq-{max(self.bits)}bit{_TUNED}" if one == "tuned" else f"gptq-{one}bit" for one in self.when_failing
        )
        return tuple(variant for variant in dict.fromkeys(further) if variant not in self.variants())

    def settings_for(self, variant: str) -> dict[str, object]:
        """A folder depends on its own number of bits alone, whichever others are asked for."""
        settings = {
            **self.model_dump(mode="json", exclude={"bits", "when_failing", "tuning_steps"}),
            "variant": variant,
        }
        if not variant.endswith(_TUNED):
            return settings
        return {**settings, "tuning_steps": self.tuning_steps, "tuned by": package_versions((_TUNER,))}

    def rows_wanted(self, variant: str) -> RowsWanted:
        """See `Format.rows_wanted`."""
        return RowsWanted(self.calibration_rows, self.general_share)

    def check_installed(self) -> None:
        """See `Format.check_installed`."""
        require_packages()
        if "tuned" in self.when_failing:
            require_tuning()

    @model_validator(mode="after")
    def _tuned_is_symmetric(self) -> "Gptq":
        if "tuned" in self.when_failing and not self.symmetric:
            raise ValueError(
                "when_failing: 'tuned' writes the first form of the format, which has no code for a zero point of 0: "
                "leave `symmetric` true, or take 'tuned' out"
            )
        return self

    def check_model(self, config: dict[str, object]) -> None:
        """See `Format.check_model`. Also raises MissingDependencyError when the packages are not installed."""
        plan = plan_for(json.dumps(config, sort_keys=True))
        self._group_size(plan)
        if "tuned" in self.when_failing and (plan.blocks_differ or plan.attention_differs):
            raise ExportError(
                f"gptq.when_failing: 'tuned' cannot be used for {config.get('model_type')}: its blocks differ, and "
                "AutoRound runs each with what the first one was given. Name more bits instead, such as 8."
            )

    def quantize(
        self,
        variant: str,
        model: ModelFolder,
        rows: ExportRows,
        out: Path,
        made: Callable[[str], QuantizedModel],
        say: Callable[[str], None] = print,
    ) -> QuantizedModel:
        """See `Format.quantize`. Raises ExportError when the result is not finite or does not load as it was written.

        The folder holds the tokenizer's files unchanged, and quantization.json: what was done to each layer.
        """
        is_tuned = variant.endswith(_TUNED)
        bits = int(variant.removeprefix("gptq-").removesuffix(_TUNED).removesuffix("bit"))
        plan = plan_for(json.dumps(read_model_config(model.folder), sort_keys=True))
        group_size, group_fallbacks = self._group_size(plan)
        sequences, used, data_fallbacks = self._calibration(rows, plan)
        computed_in = _computed_in(bits)
        rounded = self._run_tuned if is_tuned else self._run
        records = rounded(_Work(bits, group_size, plan, model.folder, sequences, out, computed_in))
        _copy_other_files(model.folder, out)
        kernel = _check_result(out, sequences[0])
        record = QuantizationRecord(
            bits=bits,
            group_size=group_size,
            damp=0.0 if is_tuned else self.damp,
            desc_act=self.desc_act and not is_tuned,
            symmetric=self.symmetric,
            computed_in=computed_in,
            calibration=used,
            modules=records,
            tuning_steps=self.tuning_steps if is_tuned else None,
        )
        (out / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        _refuse_not_finite(out)
        facts = weight_facts(out)
        return QuantizedModel(
            folder=out,
            subject=f"gptq/{bits}bit{_TUNED if is_tuned else ''}",
            file_name=None,
            engine="hf",
            size_bytes=facts.size_bytes,
            bits_per_weight=facts.bits_per_weight,
            sha256=sha256_of_folder(out),
            tensor_types=facts.tensor_types,
            fallbacks=(
                *group_fallbacks,
                *data_fallbacks,
                *_left_dense(plan, bits),
                *(fallback for module in records for fallback in module.fallbacks(self.damp)),
                *(self._not_carried_by_tuning() if is_tuned else ()),
            ),
            tools={
                **self.tool_versions(),
                **(package_versions((_TUNER,)) if is_tuned else {}),
                "kernel it was checked with": kernel,
            },
        )

    def _not_carried_by_tuning(self) -> Iterator[Fallback]:
        """The settings that mean nothing to tuned rounding, where they were asked for."""
        if self.desc_act:
            reason = "tuned rounding knows no order of columns"
            yield Fallback(what="desc_act", asked="true", used="false", reason=reason)
        if self.damp != type(self).model_fields["damp"].default:
            reason = "tuned rounding inverts no Hessian"
            yield Fallback(what="damp", asked=f"{self.damp:g}", used="none", reason=reason)

    def tool_versions(self) -> dict[str, str]:
        """See `Format.tool_versions`."""
        return package_versions(("gptqmodel", "optimum", "torch", "transformers"))

    def _group_size(self, plan: Plan) -> tuple[int, tuple[Fallback, ...]]:
        """The group size to use. Raises ExportError when the one asked for does not divide every layer's inputs."""
        fitting = [size for size in GROUP_SIZES if all(layer.inputs % size == 0 for layer in plan.layers)]
        asked = GROUP_SIZES[0] if self.group_size == "auto" else self.group_size
        if asked in fitting:
            return asked, ()
        odd = next(layer for layer in plan.layers if layer.inputs % asked)
        reason = f"{odd.name} has {odd.inputs} inputs, which {asked} does not divide"
        if self.group_size == "auto":
            used = fitting[0]
            return used, (Fallback(what="group size", asked=str(asked), used=str(used), reason=reason),)
        raise ExportError(
            f"gptq.group_size {asked} cannot be used: {reason}. Sizes that fit this model: "
            f"{', '.join(map(str, fitting))}; or leave it 'auto'."
        )

    def _calibration(
        self, given: ExportRows, plan: Plan
    ) -> tuple[list[tuple[int, ...]], CalibrationRecord, tuple[Fallback, ...]]:
        """Packs rows end to end into equal sequences: padding tokens would enter the Hessian as if they were text."""
        general = [tuple(row) for row in given.general if row]
        own = given.calibration[: self.calibration_rows - len(general)]
        rows = [*(tuple(row) for row in own if row), *general]
        ids = tuple(chain.from_iterable(rows))
        if len(ids) < WORD_BITS:
            raise ExportError(
                f"GPTQ was given {len(rows)} calibration rows with {len(ids)} tokens in all; it needs at least "
                f"{WORD_BITS} tokens and should have thousands. Give it more training rows."
            )
        length = min(self.calibration_tokens, len(ids))
        sequences = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
        tokens = length * len(sequences)
        used = CalibrationRecord(
            rows=len(rows),
            sequences=len(sequences),
            sequence_tokens=length,
            tokens=tokens,
            rows_sha256=tuple(map(row_sha256, rows)),
            general_rows=len(general),
        )
        widest = max(plan.layers, key=lambda layer: layer.inputs)
        fallbacks = []
        wanted = round(len(rows) * self.general_share)
        if general and len(general) < wanted:
            asked, used_rows, reason = str(wanted), str(len(general)), "there are no more general training rows"
            fallbacks.append(Fallback(what="general calibration rows", asked=asked, used=used_rows, reason=reason))
        if len(rows) < self.calibration_rows:
            reason = "the training split has no more rows to give"
            asked = str(self.calibration_rows)
            fallbacks.append(Fallback(what="calibration rows", asked=asked, used=str(len(rows)), reason=reason))
        if tokens < widest.inputs:
            reason = f"with fewer tokens than {widest.name} has inputs its Hessian is singular; damping fills the rest"
            asked = f"at least {widest.inputs}"
            fallbacks.append(Fallback(what="calibration tokens", asked=asked, used=str(tokens), reason=reason))
        return sequences, used, tuple(fallbacks)

    def _run_tuned(self, work: _Work) -> tuple[ModuleRecord, ...]:
        """The same as `_run`, by AutoRound."""
        tuning = Tuning(
            source=work.source,
            out=work.out,
            bits=work.bits,
            group_size=work.group_size,
            symmetric=self.symmetric,
            steps=self.tuning_steps,
            sequences=tuple(work.sequences),
            kept=tuple(work.plan.kept),
            computed_in=work.computed_in,
        )
        return tune(tuning, work.plan)

    @hf.quiet_gptqmodel()
    def _run(self, work: _Work) -> tuple[ModuleRecord, ...]:
        """Quantizes the model and saves it; the layers' records."""
        import torch
        from optimum.gptq import GPTQQuantizer

        plan, model = work.plan, open_model(work.source, dtype=getattr(torch, work.computed_in)).model
        quantizer = GPTQQuantizer(
            bits=work.bits,
            group_size=work.group_size,
            damp_percent=self.damp,
            desc_act=self.desc_act,
            act_group_aware=not self.desc_act,
            sym=self.symmetric,
            dataset=[{"input_ids": [list(s)], "attention_mask": [[1] * len(s)]} for s in work.sequences],
            # optimum asks for one list for all blocks; where they differ it walks each block's own layers
            modules_in_block_to_quantize=None if plan.blocks_differ else [list(group) for group in plan.passes],
        )
        check_blocks_take_the_same(model, work.sequences[0])
        with recording(model) as records, _packed_without_compiler(), _hidden(model, plan.kept):
            quantizer.quantize_model(model)
        _save(quantizer, model, plan, work.out)
        del model, quantizer
        gc.collect()
        return tuple(records.values())


step = Gptq


def _computed_in(bits: int) -> _ComputedIn:
    """The type to quantize in: 8-bit codes do not survive a stop in bfloat16, which has 8 bits itself."""
    return "float32" if bits == 8 or compute_dtype() != "bfloat16" else "bfloat16"


def _left_dense(plan: Plan, bits: int) -> Iterator[Fallback]:
    for name, why in plan.kept.items():
        yield Fallback(what=name, asked=f"{bits} bits", used="16 bits", reason=why)


@contextlib.contextmanager
def _hidden(model: "torch.nn.Module", kept: dict[str, str]) -> Iterator[None]:
    """Keeps optimum away from the layers that stay dense: it walks modules whose type is exactly Linear."""
    import torch

    class KeptLinear(torch.nn.Linear):
        """Computes as Linear does."""

    hidden = [
        module
        for path, module in model.named_modules()
        if type(module) is torch.nn.Linear and any(path.endswith(f".{name}") for name in kept)
    ]
    for module in hidden:
        module.__class__ = KeptLinear
    try:
        yield
    finally:
        for module in hidden:
            module.__class__ = torch.nn.Linear


@contextlib.contextmanager
def _packed_without_compiler() -> Iterator[None]:
    """Packs with torch alone: gptqmodel would compile a C++ extension on first use (47 s, and needs a compiler)."""
    name = "GPTQMODEL_DISABLE_PACK_EXT"
    before = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _save(quantizer: Any, model: Any, plan: Plan, out: Path) -> None:
    """Writes weights and config.json. What is not packed is stored in bfloat16, scales and packed biases in float16.

    config.json is corrected afterwards. optimum writes "gptq_v2" into it and then converts the weights to the first
    version of the format, so that a reader would shift every zero point by one; and it would publish the calibration
    rows, which are a user's data.
    """
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    quantizer.dataset = None
    quantizer.modules_in_block_to_quantize = [list(chain.from_iterable(plan.passes))] if plan.kept else None
    model.config.quantization_config = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        quantizer.save(model, str(out), max_shard_size="5GB")
    settings = quantizer.to_dict()
    config = {**read_model_config(out), "dtype": "bfloat16", "quantization_config": settings}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "quantize_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _copy_other_files(source: Path, out: Path) -> None:
    """Tokenizer, chat template, generation settings: byte for byte what the merged folder has."""
    for path in source.iterdir():
        is_weights = path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json")
        if path.is_file() and not is_weights and path.name not in ("config.json", "manifest.json", "README.md"):
            shutil.copyfile(path, out / path.name)


def _check_result(out: Path, sequence: tuple[int, ...]) -> str:
    """Loads the folder as a user would and runs a calibration sequence through it; the kernel that ran.

    Raises ExportError when the head parted from the embedding it is tied to, or when something is not finite.
    """
    import numpy as np
    import torch

    subject = Subject(name="gptq", engine="hf", path=out)
    engine = hf.load_hf(subject, vocabulary_size=None, threads=torch.get_num_threads())
    model = engine.model
    try:
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        if model.config.get_text_config().tie_word_embeddings and head.data_ptr() != embedding.data_ptr():
            raise ExportError(f"{out} ties its head to its embedding in config.json but stores two different ones.")
        if not np.isfinite(engine.log_probs(sequence, range(1, len(sequence)))).all():
            raise ExportError(
                "the GPTQ model gives non-finite outputs. Check the merged model's perplexity, raise gptq.damp, or "
                "use more bits."
            )
        return engine.kernel or "none"
    finally:
        engine.close()


def _refuse_not_finite(folder: Path) -> None:
    """Raises ExportError when a number in the weight files is not finite."""
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise ExportError(f"{name} is not finite after quantization: it does not fit {tensor.dtype}.")
