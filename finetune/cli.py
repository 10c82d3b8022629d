"""The command `fieldtune`: its verbs and what they print. Nothing heavy is imported before a verb needs it."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.device_verbs import add_bundle, add_rehearse

if TYPE_CHECKING:
    from export.compare import Verdict
    from finetune.pipeline import Run, Stage
    from finetune.recipe import Recipe

EXIT_STATUS_OF: dict["Verdict", int] = {"pass": 0, "fail": 1, "cannot tell": 3}
EXIT_BROKEN_CONTRACT = 1
EXIT_ROWS_IN_ERROR = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT

_STAGE_VERBS: dict["Stage", str] = {
    "data": "read the rows, map them to conversations and split them",
    "train": "train the adapter, or all weights",
    "merge": "make the 16-bit model: merge the adapter into the base, or round what was trained whole",
    "quantize": "write the files that ship",
    "check": "measure base, model as trained, merged model and every file, and write report.json",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; the exit status.

    0: done, and what was judged passed; 1: a file failed the gate, the rows break the contract, or some rows of a batch
    have an error in place of an answer; 2: it could not be done, and the message says why; 3: the gate cannot tell;
    130: interrupted.
    """
    from export.errors import ContractError, FieldtuneError
    from export.hardware import share_cores

    parsed = _parser().parse_args(arguments)
    share_cores()
    verb: Callable[[argparse.Namespace], int] = parsed.verb
    try:
        return verb(parsed)
    except FieldtuneError as error:
        print(f"fieldtune: {error}", file=sys.stderr)
        return EXIT_BROKEN_CONTRACT if isinstance(error, ContractError) else EXIT_ERROR
    except KeyboardInterrupt:
        message = "stopped. Finished stages are kept; run the same command again to go on from there."
        print(f"\nfieldtune: {message}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of our output (head, less) has gone; there is nobody left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:
        refusal = _refusal_of_the_system(error, getattr(parsed, "out", None) or Path())
        if refusal is None:
            raise  # a bug of ours: it keeps its traceback
        print(f"fieldtune: {refusal}", file=sys.stderr)
        return EXIT_ERROR


def _refusal_of_the_system(error: Exception, folder: Path) -> str | None:
    """What to say about an error that is, or came from, a file or a connection that the system refused."""
    from export.stage import storage_problem

    if (problem := storage_problem(error, folder)) is not None:
        return str(problem)
    return f"{type(error).__name__}: {error}" if isinstance(error, OSError) else None


def _positive(text: str) -> int:
    """A number of which there must be at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up; found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    from finetune import fit_verbs

    parser = argparse.ArgumentParser(
        prog="fieldtune",
        description="Fine-tune a Qwen model on small domain data, export it to GGUF and GPTQ, and measure the very "
        "files that ship, before and after.",
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_run(verbs)
    for stage, what in _STAGE_VERBS.items():
        verb = verbs.add_parser(stage, help=f"{what} (and whatever that needs)")
        _add_recipe_arguments(verb)
        verb.set_defaults(verb=_run, until=stage, preview=0)
        if stage == "data":
            verb.add_argument(
                "--preview",
                type=_positive,
                nargs="?",
                const=3,
                default=0,
                metavar="N",
                help="show the first N training rows (3) token by token, and which of their tokens carry loss",
            )
    validate = verbs.add_parser("validate", help="check a recipe without loading a model")
    _add_recipe_arguments(validate, with_out=False)
    validate.set_defaults(verb=_validate)
    _add_estimate(verbs)
    schema = verbs.add_parser("schema", help="print the recipe's JSON schema, for editors")
    schema.set_defaults(verb=_schema)
    _add_sweep(verbs)
    _add_compare(verbs)
    fit_verbs.add_device(verbs)
    fit_verbs.add_fit(verbs, _positive)
    _add_chat(verbs)
    _add_batch(verbs)
    add_bundle(verbs)
    add_rehearse(verbs)
    _add_recipes(verbs)
    _add_init(verbs)
    return parser


def _add_run(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = verbs.add_parser("run", help="everything, from rows to a measured file", description=_run_description())
    _add_recipe_arguments(run)
    run.add_argument("--until", choices=list(_STAGE_VERBS), default="check", help="stop after this stage")
    run.set_defaults(verb=_run, preview=0)


def _run_description() -> str:
    stages = " -> ".join(_STAGE_VERBS)
    return f"Runs the stages {stages}. A stage that is already done is skipped. {_EXIT_STATUSES}"


_EXIT_STATUSES = (
    "Exit status: 0 pass, 1 fail (of a file, or of the rows' contract), 3 cannot tell; 2 when it could not be done."
)


_SET_EMPTY = "KEY= is the empty text (data.system_prompt= removes every system message), KEY=null no value"


def _add_recipe_arguments(parser: argparse.ArgumentParser, *, with_out: bool = True) -> None:
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="a recipe's YAML file, or the name of a shipped one"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override one key, e.g. train.max_steps=20; {_SET_EMPTY}",
    )
    if with_out:
        parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default: runs/<recipe's name>)")


def _add_estimate(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    estimate = verbs.add_parser(
        "estimate",
        help="tell the memory, disk and time that a recipe needs, before anything is run",
        description="Tells the memory of training by its parts, of the other stages, the disk and the time, for one "
        "machine; without --hardware for this one, measured, and in a line each for the others that are known. Every "
        "figure has its error; nothing is loaded or fetched.",
    )
    _add_recipe_arguments(estimate, with_out=False)
    estimate.add_argument("--hardware", metavar="NAME", help="a machine: t4, l4, rtx_4090, a100, h100, two_cores")
    estimate.set_defaults(verb=_estimate)


def _add_sweep(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sweep = verbs.add_parser(
        "sweep",
        help="train on more and more of the rows, and draw what each step added",
        description="Splits the rows once, trains each token budget with each seed, and measures every result on the "
        "same held-out rows. A sweep that was stopped goes on where it was.",
    )
    _add_recipe_arguments(sweep)
    sweep.add_argument(
        "--tokens", required=True, metavar="N,N,...", help="tokens of training rows, such as 25k,50k,100k,200k"
    )
    sweep.add_argument("--seeds", type=_positive, default=3, metavar="N", help="trainings of each budget (3)")
    sweep.set_defaults(verb=_sweep)


def _add_compare(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = verbs.add_parser(
        "compare",
        help="judge any files against any reference, on your rows",
        description="Measures the reference and every artifact on the same rows, and judges each artifact against the "
        f"reference. Nothing needs to have been made by fieldtune. {_EXIT_STATUSES}",
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
        help=f"override a key below data, check or gate, or seed, e.g. check.rows=500; {_SET_EMPTY}",
    )
    compare.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the report goes (default: runs/compare- and the last artifact's name, behind that of the folder it "
        "lies in where it says little, such as model-q8_0)",
    )
    compare.set_defaults(verb=_compare)


def _add_chat(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
    chat.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="where an answer is cut")
    chat.set_defaults(verb=_chat)


def _add_batch(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
    batch.add_argument(
        "--max-new-tokens", type=_positive, default=256, metavar="N", help="where an answer is cut (256)"
    )
    batch.add_argument("--limit", type=_positive, metavar="N", help="the first N rows only; later without it, go on")
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


def _add_recipes(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    recipes = verbs.add_parser("recipes", help="list the shipped recipes, or copy one to start from")
    recipes.add_argument("name", nargs="?", help="a recipe to copy into the working directory")
    recipes.add_argument("--to", type=Path, metavar="FILE", help="where to copy it (default: ./<name>.yaml)")
    recipes.set_defaults(verb=_recipes)


def _add_init(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    init = verbs.add_parser("init", help="list the domains, or start a recipe, a template and sample rows from one")
    init.add_argument("domain", nargs="?", metavar="DOMAIN", help="a data template's name; without one all are listed")
    init.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="where the files go; nothing is overwritten")
    init.set_defaults(verb=_init)


def _run(parsed: argparse.Namespace) -> int:
    from export.stage import locked
    from finetune.terminal import quiet_libraries, say, show_report

    run = _open_run(parsed)
    quiet_libraries()
    with locked(run.folder):
        if parsed.preview:
            run.preview(parsed.preview)
        report = run.until(parsed.until)
    if report is None:
        say(f"done: {run.folder}")
        return 0
    show_report(report, run.folder)
    return EXIT_STATUS_OF[report.verdict]


def _sweep(parsed: argparse.Namespace) -> int:
    from export.stage import locked
    from finetune.sweep import parse_budgets, sweep
    from finetune.terminal import quiet_libraries, say, show_sweep

    budgets = parse_budgets(parsed.tokens)
    recipe = _load_recipe(parsed)
    folder = parsed.out or Path("runs") / f"{recipe.name}-sweep"
    quiet_libraries()
    with locked(folder):
        report = sweep(recipe, budgets, parsed.seeds, folder, say)
    show_sweep(report, folder)
    return 0


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


def _open_run(parsed: argparse.Namespace) -> "Run":
    recipe = _load_recipe(parsed)
    from finetune.pipeline import Run
    from finetune.terminal import say

    folder = parsed.out or Path("runs") / recipe.name
    return Run(recipe, folder, say)


def _load_recipe(parsed: argparse.Namespace) -> "Recipe":
    from finetune.library import refuse_placeholder_rows
    from finetune.recipe import find, load

    path = find(parsed.recipe)
    recipe = load(path, parsed.set)
    refuse_placeholder_rows(path, recipe.data)
    return recipe


def _validate(parsed: argparse.Namespace) -> int:
    from finetune.estimate.telling import estimate_line
    from finetune.preflight import inspect

    recipe = _load_recipe(parsed)
    for line in (*inspect(recipe), estimate_line(recipe)):
        print(line)
    print(f"{parsed.recipe}: valid")
    return 0


def _estimate(parsed: argparse.Namespace) -> int:
    from finetune.estimate.telling import estimate_lines
    from finetune.recipe import find, load

    for line in estimate_lines(load(find(parsed.recipe), parsed.set), parsed.hardware):
        print(line)
    return 0


def _schema(parsed: argparse.Namespace) -> int:
    import json

    from finetune.recipe import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


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


def _recipes(parsed: argparse.Namespace) -> int:
    from finetune.library import copy_recipe, next_steps, shipped_recipes

    if parsed.name is None:
        for name, purpose in shipped_recipes():
            print(f"{name:24} {purpose}")
        return 0
    copied = copy_recipe(parsed.name, parsed.to)
    print(copied)
    print(f"next: {next_steps(copied)}")
    return 0


def _init(parsed: argparse.Namespace) -> int:
    from export.errors import RecipeError
    from finetune.scaffold import domains, scaffold

    known = dict(domains())
    if parsed.domain is not None and parsed.folder is None and parsed.domain in known:
        raise RecipeError(f"no folder was given. Name the one to write to: fieldtune init {parsed.domain} my_domain")
    if parsed.domain not in known:
        for name, description in known.items():
            print(f"{name:24} {description}")
        if parsed.domain is None:
            return 0
    for path in scaffold(parsed.domain, parsed.folder or Path()):
        print(path)
    print(f"next: fieldtune validate {parsed.folder / 'recipe.yaml'}")
    return 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"fieldtune {version('fieldtune')}"
    except PackageNotFoundError:
        return "fieldtune (not installed)"
