"""The verbs that take any model: `compare`, `chat` and `batch`; their arguments, and what they print."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.exit_status import EXIT_INTERRUPTED, EXIT_ROWS_IN_ERROR, EXIT_STATUS_OF, EXIT_STATUSES_OF_A_VERDICT
from finetune.verb_arguments import SET_EMPTY, positive

if TYPE_CHECKING:
    from finetune.verb_arguments import Verbs


def add_compare(verbs: "Verbs") -> None:
    """Adds `fieldtune compare`."""
    compare = verbs.add_parser(
        "compare",
        help="judge any files against any reference, on your rows",
        description="Measures the reference and every artifact on the same rows, and judges each artifact against the "
        f"reference. Nothing needs to have been made by fieldtune. {EXIT_STATUSES_OF_A_VERDICT}",
    )
    compare.add_argument(
        "reference", type=Path, metavar="REFERENCE", help="a model folder, or a .gguf file and --tokenizer"
    )
    compare.add_argument(
        "artifacts", type=Path, nargs="+", metavar="ARTIFACT", help=".gguf files, GPTQ folders, model folders"
    )
    compare.add_argument("--data", required=True, metavar="ROWS", help="rows to measure on: a file, or a hub's dataset")
    compare.add_argument(
        "--template", default="auto", metavar="NAME", help="the rows' data template (default: by the form of the rows)"
    )
    compare.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="the Hugging Face folder whose tokenizer and chat template read the rows (default: the reference; needed "
        "where that is a .gguf file: the folder that it was made from)",
    )
    compare.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a key below data, check or gate, or seed, e.g. check.rows=500; {SET_EMPTY}",
    )
    compare.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the report goes (default: runs/compare- and the last artifact's name, behind that of the folder it "
        "lies in where it says little, such as model-q8_0)",
    )
    compare.set_defaults(verb=_compare)


def add_chat(verbs: "Verbs") -> None:
    """Adds `fieldtune chat`."""
    chat = verbs.add_parser(
        "chat",
        help="talk to an adapter, a model folder, a GPTQ folder or a .gguf file",
        description="Loads a model into the engine that will run it and answers what is typed, line by line, always "
        "with the most probable token. A .gguf file is spoken to with its own vocabulary and template.",
    )
    chat.add_argument(
        "path", type=Path, metavar="PATH", help="a .gguf file, a folder that holds one, a model or adapter folder"
    )
    chat.add_argument(
        "--system",
        metavar="TEXT",
        help="system prompt (default: the one its run was trained with, where it lies in a run's folder; else none)",
    )
    chat.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="where an answer is cut")
    chat.set_defaults(verb=_chat)


def add_batch(verbs: "Verbs") -> None:
    """Adds `fieldtune batch`."""
    batch = verbs.add_parser(
        "batch",
        help="answer every row of a file with a model",
        description="Answers every row of a file, in order, always with the most probable token. Stopped at any point, "
        "the same command goes on where it was; FILE.progress.json beside the answers says where. Exit status: 0 all "
        "rows answered, 1 some have an error in place of an answer, 2 it could not be done, 130 interrupted.",
    )
    batch.add_argument("model", type=Path, metavar="MODEL", help="what `fieldtune chat` takes")
    batch.add_argument(
        "--in", dest="rows", type=Path, required=True, metavar="FILE", help="rows: .jsonl, .json, .csv or .parquet"
    )
    batch.add_argument("--out", type=Path, required=True, metavar="FILE", help="answers: .jsonl or .csv")
    asking = batch.add_mutually_exclusive_group()
    asking.add_argument(
        "--template",
        metavar="NAME",
        help="data template: a name, a YAML file, or auto for the one whose form the rows have (default: that of the "
        "model's run, where it lies in a run's folder; else auto); rows need no answer",
    )
    asking.add_argument("--prompt", metavar="TEXT", help="what a row asks, with its fields in braces: '{review}'")
    batch.add_argument(
        "--system", metavar="TEXT", help="system prompt; '' for none (default: that of the template or the model's run)"
    )
    batch.add_argument("--max-new-tokens", type=positive, default=256, metavar="N", help="where an answer is cut (256)")
    batch.add_argument("--limit", type=positive, metavar="N", help="the first N rows only; later without it, go on")
    batch.add_argument(
        "--field",
        default="answer",
        metavar="NAME",
        help="field of the answer (answer, beside it stopped and error; with another NAME: NAME_stopped, NAME_error)",
    )
    batch.add_argument(
        "--json", action="store_true", help="write answers that are JSON as values; a field `valid` says which are"
    )
    batch.add_argument("--schema", type=Path, metavar="FILE", help="with --json: the JSON schema of a valid answer")
    batch.add_argument("--restart", action="store_true", help="begin anew, and replace what --out holds")
    batch.set_defaults(verb=_batch)


def _compare(parsed: argparse.Namespace) -> int:
    from export.stage import locked
    from finetune.comparing import (
        compare_files,
        comparison_settings,
        default_folder,
        refuse_run_folder,
        says_replaced,
    )
    from finetune.terminal import quiet_libraries, say, show_report

    settings = comparison_settings(parsed.data, parsed.template, parsed.set)
    quiet_libraries()
    folder = parsed.out or default_folder(parsed.artifacts)
    refuse_run_folder(folder)
    if (replaced := says_replaced(folder)) is not None:
        say(replaced)
    with locked(folder):
        report = compare_files(
            parsed.reference, parsed.artifacts, settings, folder, tokenizer=parsed.tokenizer, say=say
        )
    show_report(report, folder)
    return EXIT_STATUS_OF[report.verdict]


def _chat(parsed: argparse.Namespace) -> int:
    from finetune.chatting import talk
    from finetune.terminal import quiet_libraries

    quiet_libraries()
    try:
        talk(parsed.path, system=parsed.system, max_new_tokens=parsed.max_new_tokens)
    except KeyboardInterrupt:
        print()  # the usual way out of a conversation
    return 0


def _batch(parsed: argparse.Namespace) -> int:
    from finetune.batching import BatchSettings, answer_file
    from finetune.terminal import quiet_libraries, say

    settings = BatchSettings(
        model=parsed.model,
        rows=parsed.rows,
        out=parsed.out,
        template=parsed.template,
        prompt=parsed.prompt,
        system=parsed.system,
        max_new_tokens=parsed.max_new_tokens,
        limit=parsed.limit,
        field=parsed.field,
        parse_json=parsed.json,
        json_schema=parsed.schema,
        restart=parsed.restart,
    )
    quiet_libraries()
    try:
        outcome = answer_file(settings, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        message = "stopped. The answers so far are kept; run the same command again to go on from there."
        print(f"\nfieldtune: {message}", file=sys.stderr)
        return EXIT_INTERRUPTED
    say(outcome.sentence())
    return EXIT_ROWS_IN_ERROR if outcome.tally.errors else 0
