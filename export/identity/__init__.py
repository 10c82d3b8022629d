"""The checks that come before any number: is the file what it says it is, and does it read what it was trained on.

Every failure here has shipped in a published model: another chat template, a stop token that was lost in a merge, a
vocabulary cut into other tokens, a type that is not the one in the name. None of them needs the model to run, and each
makes every score of the file a score of something else.
"""

from pathlib import Path

from export.artifacts import EngineName
from export.checks import Items
from export.errors import EngineError, ModelError
from export.identity._reading import open_reference
from export.identity.finding import Finding
from export.promises import promised as promised_by
from export.quantization_record import row_sha256

__all__ = ["Finding", "identify"]

# What was looked at where nothing was wrong; whether an engine can run it shows when it is measured.
_LOOKED_AT: dict[EngineName, str] = {
    "llama_cpp": "every tensor lies within the file, and llama.cpp read its vocabulary; its weights were not run",
    "hf": "every tensor lies within its file, and transformers read its tokenizer; no engine has run it",
}


def identify(
    subject: str,
    path: Path,
    engine: EngineName,
    reference_folder: Path,
    items: Items | None = None,
    *,
    promised: str | None = None,
    thinking: bool = False,
    compare_weights: bool = True,
) -> tuple[Finding, ...]:
    """What the artifact at `path` is found to be, compared with the model folder it was, or is said to be, made from.

    `path` is a GGUF file or a model folder, whoever made it; `reference_folder` holds the reference's tokenizer, and
    its config.json and weights where there are any. Conversations of our own are read by both, and the first of the
    held-out `items`. `promised` is the type it is sold as ("q4_k_m", "4bit"); without it the file's name is asked.
    `compare_weights` is for a reference folder that holds the very model the artifact should be, and not a tokenizer
    that was lent. An artifact that cannot be opened is a finding named "file", and the only one.

    Raises ModelError when it is the reference that cannot be read.
    """
    rows = [] if items is None else [item.ids for item in items.items]
    reference = open_reference(reference_folder, rows, thinking=thinking)
    held_out = [row_sha256(ids) for ids in rows]
    promise = promised_by(promised or path.name)
    try:
        if engine == "llama_cpp":
            from export.identity._gguf import gguf_findings

            found = gguf_findings(subject, path, reference, held_out, promise, compare_weights=compare_weights)
        else:
            from export.identity._folder import folder_findings

            found = folder_findings(subject, path, reference, held_out, promise, compare_weights=compare_weights)
    except (ModelError, EngineError, OSError) as error:
        return (_file(subject, ok=False, found=str(error)),)
    return (_file(subject, ok=True, found=_LOOKED_AT[engine]), *found)


def _file(subject: str, *, ok: bool, found: str) -> Finding:
    return Finding(what="file", subject=subject, ok=ok, found=found, expected="complete, and in parts that can be read")
