"""`fieldtune bundle`: from a finished run to a device's folder. Which file ships, and what of the run goes with it.

The bundle itself is made by `export.bundle`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from export.bundle import Bundle, BundleSource, KnownValues, Row, Runtime, make
from export.bundle.certificate import evidence, read_report
from export.chat import Conversation, encode_prompt
from export.checks import Item, Items, Observation, schema_validator
from export.errors import ExportError, RecipeError
from export.frozen import Frozen
from export.hardware import available_cores
from finetune.data import read_conversations
from finetune.device_target import DeviceBudget, room_of
from finetune.partner import trained_system_prompt

_ROUNDED_TO_TOKENS = 256
_LEAST_CONTEXT_TOKENS = 512
_SHOWN = 5


class BundleSettings(Frozen):
    """What `fieldtune bundle` was asked for.

    `name` None takes the recipe's, `file` None the smallest GGUF that passed, `json_schema` None the recipe's.
    `context_tokens` and `cache_type` None are those that the file was sized for where the recipe's target named a
    device, else what the rows need, and f16. At most `rows` held-out rows ship with it.
    """

    run: Path
    out: Path
    name: str | None = None
    file: str | None = None
    json_schema: Path | None = None
    context_tokens: int | None = None
    cache_type: str | None = None
    rows: int = 200
    accept_unproven: bool = False


class _Measured(NamedTuple):
    """The held-out rows that the run measured, and what the merged model answered, by prompt."""

    items: Items
    merged: Mapping[tuple[int, ...], str]


def bundle_run(settings: BundleSettings, say: Callable[[str], None]) -> Bundle:
    """Makes a bundle of a run's GGUF file.

    Raises ExportError where the run is not finished, its file may not ship, or its rows are no single commands;
    RecipeError for a schema that is none.
    """
    report_path = settings.run / "report.json"
    report = read_report(report_path)
    recipe = report["recipe"]
    if recipe.get("model", {}).get("thinking"):
        raise ExportError(
            "the run was made with model.thinking; expected one without thoughts, which no grammar of the answer lets "
            "through. Train it with model.thinking: false."
        )
    subject = choose_file(report, settings.file, accept_unproven=settings.accept_unproven)
    name = settings.name or str(recipe["name"])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RecipeError(f"--for {name!r}: expected letters, digits, '.', '_' and '-': it names a folder and a model.")
    say(f"{name}: ships {subject['name']} ({subject['size_bytes'] / 1e6:,.1f} MB), verdict {subject['verdict']}")
    source = _source(settings, report, subject, name)
    settings.out.mkdir(parents=True, exist_ok=True)
    return make(source, settings.out, say)


def choose_file(report: Mapping[str, Any], name: str | None, *, accept_unproven: bool) -> Mapping[str, Any]:
    """The subject that ships: the one so called, or the smallest GGUF file that passed.

    Raises ExportError for one that failed, and for one that `cannot tell` speaks of unless that is accepted.
    """
    files = [s for s in report["subjects"] if s["engine"] == "llama_cpp" and s["verdict"] is not None]
    listed = ", ".join(f"{s['name']} ({s['verdict']})" for s in files) or "none"
    if name is None:
        passed = [s for s in files if s["verdict"] == "pass"]
        if not passed:
            to_do = "Measure on more rows (check.rows), or train or quantize otherwise."
            if any(s["verdict"] == "cannot tell" for s in files):
                to_do = "Take one that cannot be told with --file NAME --accept-unproven, or measure on more rows."
            raise ExportError(f"no GGUF file of this run passed: found {listed}; expected one to ship. {to_do}")
        return min(passed, key=lambda s: int(s["size_bytes"]))
    found = next((s for s in files if s["name"] == name), None)
    if found is None:
        raise ExportError(f"--file {name}: the run has no such GGUF file: found {listed}. Name one of them.")
    if found["verdict"] == "fail":
        raise ExportError(f"{name} failed: it loses more than it may. Ship another; the run has {listed}.")
    if found["verdict"] == "cannot tell" and not accept_unproven:
        raise ExportError(
            f"{name}: the verdict is 'cannot tell': the held-out rows do not decide whether it lost more than it may; "
            "report.html says how many would. Measure on more rows (check.rows), or take it as it is with "
            "--accept-unproven; the certificate says so then."
        )
    return dict(found)


def _source(settings: BundleSettings, report: Mapping[str, Any], subject: Mapping[str, Any], name: str) -> BundleSource:
    run, recipe = settings.run, report["recipe"]
    measured = _measured(run)
    training = _single(read_conversations(run / "data" / "train.jsonl"))
    held_out = _single(read_conversations(run / "data" / "held_out.jsonl"))
    system = _one_system_prompt(run, [*training, *held_out])
    most = int(recipe["check"]["max_new_tokens"])
    rows = _rows(run / "merged", held_out, measured)
    before = run / "export" / "gguf-f16" / "model-f16.gguf"
    return BundleSource(
        name=name,
        gguf=run / str(subject["path"]),
        before=before if before.is_file() and subject["name"] != "gguf/f16" else None,
        tokenizer=run / "merged",
        system_prompt=system,
        schema=_schema(settings.json_schema, recipe),
        measured_schema=_schema(None, recipe),
        training=[Row(command=c.messages[-2].content, answer=c.answer) for c in training],
        held_out=rows,
        items=measured.items.items,
        vocabulary_size=measured.items.vocabulary_size,
        rows=sorted(rows, key=lambda row: row.merged_answer is None)[: settings.rows],
        runtime=_runtime(settings, room_of(run, str(subject["name"])), _context_tokens(measured.items, most), most),
        evidence=evidence(run / "report.json", str(subject["name"])),
        accepted_unproven=subject["verdict"] != "pass",
        threads=available_cores(),
    )


def _runtime(settings: BundleSettings, room: DeviceBudget | None, needed: int, most: int) -> Runtime:
    """How the file is run. Raises RecipeError for more context, or a larger cache, than the file was sized for."""
    if room is None:
        context = needed if settings.context_tokens is None else settings.context_tokens
        if context < needed:
            raise _too_short(context, needed)
        return Runtime(context_tokens=context, max_new_tokens=most, cache_type=settings.cache_type or "f16")
    context, cache = settings.context_tokens or room.context_tokens, settings.cache_type or room.cache_type
    if context > room.context_tokens or (cache, room.cache_type) == ("f16", "q8_0"):
        raise RecipeError(
            f"the file was sized for {room.device} with a context of {room.context_tokens:,} tokens and a "
            f"{room.cache_type} cache; {context:,} tokens and a {cache} cache may not fit there. Leave --context and "
            "--cache-type out, or change export.target and run again."
        )
    if needed > context and settings.context_tokens is not None:
        raise _too_short(context, needed)
    if needed > context:
        raise RecipeError(
            f"the rows need a context of {needed:,} tokens (the longest prompt and twice the longest answer), and the "
            f"file was sized for {context:,} on {room.device}. Raise export.target.context_tokens and run again."
        )
    return Runtime(context_tokens=context, max_new_tokens=most, cache_type=cache)


def _too_short(context: int, needed: int) -> RecipeError:
    return RecipeError(
        f"--context {context:,}: the rows need {needed:,} tokens (the longest prompt and twice the longest answer). "
        "Give so many or more, or leave it out."
    )


def _measured(run: Path) -> _Measured:
    """The rows of the run's check. Raises ExportError where there are none."""
    path = run / "check" / "items.json"
    try:
        items = Items.model_validate_json(path.read_text(encoding="utf-8"))
        seen = Observation.model_validate_json(
            (run / "check" / "merged" / "observation.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError) as error:
        raise ExportError(f"{path.parent} is not a finished check ({error}). Run it: fieldtune check RECIPE.") from None
    answers = {item.prompt: answer for item, answer in zip(items.items, items.given(seen), strict=True)}
    return _Measured(items.model_copy(update={"items": tuple(map(_of_answer, items.items))}), answers)


def _of_answer(item: Item) -> Item:
    """A row of which only the answer is scored, and neither earlier turns nor what the template writes behind it."""
    return item.model_copy(update={"scored": tuple(p for p in item.scored if p >= len(item.prompt))})


def _single(conversations: Any) -> list[Conversation]:
    """Conversations of one command and its answer. Raises ExportError where there are others, or none."""
    found: list[Conversation] = list(conversations)
    several = [c for c in found if [m.role for m in c.messages if m.role != "system"] != ["user", "assistant"]]
    if several or not found:
        raise ExportError(
            f"{len(several):,} of {len(found):,} rows are talks of several turns; expected one command and its answer "
            "each. A bundle's client answers single commands: use the GGUF file itself for talks."
        )
    return found


def _one_system_prompt(run: Path, conversations: Sequence[Conversation]) -> str | None:
    """What all rows begin with. Raises ExportError where they begin differently."""
    first = trained_system_prompt(run / "data")
    openings = {c.messages[0].content if c.messages[0].role == "system" else None for c in conversations}
    if openings != {first}:
        raise ExportError(
            f"the rows have {len(openings):,} different system prompts; expected one, which the bundle is made for. "
            "Set data.system_prompt and train again."
        )
    return first


def _rows(tokenizer_folder: Path, held_out: Sequence[Conversation], measured: _Measured) -> list[Row]:
    """The held-out commands, with what the merged model answered where it was asked."""
    from export.chat_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    return [
        Row(
            command=c.messages[-2].content,
            answer=c.answer,
            merged_answer=measured.merged.get(encode_prompt(tokenizer, c.prompt)),
        )
        for c in held_out
    ]


def _context_tokens(items: Items, most: int) -> int:
    """Room for the longest prompt seen and an answer that goes on to twice its length, rounded up."""
    longest = max(len(item.prompt) for item in items.items) + 2 * most
    return max(_LEAST_CONTEXT_TOKENS, -(-longest // _ROUNDED_TO_TOKENS) * _ROUNDED_TO_TOKENS)


def _schema(given: Path | None, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema of answers: the one that is given, else the recipe's; None where there is none."""
    fields = recipe["check"].get("measures", {}).get("fields") or {}
    named = str(given) if given is not None else fields.get("json_schema")
    if named is None:
        return None
    where = "--schema" if given is not None else "check.measures.fields.json_schema"
    schema_validator(named, where)
    content = json.loads(Path(named).read_text(encoding="utf-8")) if isinstance(named, str) else named
    if not isinstance(content, dict):
        raise RecipeError(f"{where} is {json.dumps(content)}; expected a schema that says what answers are.")
    return content


def summary(made: Bundle) -> list[str]:
    """What a person is told of a bundle that was made."""
    lines = []
    if made.grammar is not None:
        lines.append(f"grammar: all {made.grammar.answers:,} right answers pass")
        if made.grammar.not_enforced:
            lines.append(
                f"grammar: does not hold answers to {', '.join(made.grammar.not_enforced)}; the client does, but for "
                "formats that its jsonschema does not know"
            )
        lines += [
            f"grammar: takes {found.mean:.3%} of {found.subject}'s probability at a token of a right answer (90 % "
            f"interval {found.interval[0]:.3%} to {found.interval[1]:.3%}; at most {found.largest:.3%}; "
            f"{found.rows:,} rows, {found.tokens:,} tokens)"
            for found in made.grammar.rejected
        ]
    if made.known is not None:
        lines.append(
            f"known values: refuse {made.known.refused:,} of {made.known.held_out:,} right answers of held-out rows"
        )
        lines += list(_held_fields(made.known))
    lines.append(f"client: {made.trial.peak_memory_bytes / 1e6:,.0f} MB at most for one command")
    return [*lines, f"bundle: {made.folder} and {made.archive.name}"]


def _held_fields(known: KnownValues) -> Iterator[str]:
    """How many fields the rows say enough of, and which they do not."""
    kinds = Counter(rule.kind for rule in known.fields.values())
    yield (
        f"known values: of {len(known.fields):,} fields {kinds['closed']:,} are held to the values seen, and "
        f"{kinds['quoted']:,} to the command's words"
    )
    free = {path: rule for path, rule in known.fields.items() if rule.kind == "free"}
    if free:
        shown = ", ".join(
            f"{path} ({rule.rows:,} rows, in the command in {rule.said:,})" for path, rule in [*free.items()][:_SHOWN]
        )
        more = f", and {len(free) - _SHOWN:,} more" if len(free) > _SHOWN else ""
        yield (
            f"known values: of {len(free):,} fields the rows say too little, and only the schema holds them: "
            f"{shown}{more}"
        )
