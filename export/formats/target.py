"""A target in bytes: the GGUF file of that size, or of those bits per weight, whose types were searched for.

The search is `export.search`'s, by the gate's own divergence on validation rows; llama.cpp's quantizer writes what was
found, and the gate judges the file as any other, on held-out rows. A device's limits are turned into bytes by
`finetune.device_target`.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from export.artifacts import Fallback, ModelFolder, QuantizedModel
from export.chat import Encoded
from export.errors import ExportError
from export.formats._base import ExportRows, Format, RowsWanted
from export.formats.gguf import FILE_TYPES, NEEDS_IMPORTANCES, SIXTEEN_BIT, Gguf, described
from export.importance import Importances, read_importances
from export.plugins import nearest
from export.readers.gguf import block_size

if TYPE_CHECKING:
    from export.device.sizes import PlannedTensor
    from export.readers.gguf import GgufContent, StoredTensor
    from export.search import Search, SearchRecord
    from export.search.type_files import TypeFiles

# What a tensor can be stored in, and the file type that is named after it.
CANDIDATES = {
    **{name: name for name in ("q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "iq4_xs")},
    **{name: name for name in ("iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs", "iq2_xxs", "q2_0")},
    **{name: f"{name}_m" for name in ("q5_k", "q4_k", "q3_k")},
}


class Target(Format):
    """One GGUF file of a size: each tensor in the type by which the file loses least, found by measuring."""

    size_bytes: int | None = Field(default=None, gt=0, description="largest size of the file; or one of the next two")
    bits_per_weight: float | None = Field(
        default=None, gt=0, description="stored bits over stored weights, the header left out"
    )
    device: str | None = Field(
        default=None,
        min_length=1,
        description="a device that the file has to run on: a shipped profile's name, a profile's path, or this_machine",
    )
    context_tokens: int = Field(default=2048, ge=1, description="with device: tokens of prompt and answer to hold")
    min_tokens_per_second: float | None = Field(
        default=None, gt=0, description="with device: the speed that it must reach, its context full"
    )
    types: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        default=("q8_0", "q6_k", "q5_1", "q5_0", "q4_1", "q4_0", "q4_k", "iq4_nl", "iq4_xs", "q3_k", "q2_k"),
        min_length=1,
        description="ggml types to choose from; a tensor has those whose blocks of 32 or 256 divide its rows",
    )
    calibration_rows: int = Field(default=256, ge=1, description="training rows that importance is measured on")
    search_rows: int = Field(
        default=64,
        ge=2,
        description="validation rows to measure mixes on; where they are too few, training rows too, of those that "
        "importance was not measured on",
    )
    bands: int = Field(default=3, ge=1, description="parts of the depth whose sensitivity is measured each")
    presets: int = Field(default=2, ge=0, description="llama.cpp's own file types below the target to measure as well")
    moves: int = Field(default=6, ge=0, description="changes of the best mix to measure at the end")

    @model_validator(mode="after")
    def _says_one_size(self) -> Self:
        if sum(given is not None for given in (self.size_bytes, self.bits_per_weight, self.device)) != 1:
            raise ValueError("write one of size_bytes, bits_per_weight and device, such as bits_per_weight: 4.3")
        if self.device is None and {"context_tokens", "min_tokens_per_second"} & self.model_fields_set:
            raise ValueError("context_tokens and min_tokens_per_second are a device's: write device as well")
        for name in self.types:
            if name not in CANDIDATES:
                raise ValueError(f"unknown type {name!r}. {nearest(name.lower(), tuple(CANDIDATES))}")
        return self

    def rows_wanted(self, variant: str) -> RowsWanted:
        """See `Format.rows_wanted`."""
        if variant != self._name:
            return self._gguf.rows_wanted(variant)
        return RowsWanted(self.calibration_rows, search=self.search_rows)

    def variants(self) -> tuple[str, ...]:
        """See `Format.variants`. Named by what was asked for: bits per weight, or megabytes."""
        return (self._name,)

    def ingredients(self) -> tuple[str, ...]:
        """See `Format.ingredients`."""
        return (f"gguf-{SIXTEEN_BIT}", *self._gguf.ingredients())

    def settings_for(self, variant: str) -> dict[str, object]:
        """See `Format.settings_for`."""
        return self.model_dump(mode="json") if variant == self._name else self._gguf.settings_for(variant)

    def check_model(self, config: dict[str, object]) -> None:
        """See `Format.check_model`."""
        self._gguf.check_model(config)

    def least_bytes(self, content: "GgufContent") -> int:
        """What a mix of a 16-bit file of this content takes at least: each matrix in its smallest type that fits.

        The search knows it to the byte, but only of files that are there; this is known before anything is trained.
        """
        least = sum(least_tensor_bytes(tensor, self.types) for tensor in content.tensors)
        return min(tensor.offset for tensor in content.tensors) + least

    def bytes_asked(self, header_bytes: int, weights: int) -> int | None:
        """How large a file with that header and so many weights may be; None where a device is to say it."""
        return (
            self.size_bytes if self.bits_per_weight is None else header_bytes + int(self.bits_per_weight * weights / 8)
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
        """See `Format.quantize`. Raises ExportError where no mix meets the target; what was measured is kept then.

        The folder holds search.json: what was tried, foretold and measured.
        """
        if variant != self._name:
            return self._gguf.quantize(variant, model, rows, out, made)
        source, importance = made(f"gguf-{SIXTEEN_BIT}"), made(self._gguf.importance_variant)
        importances = read_importances(importance.path)
        kept = out.parent / f".search-{variant}"
        kept.mkdir(exist_ok=True)
        record = self._search(source, importance, importances, model, rows.search, kept, say)
        shutil.copyfile(importance.path, out / importance.path.name)
        result = self._write(record, source, importances, out)
        result = result.model_copy(update={"fallbacks": (*result.fallbacks, *self._rows_otherwise(rows))})
        for large in (*kept.glob("*/*.gguf"), *kept.glob("*/*.npy")):
            large.unlink()
        return result

    def _rows_otherwise(self, rows: ExportRows) -> tuple[Fallback, ...]:
        """What is to be told of the rows that the mix was chosen by."""
        asked, found, trained_on = self.search_rows, len(rows.search), rows.search_from_training
        if found == asked and not trained_on:
            return ()
        used = f"{found - trained_on} validation rows" + (f" and {trained_on} training rows" if trained_on else "")
        reason = "there are no more validation rows; raise data.valid_share"
        return (Fallback(what="search rows", asked=f"{asked} validation rows", used=used, reason=reason),)

    def tool_versions(self) -> dict[str, str]:
        """See `Format.tool_versions`."""
        return self._gguf.tool_versions()

    @property
    def _name(self) -> str:
        if self.device is not None:
            return f"gguf-mix-{Path(self.device).stem}"
        size = f"{self.bits_per_weight:g}" if self.size_bytes is None else f"{self.size_bytes / 1e6:.0f}mb"
        return f"gguf-mix-{size}"

    def sized(self, size_bytes: int) -> Self:
        """The same with its device's limits worked out as bytes."""
        return self.model_copy(update={"size_bytes": size_bytes})

    @property
    def _gguf(self) -> Gguf:
        """The format that makes what a mix is made from."""
        return Gguf(types=(), importance="domain", calibration_rows=self.calibration_rows)

    def _search(
        self,
        source: QuantizedModel,
        importance: QuantizedModel,
        importances: Importances,
        model: ModelFolder,
        rows: Sequence[Encoded],
        kept: Path,
        say: Callable[[str], None],
    ) -> "SearchRecord":
        from export.chat_tokenizer import load_tokenizer
        from export.formats._gguf_quantize import quantize_file
        from export.search import search

        return search(
            source.path,
            self._settings(),
            rows,
            importances,
            quantize_file,
            kept,
            budget=self._budget_bytes,
            made_from={"source": source.sha256, "importance": importance.sha256, **self.tool_versions()},
            vocabulary_size=len(load_tokenizer(model.folder)),
            say=say,
        )

    def _settings(self) -> "Search":
        from export.search import Search

        presets = tuple(name for name in (*FILE_TYPES, *NEEDS_IMPORTANCES) if name not in ("q1_0", "tq1_0", "tq2_0"))
        return Search(types=self.types, file_types=presets, bands=self.bands, presets=self.presets, moves=self.moves)

    def _budget_bytes(self, files: "TypeFiles") -> int:
        asked = self.bytes_asked(files.header_bytes(), files.weights)
        assert asked is not None, "a device's limits are worked out before anything is searched"
        return asked

    def _write(
        self, record: "SearchRecord", source: QuantizedModel, importances: Importances, out: Path
    ) -> QuantizedModel:
        """The mix as llama.cpp's quantizer writes it. Raises ExportError unless it has the size that was measured."""
        from export.formats._gguf_quantize import quantize_file
        from export.search import RECORD

        path = out / f"model-{self._name.removeprefix('gguf-')}.gguf"
        fallbacks = quantize_file(source.path, _at_least(record.types), path, importances, record.types)
        if path.stat().st_size != record.size_bytes:
            raise ExportError(
                f"{path.name} has {path.stat().st_size:,} bytes; the mix that was measured has {record.size_bytes:,}. "
                "This is a fault of fieldtune; the record of the search tells more."
            )
        (out / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return described(path, self._name.removeprefix("gguf-"), fallbacks, self.tool_versions(), importances)


def least_tensor_bytes(tensor: "StoredTensor | PlannedTensor", types: Sequence[str]) -> int:
    """What a tensor takes in the smallest of these types that its rows divide into; a vector is never quantized."""
    blocks = [block_size(name) for name in types if tensor.row < tensor.weights]
    fitting = [tensor.weights // block * of_block for block, of_block in blocks if tensor.row % block == 0]
    return min([*fitting, tensor.size_bytes])


def _at_least(types: dict[str, str]) -> str:
    """The file type whose number the file carries: that of the smallest type in it, so that it promises no more."""
    from export.readers.gguf import bits_per_weight

    return CANDIDATES.get(min(types.values(), key=bits_per_weight), "q8_0")


step = Target
