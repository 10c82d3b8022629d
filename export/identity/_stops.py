"""Which tokens end an answer: in the reference, in a GGUF file and in a folder.

A runtime that does not stop at the turn's end writes both sides of the conversation; one that stops at a token of
ordinary text cuts answers short.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.identity._reading import Reference
from export.identity.finding import Finding
from export.readers.gguf import GgufContent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from export.engines.llama_library import Answers

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


def _stops_of(reference: Reference) -> set[int]:
    """The ids at which the reference itself stops, by its own files; the turn's end where they name none."""
    named = () if reference.declared_end is None else (reference.declared_end,)
    return {*named, *declared_stops(reference.folder)} or {reference.turn_end}


def _ends_allowed(reference: Reference) -> set[int]:
    """What may be named as the end: the reference's own, or the turn's end, which in a base model is the better one."""
    return {reference.turn_end, *(() if reference.declared_end is None else (reference.declared_end,))}


def _turn_end_note(stops_there: bool, expected: set[int], reference: Reference) -> str:
    """What is to be said of a reference that does not stop at the turn's end, as Qwen's base models do not."""
    end = reference.turn_end
    if end in expected:
        return ""
    shown = reference.shown(end)
    if stops_there:
        return f"it stops at the turn's end, {shown}, too, at which the reference does not"
    return f"neither it nor the reference stops at the turn's end, {shown}: both would write on"


def gguf_stops_finding(subject: str, content: GgufContent, answers: "Answers", reference: Reference) -> Finding:
    """Whether llama.cpp stops where the reference stops, and at nothing else that the file itself names."""
    expected = _stops_of(reference)
    problems = list(_gguf_problems(content, answers, expected, reference))
    extra = [token for token in answers.stop_ids if token not in expected | {reference.turn_end}]
    notes = [_turn_end_note(reference.turn_end in answers.stop_ids, expected, reference)]
    # "</s>" is plain text to Qwen's own tokenizer: the probes leave it out, and a row that holds it is a mismatch
    if extra:
        listed = _listed(extra, reference)
        notes.append(f"{listed} are ends to llama.cpp by their names, wherever a text spells them")
    return _finding(subject, problems, answers.stop_ids, expected, reference, "; ".join(filter(None, notes)))


def _gguf_problems(content: GgufContent, answers: "Answers", expected: set[int], reference: Reference) -> Iterator[str]:
    turn_end, show, ends = reference.turn_end, reference.shown, _ends_allowed(reference)
    if turn_end in expected and turn_end not in answers.stop_ids:
        yield f"llama.cpp does not stop at the turn's end, {show(turn_end)}"
    if missing := sorted(expected - set(answers.stop_ids) - {turn_end}):
        yield f"llama.cpp would not stop at the ids {missing}, at which the reference does"
    if answers.end_of_sequence not in ends:
        yield f"the file's end of sequence is {show(answers.end_of_sequence)}"
    if answers.end_of_turn not in {-1, *ends}:
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
    expected = _stops_of(reference)
    declared = declared_stops(folder)
    found = {*declared, *(() if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),))}
    problems = list(_folder_problems(declared, tokenizer, reference))
    if missing := sorted(expected - found - {reference.turn_end}):
        problems.append(f"it does not stop at {_listed(missing, reference)}, as the reference does")
    extra = sorted(found - expected - {reference.turn_end})
    notes = [_turn_end_note(reference.turn_end in found, expected, reference)]
    if extra and of_reference:
        problems.append(f"it stops at {_listed(extra, reference)}, at which the reference does not")
    elif extra:
        notes.append("the reference's folder names no stop ids of its own to compare with")
    return _finding(subject, problems, tuple(sorted(found)), expected, reference, "; ".join(filter(None, notes)))


def _folder_problems(
    declared: tuple[int, ...], tokenizer: "PreTrainedTokenizerBase", reference: Reference
) -> Iterator[str]:
    show, end = reference.shown, tokenizer.eos_token_id
    if end != reference.declared_end and end != reference.turn_end:
        yield f"the tokenizer's end of sequence is {'none' if end is None else show(int(end))}"
    # where the reference's files do not say, its tokenizer's end is what a generation config should name
    of_reference = declared_stops(reference.folder) or (reference.declared_end,)
    if reference.turn_end in of_reference and reference.turn_end not in declared:
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
