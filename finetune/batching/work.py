"""The work of a batch: surveys the rows, opens the file and then the model, and answers what is left, in order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from export.artifacts import sha256_of_file, sha256_of_json
from export.chat import Message
from export.checks import schema_validator
from export.errors import DataError
from export.frozen import Frozen
from export.subjects import describe, subject_at
from finetune.batching.answers import Tally, Writer, Written
from finetune.batching.output import Belongs, Output, opened
from finetune.batching.progress import RowProgress, shown_speed
from finetune.batching.prompts import Asking, Prompts, choose
from finetune.batching.settings import BatchSettings
from finetune.data.reading import sha256_of_files
from finetune.data.sources import Row, read_rows
from finetune.partner import Partner, answers, open_partner, trained_thinking

# Where none of the first rows can be asked, it is the template and not the rows.
_FIRST_ROWS = 50


class Outcome(Frozen):
    """What a batch came to: counts over all rows of the file, the seconds they took, and where they are."""

    tally: Tally
    seconds: float
    out: Path
    max_new_tokens: int
    parse_json: bool

    def sentence(self) -> str:
        """The line that ends a batch."""
        counted = self.tally
        parts = [f"{counted.rows:,} rows at {shown_speed(counted.rows / max(1e-9, self.seconds))}"]
        if counted.errors:
            parts.append(f"{counted.errors:,} in error")
        if self.parse_json:
            share = counted.invalid / max(1, counted.answered)
            parts.append(f"{counted.invalid:,} of {counted.answered:,} answers invalid ({share:.1%})")
        if counted.fenced:
            parts.append(f"{counted.fenced:,} read out of a Markdown fence")
        if counted.cut:
            parts.append(f"{counted.cut:,} cut at {self.max_new_tokens:,} tokens")
        return f"{'; '.join(parts)}: {self.out}"


class _Survey(NamedTuple):
    """What the rows are: how many, and the names of all their fields in order of appearance."""

    rows: int
    fields: tuple[str, ...]


def answer_file(settings: BatchSettings, say: Callable[[str], None]) -> Outcome:
    """Answers the rows that the output does not hold yet, up to the limit; `say` hears what is done and how.

    A row that cannot be asked is written with its error. Raises DataError where rows cannot be read or none of the
    first can be asked, RecipeError where the output belongs to another batch, ModelError and EngineError as the model's
    engine does. What was answered until then is kept.
    """
    keeps = None if settings.json_schema is None else schema_validator(str(settings.json_schema), "--schema")
    subject_at(settings.model)  # what is no model is told before anything of the rows
    asking = choose(settings)
    survey = _survey(settings, asking)
    thinks = trained_thinking(settings.model).told_apart
    writer = Writer(settings, survey.fields, keeps, thinks=thinks)
    belongs = _belongs(settings, asking)
    total = survey.rows if settings.limit is None else min(settings.limit, survey.rows)
    say(f"rows: {settings.rows}, {survey.rows:,} of them; asked by {asking.chosen_by}. {_system(asking)}")
    with opened(settings.out, belongs, restart=settings.restart) as output:
        done = output.tally.rows
        if done >= total:
            output.begin(writer.header())
            say(f"already done: {settings.out} holds the answers (--restart makes them again)")
        elif done:
            say(f"going on: {settings.out} holds {done:,} of {total:,} rows")
        if done < total:
            _answer_rest(settings, asking.mapper(), writer, output, total, say)
        seconds = output.seconds
    return Outcome(
        tally=output.tally,
        seconds=seconds,
        out=settings.out,
        max_new_tokens=settings.max_new_tokens,
        parse_json=settings.parse_json,
    )


def _answer_rest(
    settings: BatchSettings,
    prompts: Prompts,
    writer: Writer,
    output: Output,
    total: int,
    say: Callable[[str], None],
) -> None:
    partner = open_partner(settings.model)
    if partner.engine.rounding:
        say(f"the model is {partner.engine.rounding}")
    try:
        partner.encode([Message(role="user", content="?")])  # the first rendering loads a library
        output.begin(writer.header())
        rows = islice(read_rows(settings.rows), output.tally.rows, total)
        with output.timed(), RowProgress(total, output.tally.rows) as progress:
            for some in _windows(rows, partner.engine.prompts_at_once):
                for written in answer_rows(partner, prompts, writer, some, settings.max_new_tokens):
                    output.append(written)
                progress.reached(output.tally.rows)
    finally:
        partner.engine.close()


def answer_rows(
    partner: Partner, prompts: Prompts, writer: Writer, rows: Sequence[Row], max_new_tokens: int
) -> Iterator[Written]:
    """What is written of some rows, in their order; those that can be asked are answered side by side."""
    room = max_new_tokens + partner.thinking.most_tokens
    encoded = [_encoded(partner, prompts, row, room) for row in rows]
    asked = [ids for ids in encoded if not isinstance(ids, DataError)]
    said = iter(answers(partner, asked, max_new_tokens) if asked else [])
    for row, ids in zip(rows, encoded, strict=True):
        if isinstance(ids, DataError):
            yield writer.refused(row.fields, str(ids))
        else:
            yield writer.answered(row.fields, next(said))


def _encoded(partner: Partner, prompts: Prompts, row: Row, answer_tokens: int) -> Sequence[int] | DataError:
    """A row's prompt as token ids, or why there are none."""
    try:
        ids = partner.encode(prompts.of(row))
    except DataError as error:
        return error
    room = partner.context_tokens
    if room is not None and len(ids) + answer_tokens > room:
        return DataError(
            f"{row.origin}: the prompt has {len(ids):,} tokens; expected at most {room - answer_tokens:,}, which "
            f"leaves room for {answer_tokens:,} of thought and answer in a context of {room:,}. Shorten the row, or "
            "lower --max-new-tokens."
        )
    return ids


def _windows(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows, so many at a time."""
    rows = iter(rows)
    while some := list(islice(rows, size)):
        yield some


def _survey(settings: BatchSettings, asking: Asking) -> _Survey:
    """Reads all rows once. Raises DataError for one that cannot be read, and where none of the first can be asked."""
    prompts = asking.mapper()
    fields: dict[str, None] = {}
    count, problem, asked = 0, "", False
    for count, row in enumerate(read_rows(settings.rows), start=1):
        fields |= dict.fromkeys(map(str, row.fields))
        if not asked and count <= _FIRST_ROWS:
            try:
                prompts.of(row)
                asked = True
            except DataError as error:
                problem = problem or str(error)
    if not asked:
        raise DataError(
            f"none of the first {min(count, _FIRST_ROWS)} rows can be asked by {asking.chosen_by}. {problem} Or say "
            "what is asked with --prompt, such as --prompt '{review}'."
        )
    return _Survey(count, tuple(fields))


def _belongs(settings: BatchSettings, asking: Asking) -> Belongs:
    """All that an answer depends on: another value of any of these makes another batch."""
    thinking = trained_thinking(settings.model)
    record = describe(subject_at(settings.model), ships=True, shown_as=str(settings.model)).record
    return {
        "content of --in": sha256_of_files(settings.rows),
        "content of MODEL": record.sha256,
        "thinking": thinking.asked,
        "thinking budget": None if thinking.budget is None else sha256_of_json(thinking.budget.model_dump()),
        "template": sha256_of_json(asking.template.model_dump(mode="json")),
        "system prompt": asking.system_prompt,
        "--max-new-tokens": settings.max_new_tokens,
        "--field": settings.field,
        "--json": settings.parse_json,
        "--schema": None if settings.json_schema is None else sha256_of_file(settings.json_schema),
    }


def _system(asking: Asking) -> str:
    """A sentence on the system prompt: a model trained behind one answers worse without it."""
    given = asking.template.system if asking.system_prompt is None else asking.system_prompt
    line = " ".join((given or "").split())
    return f"System prompt: {line if len(line) <= 60 else line[:57] + '...'}" if line else "No system prompt."
