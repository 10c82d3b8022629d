"""Whether each token id means the same text in an artifact as in its reference, and whether there is a row for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from export.identity._reading import Reference
from export.identity.finding import Finding
from export.readers.gguf import GgufContent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHAT = "vocabulary"
# The matrices that have a row per token id.
GGUF_MATRICES = ("token_embd.weight", "output.weight")
_SHOWN = 3
# Whatever else its ids hold was put around it.
PLAIN_TEXT = "a"


def vocabulary_finding(
    subject: str, tokens: Sequence[str], rows: dict[str, int], reference: Reference, *, rows_are_tokens: bool
) -> Finding:
    """Compares an artifact's token list with the reference tokenizer's; `rows` are the lengths of its matrices.

    Ids beyond the reference's are padding, and allowed. A GGUF file's matrices must have a row for each token of its
    list (`rows_are_tokens`), those of a folder at least one for each token that the reference knows.
    """
    known = reference.tokens
    problems = []
    if len(tokens) < len(known):
        problems.append(f"{len(tokens):,} tokens")
    other = [i for i, (a, b) in enumerate(zip(tokens, known, strict=False)) if b and a != b]
    if other:
        listed = ", ".join(f"{i} is {tokens[i]!r} and not {known[i]!r}" for i in other[:_SHOWN])
        problems.append(f"{len(other):,} ids with another text: {listed}{', …' if len(other) > _SHOWN else ''}")
    for name, count in rows.items():
        needed = len(tokens) if rows_are_tokens else len(known)
        if count < needed or (rows_are_tokens and count != needed):
            problems.append(f"{name} has {count:,} rows for {needed:,} tokens")
    return Finding(
        what=WHAT,
        subject=subject,
        ok=not problems,
        found="; ".join(problems) or f"the same text for all {len(known):,} ids",
        expected=f"the {len(known):,} tokens of {reference.folder}",
        note=_padding(len(tokens), reference),
    )


def gguf_tokens(content: GgufContent) -> tuple[str, ...]:
    """The token list of a GGUF file."""
    tokens = content.metadata.get("tokenizer.ggml.tokens")
    return tuple(map(str, tokens)) if isinstance(tokens, list) else ()


def gguf_rows(content: GgufContent) -> dict[str, int]:
    """How many rows the file's embedding and head have."""
    found = {name: content.tensor(name) for name in GGUF_MATRICES}
    return {name: tensor.rows for name, tensor in found.items() if tensor is not None}


def _padding(count: int, reference: Reference) -> str:
    beyond = count - len(reference.tokens)
    return f"{beyond:,} more ids, which the reference's tokenizer does not use" if beyond > 0 else ""


def added_finding(subject: str, found: Sequence[int], reference: Reference) -> Finding:
    """Whether a text gets around it what the reference's tokenizer puts there; `found` are the ids of PLAIN_TEXT."""
    expected = plain_text_ids(reference.tokenizer)
    words = [", ".join(map(reference.shown, ids)) for ids in (found, expected)]
    return Finding(
        what="added tokens",
        subject=subject,
        ok=tuple(found) == expected,
        found=f"a plain text, {PLAIN_TEXT!r}, becomes {words[0] or 'nothing'}",
        expected=f"{words[1] or 'nothing'}, as by the reference's tokenizer",
    )


def plain_text_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The ids of PLAIN_TEXT with what a tokenizer puts around a text."""
    return tuple(tokenizer(PLAIN_TEXT)["input_ids"])
