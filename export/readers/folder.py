"""Reads the weights of a model folder tensor by tensor: safetensors, and the packed layers of a GPTQ folder.

Packing is that of AutoGPTQ, which gptqmodel and transformers read: codes fill 32-bit words from the lowest bits on,
32 codes to every `bits` words; a weight is its group's scale times (code minus zero point). The first version of the
format stores each zero point less one.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.artifacts import read_model_config
from export.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CODES = 32  # codes that fill whole words, whatever their width
PACKED, DENSE = ".qweight", ".weight"
_VERSIONS = ("gptq", "gptq_v2")


class PackedSettings(NamedTuple):
    """How a GPTQ folder's layers are packed."""

    bits: int
    group_size: int
    zero_points_less_one: bool


def packed_settings(config: dict[str, Any]) -> PackedSettings | None:
    """The packing that a config.json declares; None for a model that is not quantized.

    Raises ModelError for a quantization that is not GPTQ, a width that GPTQ does not have, or another layout.
    """
    refuse_broken_settings(config)
    settings = config.get("quantization_config")
    if not settings:
        return None
    method, bits = settings.get("quant_method"), settings.get("bits")
    version = settings.get("checkpoint_format") or settings.get("format") or _VERSIONS[0]
    if method != "gptq" or bits not in (2, 3, 4, 8) or version not in _VERSIONS:
        raise ModelError(
            f"its config.json declares the quantization {method!r} with {bits!r} bits in the format {version!r}; only "
            f"GPTQ with 2, 3, 4 or 8 bits in {' or '.join(_VERSIONS)} can be read."
        )
    return PackedSettings(bits, settings.get("group_size", -1), version != _VERSIONS[1])


def refuse_broken_settings(config: dict[str, Any]) -> None:
    """Raises ModelError for a declared quantization that is no mapping, or a GPTQ group size that is no size."""
    settings = config.get("quantization_config") or {}
    if not isinstance(settings, dict):
        raise ModelError(f"its config.json's quantization_config is {settings!r} and no mapping. Copy it again.")
    size = settings.get("group_size", -1)
    if settings.get("quant_method") == "gptq" and (type(size) is not int or (size != -1 and size <= 0)):
        raise ModelError(f"its config.json's group_size is {size!r}; -1 or a whole number from 1 on was expected.")


class FolderTensors:
    """The tensors of a folder's safetensors files, by name; valid while it is open (`open_tensors`)."""

    def __init__(self, folder: Path, tensors: dict[str, Any], config: dict[str, Any]) -> None:
        self.folder = folder
        self._config = config
        self._tensors = tensors

    @property
    def settings(self) -> PackedSettings | None:
        """How its layers are packed; see `packed_settings`."""
        return packed_settings(self._config)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, in the files' order."""
        return tuple(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's dimensions."""
        return tuple(self._tensors[name].get_slice(name).get_shape())

    def is_floating_point(self, name: str) -> bool:
        """Whether a tensor holds weights, and not codes or indexes."""
        return self.stored_as(name) in ("f64", "f32", "f16", "bf16")

    def stored_as(self, name: str) -> str:
        """A tensor's type, in lower case ("bf16")."""
        return str(self._tensors[name].get_slice(name).get_dtype()).lower()

    def rows(self, name: str, begin: int, end: int) -> "NDArray[np.float32]":
        """Rows `begin` to `end` of a tensor, in float32; a tensor of one dimension has its values as rows."""
        part = self._tensors[name].get_slice(name)[begin:end]
        array: NDArray[np.float32] = part.float().numpy()
        return array

    def whole(self, name: str) -> Any:
        """A tensor as it is stored."""
        return self._tensors[name].get_tensor(name)

    def is_packed(self, name: str) -> bool:
        """Whether the matrix `name` (its dense name, ending in ".weight") is stored packed. Raises as `settings`."""
        return self.settings is not None and name.removesuffix(DENSE) + PACKED in self._tensors

    def unpacked_columns(self, name: str, begin: int, end: int) -> "NDArray[np.float32]":
        """Columns `begin` to `end` (multiples of 32) of the packed matrix `name`; shape (outputs, end - begin)."""
        import numpy as np

        settings = self.settings
        assert settings is not None, "a packed layer in a folder without settings"
        layer, bits = name.removesuffix(DENSE), settings.bits
        words = self.rows_of_words(f"{layer}{PACKED}", begin // CODES * bits, end // CODES * bits)
        codes = unpack(words, bits)
        scales = self.whole(f"{layer}.scales").float().numpy()
        zeros = unpack(self.whole(f"{layer}.qzeros").numpy().view(np.uint32).T, bits).T
        if settings.zero_points_less_one:
            zeros = (zeros + 1) % (1 << bits)
        groups = self._groups(layer, begin, end, settings.group_size)
        weights = scales[groups] * (codes.astype(np.int32) - zeros.astype(np.int32)[groups])
        return np.asarray(weights.T, dtype=np.float32)

    def rows_of_words(self, name: str, begin: int, end: int) -> "NDArray[np.uint32]":
        """Rows of a packed tensor, as words."""
        import numpy as np

        words: NDArray[np.uint32] = self._tensors[name].get_slice(name)[begin:end].contiguous().numpy().view(np.uint32)
        return words

    def _groups(self, layer: str, begin: int, end: int, group_size: int) -> "NDArray[np.int64]":
        """The group of each input: stored, or in the inputs' order."""
        import numpy as np

        if f"{layer}.g_idx" in self:
            indexes: NDArray[np.int64] = self.whole(f"{layer}.g_idx").numpy()[begin:end].astype(np.int64)
            return indexes
        return np.arange(begin, end) // group_size if group_size > 0 else np.zeros(end - begin, dtype=np.int64)


def unpack(words: "NDArray[np.uint32]", bits: int) -> "NDArray[np.uint32]":
    """Codes of words along the first axis: (words, n) becomes (words * 32 / bits, n)."""
    import numpy as np

    fields = words.reshape(-1, bits, words.shape[1])
    codes = np.empty((fields.shape[0], CODES, words.shape[1]), dtype=np.uint32)
    for index in range(CODES):
        word, shift = divmod(index * bits, CODES)
        low = fields[:, word] >> np.uint32(shift)
        if shift + bits > CODES:
            low = low | fields[:, word + 1] << np.uint32(CODES - shift)
        codes[:, index] = low & np.uint32((1 << bits) - 1)
    return codes.reshape(-1, words.shape[1])


@contextmanager
def open_tensors(folder: Path) -> Iterator[FolderTensors]:
    """The tensors of every safetensors file in `folder`. Raises ModelError when there are none or one is broken."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no safetensors weights.")
    config = read_model_config(folder) if (folder / "config.json").is_file() else {}
    tensors: dict[str, Any] = {}
    with ExitStack() as stack:
        for path in files:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"{path} cannot be read: {error}. Copy it again.") from error
            tensors.update(dict.fromkeys(file.keys(), file))
        yield FolderTensors(folder, tensors, config)
