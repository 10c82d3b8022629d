"""What a grammar does to a model and its rows: that every right answer passes, and what it takes from the model.

The shares are those of `rejected`, before quantization and after it, on the same rows.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from export.bundle.grammar import Grammar
from export.bundle.rejected import Change, Rejected, RejectedMass, change, rejected_mass
from export.checks import Item
from export.engines.llama_library import GrammarWalk, Vocabulary, open_vocabulary
from export.errors import EngineError, ExportError
from export.frozen import Frozen


class GrammarCheck(Frozen):
    """`answers` right answers all pass; the share of probability that is rejected, by subject, and its change.

    `not_enforced` are the places of the schema that the grammar does not hold answers to; the client does.
    """

    answers: int
    not_enforced: tuple[str, ...]
    rejected: tuple[RejectedMass, ...]
    change: Change | None


def check_grammar(
    grammar: Grammar,
    answers: Sequence[str],
    items: Sequence[Item],
    files: Mapping[str, Path],
    *,
    vocabulary_size: int,
    threads: int,
    say: Callable[[str], None],
) -> GrammarCheck:
    """Walks every answer, and measures what each of `files` (before quantization first) loses along the items' answers.

    Raises ExportError for an answer that the grammar rejects.
    """
    with open_vocabulary(next(iter(files.values()))) as vocabulary:
        require_accepted(vocabulary, grammar.text, answers)
    say(f"grammar: llama.cpp accepts all {len(answers):,} right answers")
    measured = [
        _measured(name, path, grammar.text, items, vocabulary_size, threads, say) for name, path in files.items()
    ]
    return GrammarCheck(
        answers=len(answers),
        not_enforced=grammar.not_enforced,
        rejected=tuple(found.figures for found in measured),
        change=change(measured[0], measured[-1]) if len(measured) > 1 else None,
    )


def require_accepted(vocabulary: Vocabulary, grammar: str, answers: Sequence[str]) -> None:
    """Raises ExportError for the first answer that llama.cpp would not let the model write to its end."""
    (turn_end, *_) = [token for token in vocabulary.end_of_turn_ids()[::-1] if token >= 0]
    try:
        walk = GrammarWalk(vocabulary, grammar)
    except EngineError as error:
        raise ExportError(
            f"llama.cpp does not read the schema's grammar: {error} Look for a pattern that repeats what may be empty, "
            "and for limits beyond 1,000 (maxLength, maxItems, {n,m})."
        ) from None
    try:
        for answer in dict.fromkeys(answers):
            ids = [*vocabulary.tokenize(answer, parse_special=False), turn_end]
            stop = walk.first_rejected(ids)
            if stop is not None:
                raise ExportError(_says_rejected(vocabulary, answer, ids, stop))
    finally:
        walk.close()


def _says_rejected(vocabulary: Vocabulary, answer: str, ids: Sequence[int], stop: int) -> str:
    passed = vocabulary.detokenize(ids[:stop])
    return (
        f"the schema's grammar rejects the right answer {answer!r} behind {passed!r}: expected that every answer of "
        "the rows passes. The grammar holds keys to the order in which training rows first show them, lets at most "
        "one space stand between values and no line break, closes objects whose keys are named, and whole numbers have "
        "at most 16 digits. Change the schema (--schema FILE), or mend the row."
    )


def _measured(
    name: str,
    path: Path,
    grammar: str,
    items: Sequence[Item],
    vocabulary_size: int,
    threads: int,
    say: Callable[[str], None],
) -> Rejected:
    from export.engines import llama_cpp

    say(f"{name}: what the grammar takes from it, along {len(items):,} right answers")
    longest = max(len(item.ids) for item in items)
    engine = llama_cpp.load(path, vocabulary_size=vocabulary_size, context_tokens=longest + 1, threads=threads)
    try:
        return rejected_mass(name, engine, grammar, items)
    finally:
        engine.close()
