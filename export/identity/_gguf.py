"""What a GGUF file is, compared with its reference: read with its own template and vocabulary, through llama.cpp."""

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
from export.promises import Promise
from export.readers.gguf import read_gguf


def gguf_findings(
    subject: str, path: Path, reference: Reference, promise: Promise, *, compare_weights: bool
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
        *_importance_finding(subject, content.metadata),
    )


def _converted(reference: Reference) -> tuple[Converted | None, str]:
    """What llama.cpp's converter makes of the reference, or why it makes nothing of it."""
    try:
        return converted(reference.folder), ""
    except (ModelError, ExportError) as error:
        return None, str(error)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _importance_finding(subject: str, metadata: dict[str, object]) -> tuple[Finding, ...]:
    """Says on what an importance matrix was measured, where the file was made with one."""
    dataset = metadata.get("quantize.imatrix.dataset")
    if dataset is None:
        return ()
    found = f"an importance matrix measured on {dataset}"
    return (
        Finding(
            what="calibration rows",
            subject=subject,
            ok=True,
            found=found,
            expected="none of the held-out rows",
            note="not recorded: which rows it saw cannot be told",
        ),
    )
