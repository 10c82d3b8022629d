"""Writes a model folder as one 16-bit GGUF file, by llama.cpp's own converter run in this process.

The GGUF format ships what it writes; the checks of identity and `export.retained` hold other files against it.

The converter is a class per architecture. It is subclassed where it would refuse or lose something: it knows a
pre-tokenizer only by a hash of the published models' ids, prefers a stale template, and leaves it to the runtime to
guess which token ends a turn. What was written is verified and quantized in `export.formats`.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from export.artifacts import Fallback
from export.errors import ExportError
from export.loading import open_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

FLOAT16_MAX = 65504.0
LAST_LINES = 6


def convert(
    folder: Path, name: str, out: Path, *, file_type: Literal["f16", "bf16"] | None = None
) -> tuple[Path, tuple[Fallback, ...]]:
    """Writes `out/model-f16.gguf` from the model folder, or `model-bf16.gguf` where float16 cannot hold a weight.

    `name` becomes `general.name`; `file_type` settles the 16-bit type whatever the weights are. Raises ExportError for
    a weight that is not finite and, with the converter's last words, for anything that it refuses.
    """
    import gguf
    import torch

    fallbacks = _range_fallback(folder)
    file_type = file_type or ("bf16" if fallbacks else "f16")
    path = out / f"model-{file_type}.gguf"
    with _captured_converter_log() as lines, torch.inference_mode():
        try:
            converter_type = _converter_type(folder)
            target = gguf.LlamaFileType[f"MOSTLY_{file_type.upper()}"]
            converter_type(folder, target, path, model_name=name).write()
        except OSError:
            raise  # a full disk is reported as one, by the stage
        except Exception as error:
            said = " / ".join([str(error), *lines[-LAST_LINES:]])
            raise ExportError(f"llama.cpp's converter could not convert {folder}: {said}") from error
    return path, fallbacks


def convert_header(folder: Path, name: str, path: Path) -> None:
    """Writes at `path` what `convert` would, but for the weights: they are a hole, which takes no disk.

    No weight is read, so that one beyond float16's range is not found. Raises ExportError as `convert` does.
    """
    import gguf
    import torch

    with _captured_converter_log() as lines, torch.inference_mode():
        try:
            converter = _converter_type(folder)(folder, gguf.LlamaFileType.MOSTLY_F16, path, model_name=name)
            converter.write_header()
        except OSError:
            raise
        except Exception as error:
            said = " / ".join([str(error), *lines[-LAST_LINES:]])
            raise ExportError(f"llama.cpp's converter could not read {folder}: {said}") from error


def write_with_hole(writer: Any, path: Path) -> None:
    """Writes a gguf writer's header, and lengthens the file as its tensors would."""
    tensors = [tensor for part in writer.tensors for tensor in part.values()]
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    padded = writer.ggml_pad
    size = padded(path.stat().st_size, writer.data_alignment)
    size += sum(padded(tensor.nbytes, writer.data_alignment) for tensor in tensors)
    with path.open("r+b") as file:
        file.truncate(size)


class Converted(NamedTuple):
    """What the converter makes of a model folder: the settings it would write, and its tensors by their names there."""

    folder: Path
    settings: dict[str, Any]
    lazy: dict[str, Any]

    def tensors(self) -> "Iterator[tuple[str, NDArray[np.float32]]]":
        """Each tensor's name and weights, as a file in 32 bits would hold them, in its order; they are read once.

        One is in memory at a time: a lazy tensor keeps what it was read as, and is dropped here.
        """
        from gguf.lazy import LazyNumpyTensor

        for name in list(self.lazy):
            yield name, LazyNumpyTensor.to_eager(self.lazy.pop(name))


def converted(folder: Path) -> Converted:
    """What a GGUF file of the folder should hold, without writing one. Raises ExportError as `convert` does."""
    import gguf
    import torch

    with _captured_converter_log() as lines, torch.inference_mode():
        try:
            converter = _converter_type(folder)(folder, gguf.LlamaFileType.ALL_F32, folder / "none", model_name="")
            converter.prepare_tensors()
            converter.set_gguf_parameters()
        except Exception as error:
            said = " / ".join([str(error), *lines[-LAST_LINES:]])
            raise ExportError(f"llama.cpp's converter could not read {folder}: {said}") from error
    writer = converter.gguf_writer
    settings = {key: value.value for part in writer.kv_data for key, value in part.items()}
    return Converted(folder, settings, {name: t.tensor for part in writer.tensors for name, t in part.items()})


def reordered(folder: Path, weights: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Tensors by their names in the folder, as the converter would name, split and order them in a GGUF file.

    It moves heads of linear attention about (Qwen3.5), and cuts what a folder holds as one. Raises ExportError as
    `convert` does.
    """
    import gguf
    import torch

    found: dict[str, torch.Tensor] = {}
    with _captured_converter_log() as lines, torch.inference_mode():
        try:
            converter = _converter_type(folder)(folder, gguf.LlamaFileType.ALL_F32, folder / "none", model_name="")
            for name, weight in weights.items():
                layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
                found.update(converter.modify_tensors(weight, name, layer))
        except Exception as error:
            said = " / ".join([str(error), *lines[-LAST_LINES:]])
            raise ExportError(f"llama.cpp's converter could not read {folder}: {said}") from error
    return found


def _range_fallback(folder: Path) -> tuple[Fallback, ...]:
    """Why float16 cannot hold this folder's matrices, when it cannot (one-dimensional weights stay in float32)."""
    beyond = []
    for name, dimensions, largest in _largest_weights(folder):
        if largest != largest or largest == float("inf"):
            raise ExportError(
                f"the weight {name} of {folder} holds values that are not finite. The model is broken: "
                "train or merge it again (in float32 if it was float16), and look at the loss."
            )
        if dimensions > 1 and largest > FLOAT16_MAX:
            beyond.append((name, largest))
    if not beyond:
        return ()
    name, largest = beyond[0]
    reason = f"{len(beyond)} tensor(s) hold values beyond float16's {FLOAT16_MAX:.0f}: {name} reaches {largest:.3g}"
    return (Fallback(what="the 16-bit file", asked="f16", used="bf16", reason=reason),)


def _largest_weights(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Name, number of dimensions and largest magnitude (NaN if any is) of each floating-point tensor."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ExportError(f"{folder} holds no .safetensors file. Save the merged model as safetensors.")
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict, and not iterable
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and tensor.numel():
                    yield name, tensor.ndim, float(tensor.abs().max())


def _converter_type(folder: Path) -> Any:
    """The converter's class for the folder's architecture, with our corrections."""
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    base: Any = get_model_class(architecture)
    known_name = pre_tokenizer_name(folder)
    tokenizer = open_tokenizer(folder)

    class Converter(base):
        model_arch = base.model_arch
        no_mtp = True  # a merged folder has no multi-token-prediction head

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            """The pre-tokenizer's name by its own regex, else by the converter's hashes."""
            return known_name or str(super().get_vocab_base_pre(tokenizer))

        def set_vocab(self) -> None:
            """Adds what the runtime would otherwise guess, and the template transformers would use."""
            super().set_vocab()
            self.gguf_writer.add_eos_token_id(tokenizer.eos_token_id)
            self.gguf_writer.add_eot_token_id(tokenizer.eos_token_id)
            self.gguf_writer.add_add_bos_token(False)
            if isinstance(tokenizer.chat_template, str):
                self.gguf_writer.add_chat_template(tokenizer.chat_template)

        def write(self) -> None:
            """As the parent writes a single file, without its progress bar."""
            self.prepare()
            self.gguf_writer.write_header_to_file(path=self.fname_out)
            self.gguf_writer.write_kv_data_to_file()
            self.gguf_writer.write_tensors_to_file(progress=False)
            self.gguf_writer.close()

        def write_header(self) -> None:
            """As `write`, with a hole for the weights."""
            self.prepare()
            write_with_hole(self.gguf_writer, self.fname_out)

        def prepare(self) -> None:
            """What the file will hold."""
            self.prepare_tensors()
            with _without_card(folder) as described:
                self.dir_model_card = described
                self.prepare_metadata(vocab_only=False)

    return Converter


@contextmanager
def _without_card(folder: Path) -> Iterator[Path]:
    """A folder of the same name that describes the model as `folder` does, but for its card.

    The converter copies the card's front matter into the file. Ours is written after the file was measured: a file made
    before it and one made after it would differ, though nothing about the model does.
    """
    with tempfile.TemporaryDirectory() as place:
        described = Path(place) / folder.name
        described.mkdir()
        for name in ("config.json", "generation_config.json"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, described / name)
        yield described


def pre_tokenizer_name(folder: Path) -> str | None:
    """llama.cpp's name of the folder's pre-tokenizer, when it is exactly Qwen2's or Qwen3.5's; else None.

    The regex is compared with the one transformers builds for each family, so a vocabulary of one's own is no
    obstacle: what llama.cpp needs to know is how text is cut before merges, not which merges there are.
    """
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
    from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(f"{folder} has no tokenizer.json. Save the tokenizer with transformers' save_pretrained.")
    pre_tokenizer = json.loads(path.read_text(encoding="utf-8")).get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    for name, regex in (("qwen2", QWEN2), ("qwen35", QWEN35)):
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        if len(steps) == 2 and steps[0] == split and _is_plain_byte_level(steps[1]):
            return name
    return None


def _is_plain_byte_level(step: dict[str, Any]) -> bool:
    return step.get("type") == "ByteLevel" and not step.get("add_prefix_space") and not step.get("use_regex")


@contextmanager
def _captured_converter_log() -> Iterator[list[str]]:
    """A block in which the converter prints nothing; the list holds its warnings and errors."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage().strip(" *\n"))

    loggers = [logging.getLogger(name) for name in ("hf-to-gguf", "gguf", "gguf.gguf_writer", "gguf.vocab")]
    before = [(logger.propagate, logger.level) for logger in loggers]
    handler = Keep(level=logging.WARNING)
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield lines
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate, logger.level = propagate, level
