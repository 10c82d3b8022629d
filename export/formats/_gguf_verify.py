"""Reads a converted GGUF file back and compares it with the folder it was made from, before anyone relies on it.

What is looked at is what every artifact is looked at for (`export.identity`); here it stops the export. What the
weights are worth is measured by running the file, elsewhere.
"""

from pathlib import Path

from export.errors import ExportError
from export.identity import Finding, identify


def verify(path: Path, folder: Path, promised: str) -> None:
    """Raises ExportError, with everything that was found, unless `path` holds the model of `folder` as `promised`."""
    # what its weights are worth is measured when the file is judged
    found = identify(path.name, path, "llama_cpp", folder, promised=promised, compare_weights=False)
    failed = [f for f in found if not f.ok]
    if failed:
        raise ExportError(
            f"{path.name} is not what {folder} is. {'. '.join(map(_in_words, failed))}. Keep the base model's "
            "tokenizer, chat template and generation config as they were."
        )


def _in_words(finding: Finding) -> str:
    note = f" ({finding.note})" if finding.note else ""
    return f"{finding.what}: found {finding.found}; expected {finding.expected}{note}"
