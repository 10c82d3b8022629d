"""Guesses which two columns of a table are question and answer, for `data.template: {prompt: ..., answer: ...}`.

`template: auto` tells the forms that people publish by their fields (`finetune.data.formats`). This is for a table
with headings of its owner's, and it is a guess: it comes with its reason, for a person to confirm.
"""

from collections.abc import Sequence

from export.errors import DataError, RecipeError
from export.frozen import Frozen
from finetune.data.sources import Row
from finetune.data.template import columns

_PROMPTS = frozenset({"question", "prompt", "instruction", "query", "input", "request", "user", "问题", "提问", "指令"})
_ANSWERS = frozenset(
    {"answer", "response", "output", "reply", "completion", "assistant", "target", "回答", "答案", "回复", "输出"}
)


class Columns(Frozen):
    """The two columns, and by what they were chosen, in words."""

    prompt: str
    answer: str
    because: str

    def template(self) -> dict[str, str]:
        """The recipe's `data.template`."""
        return {"prompt": _field(self.prompt), "answer": _field(self.answer)}


def guess_columns(rows: Sequence[Row]) -> Columns:
    """The columns of a table's first rows that hold questions and answers: by their names, else by their order.

    Order counts only where there are exactly two columns of words. Raises DataError, with the columns that were found,
    where neither tells.
    """
    if not rows:
        raise DataError("there are no rows to guess columns from. Give at least one.")
    names = list(dict.fromkeys(str(name) for row in rows for name in row.fields))
    prompts = [name for name in names if name.strip().casefold() in _PROMPTS]
    answers = [name for name in names if name.strip().casefold() in _ANSWERS]
    if len(prompts) == len(answers) == 1:
        return _readable(Columns(prompt=prompts[0], answer=answers[0], because="by their names"), rows[0].origin)
    words = [name for name in names if any(_is_words(row.fields.get(name)) for row in rows)]
    if len(words) == 2 and not (prompts or answers):
        because = "by their order: the only two columns of words"
        return _readable(Columns(prompt=words[0], answer=words[1], because=because), rows[0].origin)
    raise DataError(
        f"{rows[0].origin}: which columns are question and answer cannot be told from their names: {', '.join(names)}. "
        "Name them yourself, such as data.template: {prompt: '{title}', answer: '{text}'}."
    )


def _readable(chosen: Columns, origin: str) -> Columns:
    """The columns, if a template can name them. Raises DataError for headings such as "Question:" or "{a}"."""
    try:
        fields = {*columns(**chosen.template()).fields}
    except RecipeError:
        fields = set()
    if fields != {chosen.prompt, chosen.answer}:
        raise DataError(
            f"{origin}: the headings {chosen.prompt!r} and {chosen.answer!r} hold a brace, a colon or another "
            "mark that a template would read as its own. Rename the columns, such as to question and answer."
        )
    return chosen


def _is_words(value: object) -> bool:
    """Whether a cell holds text that is not a number."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _field(name: str) -> str:
    return "{" + name + "}"
