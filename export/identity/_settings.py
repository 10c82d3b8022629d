"""Whether an artifact runs with its reference's settings: rotary base, epsilon, heads, context length.

Weights mean something else under other settings. A context length that is too short costs nothing on short rows, and
cuts every long text in the runtimes that go by it.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ModelError
from export.identity._reading import Reference
from export.identity.finding import Finding

if TYPE_CHECKING:
    from export.converter import Converted

WHAT = "settings"
# Set by how a folder is stored, of training alone, or looked at by a finding of their own.
_OF_THE_FOLDER = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "quantization_config",
        "tie_word_embeddings",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)
_SHOWN = 3


def gguf_settings_finding(subject: str, metadata: dict[str, Any], converted: "Converted | None", why: str) -> Finding:
    """Compares what the file's metadata say of the architecture with what the converter makes of the reference.

    A key that the file does not have is left to llama.cpp's default, which runs the reference's rows too. Scaling of
    the rotary embedding that the reference does not have is another model.
    """
    if converted is None:
        return _not_compared(subject, why)
    architecture = "general.architecture"
    expected = {k: v for k, v in converted.settings.items() if k == architecture or not k.startswith("general.")}
    different = [key for key, value in expected.items() if key in metadata and not _same(metadata[key], value)]
    added = [key for key in metadata if ".rope.scaling." in key and key not in expected]
    found = [f"{key} is {metadata[key]} and not {expected.get(key, 'there')}" for key in (*different, *added)]
    return _finding(subject, found, len(expected), str(converted.folder))


def folder_settings_finding(subject: str, folder: Path, reference: Reference) -> Finding:
    """Compares a folder's config.json with the reference's, as transformers reads both."""
    if reference.config is None:
        return _not_compared(subject, "the reference's folder has no config.json")
    try:
        known = _config(reference.folder)
    except ModelError as error:
        return _not_compared(subject, str(error))
    found, expected = _config(folder).to_dict(), known.to_dict()
    # what the architecture reads: some who publish models add words of their own
    keys = sorted(type(known)().to_dict().keys() - _OF_THE_FOLDER)
    different = [key for key in keys if not _same(found.get(key), expected.get(key))]
    words = [f"{key} is {found.get(key)} and not {expected.get(key)}" for key in different]
    return _finding(subject, words, len(keys), str(reference.folder))


def _config(folder: Path) -> Any:
    """The language model's config."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"transformers cannot read the config in {folder}: {str(error)[:200]}") from error
    return config.get_text_config()


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) or isinstance(right, float):
        numbers = all(isinstance(value, int | float) for value in (left, right))
        return numbers and math.isclose(left, right, rel_tol=1e-6)
    return bool(left == right)


def _finding(subject: str, problems: list[str], compared: int, folder: str) -> Finding:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return Finding(
        what=WHAT,
        subject=subject,
        ok=not problems,
        found="; ".join(problems[:_SHOWN]) + more if problems else f"the same {compared} settings",
        expected=f"the settings of {folder}",
    )


def _not_compared(subject: str, why: str) -> Finding:
    return Finding(what=WHAT, subject=subject, ok=True, found="not compared", expected="the reference's", note=why)
