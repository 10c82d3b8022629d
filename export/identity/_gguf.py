"""What a GGUF file is, compared with its reference: read with its own template and vocabulary, through llama.cpp."""

from collections.abc import Sequence
from pathlib import Path

from export.converter import Converted, converted
from export.engines.llama_library import ask
from export.errors import ExportError, ModelError
from export.identity._reading import Read, Reference, rendered_by, template_finding, token_ids_finding
from export.identity._settings import gguf_settings_finding
from export.identity._stops import gguf_stops_finding
from export.identity._tensors import gguf_weights_finding
from export.identity._vocabulary import PLAIN_TEXT, added_finding, gguf_rows, gguf_tokens, vocabulary_finding
from export.identity._weights import gguf_tied_finding, gguf_types_finding
from export.identity.finding import Finding
from export.importance import IMPORTANCE_FILE, read_importances
from export.promises import Promise
from export.readers.gguf import read_gguf


def gguf_findings(
    subject: str,
    path: Path,
    reference: Reference,
    held_out: Sequence[str],
    promise: Promise,
    *,
    compare_weights: bool,
) -> tuple[Finding, ...]:
    """Everything that is looked at in a GGUF file. Raises ModelError or EngineError when it cannot be opened."""
    content = read_gguf(path)
    if not any(tensor.rows > 1 for tensor in content.tensors):
        raise ModelError(f"{path} holds a vocabulary and no weights. Give the file of the whole model.")
    template = _text(content.metadata.get("tokenizer.chat_template"))
    texts = rendered_by(reference.tokenizer, template, reference)
    asked = [*(seen.text for seen in texts), *(row.text for row in reference.rows)]
    answers = ask(path, asked, whole=PLAIN_TEXT)
    read = Read(template, texts, answers.ids[: len(texts)], answers.ids[len(texts) :])
    tokens = gguf_tokens(content)
    known, why = _converted(reference)
    return (
        template_finding(subject, read, reference),
        token_ids_finding(subject, read, reference),
        gguf_stops_finding(subject, content, answers, reference),
        added_finding(subject, answers.whole_ids, reference),
        vocabulary_finding(subject, tokens, gguf_rows(content), reference, rows_are_tokens=True),
        gguf_types_finding(subject, content, promise),
        gguf_tied_finding(subject, content, reference),
        gguf_settings_finding(subject, content.metadata, known, why),
        *([gguf_weights_finding(subject, content, known, why)] if compare_weights else []),
        *_importance_finding(subject, path, content.metadata, held_out),
    )


def _converted(reference: Reference) -> tuple[Converted | None, str]:
    """What llama.cpp's converter makes of the reference, or why it makes nothing of it."""
    try:
        return converted(reference.folder), ""
    except (ModelError, ExportError) as error:
        return None, str(error)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _importance_finding(
    subject: str, path: Path, metadata: dict[str, object], held_out: Sequence[str]
) -> tuple[Finding, ...]:
    """On what the importance data was measured that the file was made with, and whether held-out rows were among it.

    Which rows those were is known of files made here, beside which the data lies.
    """
    dataset = metadata.get("quantize.imatrix.dataset")
    if dataset is None:
        return ()
    beside = path.parent / IMPORTANCE_FILE
    recorded = read_importances(beside).rows_sha256 if beside.is_file() else ()
    seen = len({*recorded} & {*held_out})
    told = "a row is recognised by the hash of its token ids: one that was changed would not be"
    found = f"{seen} of the {len(held_out)} held-out rows among the {len(recorded)} that importance was measured on"
    if not recorded or not held_out:
        found = f"an importance matrix measured on {dataset}"
        told = "there are no held-out rows to look for" if recorded else "which rows it saw is not recorded"
    expected = "none of the held-out rows"
    return (Finding(what="calibration rows", subject=subject, ok=seen == 0, found=found, expected=expected, note=told),)
