"""Which tokens end an answer: in the reference, in a GGUF file and in a folder.

A runtime that does not stop at the turn's end writes both sides of the conversation; one that stops at a token of
ordinary text cuts answers short.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export._finding import Finding
from export._gguf_reading import GgufContent
from export._identity_reading import Reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from export.engines._llama_answers import Answers

# Metadata that names a token which llama.cpp then stops at, besides those that it knows by their text.
_STOPS_NAMED = ("eom", "fim_pad", "fim_rep", "fim_sep")


def declared_stops(folder: Path) -> tuple[int, ...]:
    """The ids at which transformers would stop: of generation_config.json, else of config.json; none without them."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        stops = _json(path).get("eos_token_id") if path.is_file() else None
        listed = stops if isinstance(stops, list) else [stops]
        if found := tuple(token for token in listed if isinstance(token, int)):
            return found
    return ()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def gguf_stops_finding(subject: str, content: GgufContent, answers: "Answers", reference: Reference) -> Finding:
    """Whether llama.cpp stops where the reference stops, and at nothing else that the file itself names."""
    expected = {reference.turn_end, *declared_stops(reference.folder)}
    problems = list(_gguf_problems(content, answers, expected, reference))
    extra = [token for token in answers.stop_ids if token not in expected]
    # "</s>" is plain text to Qwen's own tokenizer: the probes leave it out, and a row that holds it is a mismatch
    by_name = f"{_listed(extra, reference)} are ends to llama.cpp by their names, wherever a text spells them"
    note = by_name if extra else ""
    return _finding(subject, problems, answers.stop_ids, expected, reference, note)


def _gguf_problems(content: GgufContent, answers: "Answers", expected: set[int], reference: Reference) -> Iterator[str]:
    turn_end, show = reference.turn_end, reference.shown
    if turn_end not in answers.stop_ids:
        yield f"llama.cpp does not stop at the turn's end, {show(turn_end)}"
    if missing := sorted(expected - set(answers.stop_ids) - {turn_end}):
        yield f"llama.cpp would not stop at the ids {missing}, which the reference's generation config names"
    if answers.end_of_sequence != turn_end:
        yield f"the file's end of sequence is {show(answers.end_of_sequence)}"
    if answers.end_of_turn not in (-1, turn_end):
        yield f"the file's end of turn is {show(answers.end_of_turn)}"
    added = set(reference.tokenizer.added_tokens_decoder)
    for name in _STOPS_NAMED:
        token = content.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and token not in expected | added:
            yield f"the file's {name} token, at which llama.cpp stops, is {show(token)}"


def folder_stops_finding(
    subject: str, folder: Path, tokenizer: "PreTrainedTokenizerBase", reference: Reference
) -> Finding:
    """Whether a folder's tokenizer and generation config name the reference's stop ids, all of them and no others."""
    of_reference = declared_stops(reference.folder)
    expected = {reference.turn_end, *of_reference}
    declared = declared_stops(folder)
    found = {*declared, *(() if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),))}
    problems = list(_folder_problems(declared, tokenizer, reference))
    if missing := sorted(expected - found - {reference.turn_end}):
        problems.append(f"it does not stop at {_listed(missing, reference)}, as the reference does")
    extra = sorted(found - expected)
    note = ""
    if extra and of_reference:
        problems.append(f"it stops at {_listed(extra, reference)}, at which the reference does not")
    elif extra:
        note = "the reference's folder names no stop ids of its own to compare with"
    return _finding(subject, problems, tuple(sorted(found)), expected, reference, note)


def _folder_problems(
    declared: tuple[int, ...], tokenizer: "PreTrainedTokenizerBase", reference: Reference
) -> Iterator[str]:
    turn_end, show = reference.turn_end, reference.shown
    if tokenizer.eos_token_id != turn_end:
        named = "none" if tokenizer.eos_token_id is None else show(int(tokenizer.eos_token_id))
        yield f"the tokenizer's end of sequence is {named}"
    if turn_end not in declared:
        named = _listed(declared, reference) or "none"
        yield f"the generation config's stop ids are {named}, without the turn's end"


def _finding(
    subject: str,
    problems: list[str],
    found: tuple[int, ...],
    expected: set[int],
    reference: Reference,
    note: str,
) -> Finding:
    wanted = f"a stop at {_listed(sorted(expected), reference)}"
    return Finding(
        what="stop ids",
        subject=subject,
        ok=not problems,
        found="; ".join(problems) or f"it stops at {_listed(sorted(set(found) & expected), reference)}",
        expected=wanted,
        note=note,
    )


def _listed(tokens: tuple[int, ...] | list[int], reference: Reference) -> str:
    return ", ".join(reference.shown(token) for token in tokens)
