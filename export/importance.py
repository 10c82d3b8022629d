"""What each input channel of a linear layer carries on the rows of the domain: importance data for llama.cpp.

The mean square of every input channel, over all tokens of chat-formatted rows: the diagonal of the layer's Hessian, by
which llama.cpp weights a row's rounding errors ("imatrix", its pull request 4861). Gathered in one pass through the
16-bit model, template and all, and kept in the GGUF form of llama.cpp's own tools (its tools/imatrix). Rounding with it
is the quantizer's affair (`export.formats`).

llama.cpp's tool leaves the output head out unless asked, and has nothing for an embedding. Here the head is gathered
too; where the two are one tensor its channels stand under the embedding's name, since its rounding is felt at the head.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.artifacts import ImportanceUsed
from export.converter import reordered
from export.errors import ExportError, ModelError
from export.quantization_record import row_sha256
from export.readers.gguf import read_gguf, rows_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

# Its ending is not .gguf: a folder of one model holds one file that ends so.
IMPORTANCE_FILE = "importance.imatrix"
SUMS, COUNTS = ".in_sum2", ".counts"
# Kept beside the file's own keys: the hashes of the rows, by which a held-out row would be found among them.
_ROWS_KEY = "fieldtune.calibration_rows_sha256"
_ROUNDING_KEY = "fieldtune.rounding"


class ChannelImportance(NamedTuple):
    """One tensor's input channels: their mean squares, shape (channels,), over `tokens` tokens."""

    tokens: int
    mean_squares: "NDArray[np.float32]"

    @property
    def never_active(self) -> int:
        """Channels that were zero for every token: nothing is known of what their weights are worth."""
        return int((self.mean_squares == 0).sum())


class Importances(NamedTuple):
    """Importance by GGUF tensor name, the hashes of the rows it was measured on, and what was lost by rounding."""

    of: Mapping[str, ChannelImportance]
    rows_sha256: tuple[str, ...]
    rounding: str = ""

    @property
    def tokens(self) -> int:
        """Tokens that were run: those of the tensor that saw most."""
        return max(entry.tokens for entry in self.of.values())

    def used_for(self, tensors: Sequence[str]) -> ImportanceUsed:
        """The record of what a file of these quantized tensors was made with."""
        return ImportanceUsed(
            rows=len(self.rows_sha256),
            tokens=self.tokens,
            tensors=sum(name in self.of for name in tensors),
            without=tuple(name for name in tensors if name not in self.of),
            never_active_channels={name: count for name in tensors if (count := self._never_active(name))},
            rounding=self.rounding,
        )

    def _never_active(self, name: str) -> int:
        return self.of[name].never_active if name in self.of else 0


def gather(folder: Path, rows: Sequence[Sequence[int]]) -> Importances:
    """Runs the model in `folder` once over `rows` of token ids, and returns what its linear layers were given.

    It computes in float32 where that fits: in bfloat16 mean squares were seen to be off by 0.5 %.

    Raises ExportError for rows without tokens, for activations that are not finite, and for a folder that llama.cpp's
    converter does not know; ModelError for one that cannot be loaded.
    """
    import torch

    from export.hardware import torch_device
    from export.loading import open_model
    from export.precision import best_precision

    rows = [row for row in rows if row]
    if not rows:
        raise ExportError("importance data needs calibration rows, and was given none. Give the recipe training rows.")
    device, precision = torch_device(), best_precision(folder)
    model = open_model(folder, dtype=precision.dtype, device=device).model.eval()
    layers = _linear_layers(model)
    sums = {name: torch.zeros(layer.in_features, dtype=torch.float64, device=device) for name, layer in layers.items()}
    tokens = dict.fromkeys(layers, 0)
    handles = [layer.register_forward_pre_hook(_adding_to(sums, tokens, name)) for name, layer in layers.items()]
    with torch.inference_mode():
        for row in rows:
            model(torch.tensor([list(row)], device=device), use_cache=False)
    for handle in handles:
        handle.remove()
    # a layer that no row reaches has no importance, and is counted among those without
    means = {name: sums[name] / count for name, count in tokens.items() if count}
    found = _by_gguf_name(folder, layers, means, tokens)
    return Importances(found, tuple(map(row_sha256, rows)), precision.rounding)


def _linear_layers(model: Any) -> dict[str, Any]:
    """Linear layers by the names of what they multiply by; a tied head's is the embedding's."""
    import torch

    names = {id(module): name for name, module in model.named_modules()}
    tied = model.config.tie_word_embeddings
    return {
        names[id(model.get_input_embeddings())] if tied and layer is model.get_output_embeddings() else name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def _adding_to(sums: "dict[str, torch.Tensor]", tokens: dict[str, int], name: str) -> Any:
    """A hook that adds the squares of a layer's inputs, in float32 for a row and in float64 over rows."""

    def add(_layer: Any, inputs: "tuple[torch.Tensor, ...]") -> None:
        given = inputs[0].detach().float().flatten(0, -2)
        sums[name] += given.square().sum(0)
        tokens[name] += len(given)

    return add


def _by_gguf_name(
    folder: Path, layers: Mapping[str, Any], means: "Mapping[str, torch.Tensor]", tokens: Mapping[str, int]
) -> dict[str, ChannelImportance]:
    """Mean squares under the names, and in the order of channels, of a GGUF file: as the converter has them.

    It is given matrices of the weights' shapes with the same mean squares in each row, so that whatever it does to
    rows does not matter.
    """
    found = {}
    for name, mean in means.items():
        if not bool(mean.isfinite().all()):
            raise ExportError(
                f"the inputs of {name} are not finite on the calibration rows: the model overflows or its weights are "
                "broken. Check the merged model's perplexity before quantizing it."
            )
        found[f"{name}.weight"] = mean.float().cpu().expand(layers[name].out_features, -1)
    seen = max(tokens.values())
    return {
        name: ChannelImportance(seen, weight.reshape(-1, weight.shape[-1])[0].numpy().copy())
        for name, weight in sorted(reordered(folder, found).items())
    }


def write_importances(importances: Importances, path: Path) -> None:
    """Writes llama.cpp's imatrix file, in GGUF: per tensor the sum of squares and the number of tokens.

    A row is a chunk there; since rows differ in length, the chunk size is their mean.
    """
    import gguf
    import numpy as np

    class ImatrixWriter(gguf.GGUFWriter):
        def add_architecture(self) -> None:
            """An imatrix file names none."""

    rows = len(importances.rows_sha256)
    writer = ImatrixWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array(gguf.Keys.IMatrix.DATASETS, [f"{rows} training rows of the recipe"])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, rows)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, max(1, round(importances.tokens / rows)))
    writer.add_array(_ROWS_KEY, list(importances.rows_sha256))
    if importances.rounding:
        writer.add_string(_ROUNDING_KEY, importances.rounding)
    for name, entry in importances.of.items():
        sums = entry.mean_squares.astype(np.float64) * entry.tokens
        writer.add_tensor(f"{name}{SUMS}", sums.astype(np.float32)[None])
        writer.add_tensor(f"{name}{COUNTS}", np.array([[entry.tokens]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_importances(path: Path) -> Importances:
    """Reads a file of `write_importances`. Raises ModelError for one that is broken, or is no imatrix file."""
    content = read_gguf(path)
    stored = {tensor.name: tensor for tensor in content.tensors}
    names = [name.removesuffix(SUMS) for name in stored if name.endswith(SUMS)]
    if content.metadata.get("general.type") != "imatrix" or not all(f"{name}{COUNTS}" in stored for name in names):
        raise ModelError(f"{path} is no importance data in llama.cpp's GGUF form. Gather it again.")
    found = {}
    for name in names:
        count = float(rows_of(stored[f"{name}{COUNTS}"], 0, 1)[0, 0])
        found[name] = ChannelImportance(int(count), rows_of(stored[f"{name}{SUMS}"], 0, 1)[0] / count)
    return Importances(found, tuple(content.metadata.get(_ROWS_KEY, ())), content.metadata.get(_ROUNDING_KEY, ""))
