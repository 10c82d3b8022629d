"""The checks that come before any number: is the file what it says it is, and does it read what it was trained on.

Every failure here has shipped in a published model: another chat template, a stop token that was lost in a merge, a
vocabulary cut into other tokens, a type that is not the one in the name. None of them needs the model to run, and each
makes every score of the file a score of something else.
"""

from collections.abc import Sequence
from pathlib import Path

from export._finding import Finding
from export._identity_reading import open_reference
from export.artifacts import EngineName
from export.chat import Conversation
from export.checks._base import Items
from export.errors import EngineError, ModelError

__all__ = ["Finding", "identify"]


def identify(
    subject: str,
    path: Path,
    engine: EngineName,
    reference_folder: Path,
    items: Items | None = None,
    *,
    promised: str | None = None,
    conversations: Sequence[Conversation] = (),
    thinking: bool = False,
) -> tuple[Finding, ...]:
    """What the artifact at `path` is found to be, compared with the model folder it was, or is said to be, made from.

    `path` is a GGUF file or a model folder, whoever made it; `reference_folder` holds the reference's tokenizer, and
    its config.json and weights where there are any. Conversations of our own are read by both, and the first of the
    held-out `items` and `conversations`. `promised` is the type it is sold as ("q4_k_m", "4bit"); without it the
    file's name is asked. An artifact that cannot be opened is a finding named "file", and the only one.

    Raises ModelError when it is the reference that cannot be read.
    """
    from export.formats.gptq import row_sha256

    rows = [] if items is None else [item.ids for item in items.items]
    reference = open_reference(reference_folder, rows, conversations, thinking=thinking)
    held_out = [row_sha256(ids) for ids in rows]
    try:
        if engine == "llama_cpp":
            from export._identity_gguf import gguf_findings

            found = gguf_findings(subject, path, reference, promised)
        else:
            from export._identity_folder import folder_findings
            from export._identity_weights import promised_bits

            found = folder_findings(subject, path, reference, held_out, promised_bits(promised or path.name))
    except (ModelError, EngineError, OSError) as error:
        return (_file(subject, ok=False, found=str(error)),)
    return (_file(subject, ok=True, found="complete, and its engine can open it"), *found)


def _file(subject: str, *, ok: bool, found: str) -> Finding:
    return Finding(what="file", subject=subject, ok=ok, found=found, expected="a whole file that its engine can open")
