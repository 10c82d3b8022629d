"""Expands a grammar (YAML) into training rows: how people phrase things, and what each phrasing means.

There are two kinds. A *command grammar* (`_commands`) makes spoken commands and the JSON action of each; a *row
grammar* (`_row_grammar`) makes rows with the fields of any data template. Rows are drawn from a seed, without
duplicates, and each says what must stay in one split, so that held-out rows ask for combinations that training never
saw. Splitting, prompts and scoring are left to others; so is every word of every domain: `data_templates/` holds them.
"""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from export.errors import DataError, RecipeError
from finetune.data.grammar import _commands, _row_checks
from finetune.data.grammar._commands import Grammar
from finetune.data.grammar._row_drawing import draw_row
from finetune.data.grammar._row_grammar import RowGrammar
from finetune.data.grammar._words import Strict, canonical, different
from finetune.mistakes import mistakes
from finetune.yaml_text import read_yaml

__all__ = ["expand", "load_grammar", "load_row_grammar"]

G = TypeVar("G", bound=Strict)


def expand(grammar_path: Path, rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``rows`` different rows of the grammar; the same seed yields the same rows.

    Rows of a command grammar have ``command``, ``language`` (en or zh), ``action`` (canonical JSON) and
    ``combination``; those of a row grammar the fields that it gives, and ``group``. Both last are for splitting: rows
    of one value belong together. Raises DataError if the grammar is at fault or cannot make that many different rows.
    """
    rng = random.Random(seed)
    if "rows" in _content(grammar_path):
        row_grammar = load_row_grammar(grammar_path)
        return different(partial(draw_row, row_grammar, rng), canonical, rows, grammar_path, "rows")
    grammar = load_grammar(grammar_path)
    draw = partial(_commands.draw_row, grammar, rng)
    return different(draw, lambda row: row["command"], rows, grammar_path, "commands")


def load_grammar(path: Path) -> Grammar:
    """Read and check a file that holds a command grammar. Raises DataError with what is wrong."""
    grammar = _validated(Grammar, path)
    _commands.check(grammar, str(path))
    return grammar


def load_row_grammar(path: Path) -> RowGrammar:
    """Read and check a file that holds a row grammar. Raises DataError with what is wrong."""
    grammar = _validated(RowGrammar, path)
    _row_checks.check(grammar, str(path))
    return grammar


def _validated(schema: type[G], path: Path) -> G:
    try:
        return schema.model_validate(_content(path))
    except ValidationError as error:
        lines = [f"  {line}" for line in mistakes(schema, error)]
        raise DataError(f"cannot read the grammar {path}:\n" + "\n".join(lines)) from None


def _content(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except RecipeError as error:
        raise DataError(f"cannot read the grammar {path}: {error}") from None
