"""The verbs that take a recipe: `run` and its stages, `validate`, `estimate`, `sweep`; their arguments and output."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.exit_status import EXIT_STATUS_OF, EXIT_STATUSES_OF_A_VERDICT
from finetune.verb_arguments import SET_EMPTY, positive

if TYPE_CHECKING:
    from finetune.pipeline import Run, Stage
    from finetune.recipe import Recipe
    from finetune.verb_arguments import Verbs

_STAGE_VERBS: dict["Stage", str] = {
    "data": "read the rows, map them to conversations and split them",
    "train": "train the adapter, or all weights",
    "merge": "make the 16-bit model: merge the adapter into the base, or round what was trained whole",
    "quantize": "write the files that ship",
    "check": "measure base, model as trained, merged model and every file, and write report.json",
}


def add_run(verbs: "Verbs") -> None:
    """Adds `fieldtune run`."""
    run = verbs.add_parser("run", help="everything, from rows to a measured file", description=_run_description())
    _add_recipe_arguments(run)
    run.add_argument("--until", choices=list(_STAGE_VERBS), default="check", help="stop after this stage")
    run.set_defaults(verb=_run, preview=0)


def _run_description() -> str:
    stages = " -> ".join(_STAGE_VERBS)
    return f"Runs the stages {stages}. A stage that is already done is skipped. {EXIT_STATUSES_OF_A_VERDICT}"


def add_stages(verbs: "Verbs") -> None:
    """Adds a verb for each stage of a run: it, and whatever it needs."""
    for stage, what in _STAGE_VERBS.items():
        verb = verbs.add_parser(stage, help=f"{what} (and whatever that needs)")
        _add_recipe_arguments(verb)
        verb.set_defaults(verb=_run, until=stage, preview=0)
        if stage == "data":
            verb.add_argument(
                "--preview",
                type=positive,
                nargs="?",
                const=3,
                default=0,
                metavar="N",
                help="show the first N training rows (3) token by token, and which of their tokens carry loss",
            )


def add_validate(verbs: "Verbs") -> None:
    """Adds `fieldtune validate`."""
    validate = verbs.add_parser("validate", help="check a recipe without loading a model")
    _add_recipe_arguments(validate, with_out=False)
    validate.set_defaults(verb=_validate)


def add_estimate(verbs: "Verbs") -> None:
    """Adds `fieldtune estimate`."""
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


def add_sweep(verbs: "Verbs") -> None:
    """Adds `fieldtune sweep`."""
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
    sweep.add_argument("--seeds", type=positive, default=3, metavar="N", help="trainings of each budget (3)")
    sweep.set_defaults(verb=_sweep)


def _add_recipe_arguments(parser: argparse.ArgumentParser, *, with_out: bool = True) -> None:
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="a recipe's YAML file, or the name of a shipped one"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override one key, e.g. train.max_steps=20; {SET_EMPTY}",
    )
    if with_out:
        parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default: runs/<recipe's name>)")


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
