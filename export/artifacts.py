"""What the stages hand to one another: small frozen objects that name folders on disk, and how they are hashed.

A stage's result knows its own folder but does not store it, so that a run folder can be moved. Nothing here loads a
model; `export.stage` writes and reads these objects.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from export.errors import ModelError
from export.frozen import Frozen

EngineName = Literal["hf", "llama_cpp"]
# What an adapter can be merged onto: the base's own weights, or the de-quantized NF4 ones that QLoRA trains beside.
MergeBase = Literal["16bit", "nf4"]

# The first words of a pointer file (git-lfs, docs/spec.md).
_GIT_LFS = b"version https://git-lfs"


class StageResult(Frozen):
    """What a finished stage left in `folder`; every other path in a result is relative to it."""

    folder: Path = Field(exclude=True)


class MergeCandidate(Frozen):
    """A merge that was made and measured: its mean KL divergence, in nats per token, from the adapter as trained.

    `n_tokens` are the assistant tokens of `n_rows` validation rows; `stderr` counts rows as independent, and is None
    where it would mean nothing. `note`, on the one that was kept, says why.
    """

    onto: MergeBase
    kl_mean: float
    stderr: float | None
    n_rows: int
    n_tokens: int
    kept: bool
    note: str = ""


class ModelFolder(StageResult):
    """A complete Hugging Face model folder in 16 or 32 bits: weights, config, tokenizer, chat template.

    `merge_candidates` holds both merges where what to merge onto was decided by measuring; else it is empty.
    """

    dtype: str
    base: str
    chat_template_sha256: str
    merged_onto: MergeBase | None = None
    merge_candidates: tuple[MergeCandidate, ...] = ()


class Fallback(Frozen):
    """Something that could not be done as asked and was done otherwise; part of a result, never only a log line."""

    what: str
    asked: str
    used: str
    reason: str


class ImportanceUsed(Frozen):
    """The importance data a file was quantized with: what it was measured on, and how far it reaches.

    `tensors` had some; `without` names the quantized ones that had none; `never_active_channels` counts, by tensor, the
    input channels that were zero for every token. `rounding` says, where it was, that the model was run less precisely
    than its weights ask for.
    """

    rows: int
    tokens: int
    tensors: int
    without: tuple[str, ...] = ()
    never_active_channels: dict[str, int] = Field(default_factory=dict)
    rounding: str = ""


class QuantizedModel(StageResult):
    """A file or folder that ships, with what was really made of the weights.

    `size_bytes`, `bits_per_weight` and `tensor_types` are those of `export.weights.WeightFacts`; `tools` names the
    versions that wrote it.
    """

    subject: str
    file_name: str | None
    engine: EngineName
    size_bytes: int
    bits_per_weight: float
    sha256: str
    tensor_types: dict[str, int] = Field(default_factory=dict)
    fallbacks: tuple[Fallback, ...] = ()
    tools: dict[str, str] = Field(default_factory=dict)
    importance: ImportanceUsed | None = None

    @property
    def path(self) -> Path:
        """What a runtime is given: the GGUF file, or the folder."""
        return self.folder / self.file_name if self.file_name else self.folder


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_folder(folder: Path) -> str:
    """SHA-256 over the names and bytes of every file below `folder`, in name order.

    What is written about a model is left out: its manifest, and its card, which is written anew with every check.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("manifest.json", "README.md")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def size_of_folder_bytes(folder: Path) -> int:
    """Bytes of every file below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole or not at all: a reader, or a crash, never meets half of it.

    Raises OSError, which names `path`, when it cannot be written; what stood there before is kept then.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)  # noqa: PTH105 - named for what it does: it replaces on every system
    except BaseException as error:
        with suppress(OSError):  # a name that cannot be written cannot be removed either
            partial.unlink()
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = str(path)  # what was asked for: nobody knows the partial one
        raise


def is_git_lfs_pointer(path: Path) -> bool:
    """Whether a file is the few lines that Git LFS leaves where it has not fetched the content."""
    with path.open("rb") as file:
        return file.read(len(_GIT_LFS)) == _GIT_LFS


def read_model_config(folder: Path) -> dict[str, Any]:
    """The model folder's config.json. Raises ModelError when the folder holds no model, or a broken config."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json. Give a Hugging Face folder.")
    if is_git_lfs_pointer(path):
        raise ModelError(f"{path} is a Git LFS pointer, not the file itself. Run 'git lfs pull' in {folder}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}. Fetch or save the model again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}; expected a JSON object. Fetch the model again.")
    return config
