"""Makes a bundle: everything a device needs beside one GGUF file, each part checked as it is made.

What goes in comes from a run (`finetune.bundling`); what is in each file is the other modules' of this package.
A bundle that is not complete never stands under its final name.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from export.artifacts import sha256_of_file
from export.bundle import certificate as certificates
from export.bundle.device import client
from export.bundle.grammar import Grammar, grammar_of, key_order_of
from export.bundle.grammar_check import GrammarCheck, check_grammar
from export.bundle.known import Asked, KnownValues, known_values
from export.bundle.packing import is_packed_bundle, named_files, pack, write_sums
from export.bundle.prompt import Prompt, prompt_of, turn_texts
from export.bundle.texts import DEVICE, modelfile, rendered
from export.bundle.trial import Trial, try_client
from export.checks import Item, read_json
from export.engines.llama_library import open_vocabulary
from export.errors import ExportError
from export.frozen import Frozen

BATCH_TOKENS = 64  # of Qwen's 151,936 logits and activations so many rows stay small beside the weights
ROWS = "rows.jsonl"
GRAMMAR_CHECK = "grammar_check.json"


class Row(Frozen):
    """A command and its right answer; `merged_answer` is what the merged model said, where the run measured the row."""

    command: str
    answer: str
    merged_answer: str | None = None


class Runtime(Frozen):
    """How the model is run on the device."""

    context_tokens: int
    max_new_tokens: int
    cache_type: str = "f16"
    batch_tokens: int = BATCH_TOKENS


class BundleSource(NamedTuple):
    """What a bundle is made of.

    `gguf` ships; `before` is the same model in 16 bits, if there is one. `schema` None makes a bundle without grammar;
    `measured_schema` is the one that the run's answers were held to, if any.
    `training` and `held_out` are single commands; `items` are held-out rows as token ids, `rows` those that ship.
    """

    name: str
    gguf: Path
    before: Path | None
    tokenizer: Path
    system_prompt: str | None
    schema: dict[str, Any] | None
    measured_schema: dict[str, Any] | None
    training: Sequence[Row]
    held_out: Sequence[Row]
    items: Sequence[Item]
    vocabulary_size: int
    rows: Sequence[Row]
    runtime: Runtime
    evidence: certificates.Evidence
    accepted_unproven: bool
    threads: int


class Bundle(NamedTuple):
    """A bundle that was made: its folder and archive, and what was found while it was made."""

    folder: Path
    archive: Path
    trial: Trial
    grammar: GrammarCheck | None
    known: KnownValues | None


def make(source: BundleSource, out: Path, say: Callable[[str], None]) -> Bundle:
    """Makes the folder `out` / name and its .tar.gz beside it, in place of earlier ones.

    Raises ExportError where something else stands there, the file is not the one that was measured, an answer of the
    rows breaks the grammar or the schema, or the client does not answer.
    """
    _require_the_measured_file(source)
    folder, archive = out / source.name, out / f"{source.name}.tar.gz"
    _require_its_own_place(folder, archive)
    partial, packed = out / f".{source.name}.partial", out / f".{archive.name}.partial"
    earlier = out / f".{source.name}.earlier"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        bundle = _fill(source, partial, say)
        say(f"packing {folder}")
        pack(partial, packed, source.name)
        # both are whole now
        shutil.rmtree(earlier, ignore_errors=True)
        if folder.exists():
            folder.rename(earlier)
        partial.rename(folder)
        packed.replace(archive)
        shutil.rmtree(earlier, ignore_errors=True)
    except BaseException:
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        packed.unlink(missing_ok=True)
        raise
    if others := sorted(path.name for path in out.glob(f"{source.name}.rehearsal-*.json")):
        say(f"of an earlier bundle, as the hash in them tells: {', '.join(others)}")
    return bundle


def _require_its_own_place(folder: Path, archive: Path) -> None:
    """Raises ExportError where something would be replaced that no bundle put there: it may be the run itself."""
    elsewhere = "Give another --out, or another name with --for."
    if folder.exists():
        if not all((folder / name).is_file() for name in (client.SUMS, client.SETTINGS)):
            raise ExportError(
                f"{folder} is there already, and is no bundle: found no {client.SUMS} and {client.SETTINGS} in it; "
                f"expected a new folder, or an earlier bundle. {elsewhere}"
            )
        there = {path.name for path in folder.iterdir()}
        changed = (there & set(client.verify(folder))) - {client.STATE, client.STATE_RECORD}
        if others := sorted((there - named_files(folder)) | changed):
            raise ExportError(
                f"{folder} is an earlier bundle with files that were added or changed, which would be lost: "
                f"{', '.join(others)}. Move them elsewhere. {elsewhere}"
            )
    if archive.exists() and not is_packed_bundle(archive, folder.name):
        raise ExportError(
            f"{archive} is there already, and is no bundle's archive, which would be replaced. {elsewhere}"
        )


def _require_the_measured_file(source: BundleSource) -> None:
    measured, found = source.evidence.record["sha256"], sha256_of_file(source.gguf)
    if found != measured:
        raise ExportError(
            f"{source.gguf} is not the file that was measured: found SHA-256 {found[:12]}…, expected "
            f"{str(measured)[:12]}… by the report. Run the check again, so that the certificate speaks of this file."
        )


def _fill(source: BundleSource, folder: Path, say: Callable[[str], None]) -> Bundle:
    from export.chat_tokenizer import load_tokenizer

    model = source.gguf.name
    say(f"copying {source.gguf}")
    shutil.copyfile(source.gguf, folder / model)
    tokenizer = load_tokenizer(source.tokenizer)
    with open_vocabulary(source.gguf) as vocabulary:
        prompt = prompt_of(tokenizer, source.system_prompt, vocabulary.tokenize)
        _require_the_trained_prompt(source, prompt, vocabulary.tokenize)
    checked, known = _write_rules(source, folder, say)
    _write_settings(source, folder, prompt)
    shutil.copyfile(DEVICE / "client.py", folder / "client.py")
    turns = turn_texts(tokenizer, source.system_prompt)
    runtime = source.runtime
    (folder / "Modelfile").write_text(modelfile(model, turns, source.system_prompt, runtime.context_tokens), "utf-8")
    content = {**runtime.model_dump(), "model": model, "has_grammar": source.schema is not None}
    (folder / "serve.sh").write_text(rendered("serve.sh.jinja", content), "utf-8")
    _write_certificate(source, folder)
    _write_lines(folder / ROWS, source.rows)
    say("asking the client once: it makes the prompt's state file")
    trial = try_client(folder, source.held_out[0].command)
    _write_settings(source, folder, prompt, trial)
    _write_install_note(source, folder, trial, known)
    write_sums(folder)
    final = folder.parent / source.name
    return Bundle(final, final.with_name(f"{source.name}.tar.gz"), trial, checked, known)


def _require_the_trained_prompt(source: BundleSource, prompt: Prompt, tokenize: Callable[..., list[int]]) -> None:
    """Raises ExportError unless the client's prompt of every row has the ids that the run measured."""

    def ids(text: str, special: bool) -> list[int]:
        return tokenize(text, parse_special=special)

    parts = prompt.model_dump()
    made = {tuple(client.prompt_ids(parts, row.command, ids)) for row in source.held_out}
    strange = [item for item in source.items if item.prompt not in made]
    if strange:
        raise ExportError(
            f"{len(strange)} of {len(source.items)} held-out prompts are other token ids in the bundle than those that "
            f"were measured, such as the one answered by {strange[0].answer[:60]!r}. Bundle single commands behind one "
            "system prompt."
        )


def _write_rules(
    source: BundleSource, folder: Path, say: Callable[[str], None]
) -> tuple[GrammarCheck | None, KnownValues | None]:
    """The schema, its grammar, what both do to the rows, and the values known; nothing without a schema."""
    if source.schema is None:
        say(
            "no JSON schema: the bundle has no grammar, and nothing checks its answers. Give one with --schema FILE, "
            "or in the recipe under check.measures.fields.json_schema."
        )
        return None, None
    training, held_out = _actions(source.training), _actions(source.held_out)
    _require_the_schema_kept(source.schema, [*training, *held_out])
    grammar = grammar_of(source.schema, key_order_of([row.action for row in training]))
    _write_json(folder / client.SCHEMA, source.schema)
    (folder / client.GRAMMAR).write_text(grammar.text, "utf-8")
    checked = _checked(source, grammar, say)
    _write_json(folder / GRAMMAR_CHECK, checked.model_dump(mode="json"))
    known = known_values(training, held_out)
    _write_json(folder / client.KNOWN, known.model_dump(mode="json"))
    return checked, known


def _checked(source: BundleSource, grammar: Grammar, say: Callable[[str], None]) -> GrammarCheck:
    files = {"gguf/f16": source.before} if source.before else {}
    files[source.evidence.subject] = source.gguf
    answers = [row.answer for row in (*source.held_out, *source.training)]
    return check_grammar(
        grammar,
        answers,
        source.items,
        files,
        vocabulary_size=source.vocabulary_size,
        threads=source.threads,
        say=say,
    )


def _actions(rows: Sequence[Row]) -> list[Asked]:
    """Commands with the values of their answers. Raises ExportError for a right answer that is no JSON."""
    asked = []
    for row in rows:
        answer = read_json(row.answer)
        if not answer.is_json:
            raise ExportError(
                f"the rows' answer {row.answer[:80]!r} is not JSON, but there is a schema for answers. Mend the row, "
                "or take the schema away."
            )
        asked.append(Asked(row.command, answer.plain))
    return asked


def _require_the_schema_kept(schema: dict[str, Any], rows: Sequence[Asked]) -> None:
    """Raises ExportError for right answers that the client would refuse, in its own words."""
    problems = [(row, client.schema_problem(schema, row.action)) for row in rows]
    broken = [(row, problem) for row, problem in problems if problem is not None]
    if broken:
        row, problem = broken[0]
        raise ExportError(
            f"{len(broken):,} of {len(rows):,} right answers break the schema, such as that to {row.command[:60]!r} "
            f"({problem}): expected that all keep it, because the client takes no other. Change the schema (--schema "
            "FILE), or mend the rows."
        )


def _write_settings(source: BundleSource, folder: Path, prompt: Prompt, trial: Trial | None = None) -> None:
    """What the client runs by; behind a trial also what its process took, here, for one command."""
    rules = [folder / name for name in (client.SCHEMA, client.GRAMMAR, client.KNOWN) if (folder / name).is_file()]
    content = {
        "name": source.name,
        "model": source.gguf.name,
        "model_sha256": source.evidence.record["sha256"],
        "model_bytes": source.gguf.stat().st_size,
        **source.runtime.model_dump(),
        "rules": {path.name: sha256_of_file(path) for path in rules},
        "prompt": prompt.model_dump(mode="json"),
    }
    if trial is not None:
        content |= {"peak_resident_bytes": trial.peak_memory_bytes, "peak_address_bytes": trial.peak_address_bytes}
    _write_json(folder / client.SETTINGS, content)


def _write_certificate(source: BundleSource, folder: Path) -> None:
    content = certificates.certificate(
        source.evidence,
        name=source.name,
        accepted_unproven=source.accepted_unproven,
        runs_with={"cache_type": source.runtime.cache_type, "grammar": source.schema is not None},
        schemas=(source.measured_schema, source.schema),
    )
    _write_json(folder / "certificate.json", content)
    (folder / "certificate.md").write_text(certificates.certificate_text(content), "utf-8")


def _write_install_note(source: BundleSource, folder: Path, trial: Trial, known: KnownValues | None) -> None:
    import shlex
    from importlib.metadata import version

    content = {
        "name": source.name,
        "model": source.gguf.name,
        "memory_megabytes": f"{trial.peak_memory_bytes / 1e6:,.0f}",
        "llama_cpp_python": version("llama-cpp-python"),
        "has_schema": source.schema is not None,
        "has_grammar": source.schema is not None,
        "has_known": known is not None,
        "training_rows": "-" if known is None else f"{known.training_rows:,}",
        "fields": Counter(rule.kind for rule in known.fields.values()) if known is not None else {},
        "refused": 0 if known is None else known.refused,
        "held_out": 0 if known is None else known.held_out,
        "example": shlex.quote(source.held_out[0].command),
        "rows": len(source.rows),
    }
    (folder / "INSTALL.md").write_text(rendered("INSTALL.md.jinja", content), "utf-8")


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    if rows:
        path.write_text("".join(f"{row.model_dump_json()}\n" for row in rows), "utf-8")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
