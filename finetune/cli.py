"""The command `fieldtune`: its verbs, and how it ends. Nothing heavy is imported before a verb needs it."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.device_verbs import add_bundle, add_rehearse
from finetune.exit_status import EXIT_BROKEN_CONTRACT, EXIT_ERROR, EXIT_INTERRUPTED
from finetune.exit_status import EXIT_STATUS_OF as EXIT_STATUS_OF
from finetune.fit_verbs import add_device, add_fit
from finetune.model_verbs import add_batch, add_chat, add_compare
from finetune.recipe_verbs import add_estimate, add_run, add_stages, add_sweep, add_validate

if TYPE_CHECKING:
    from finetune.verb_arguments import Verbs


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
        keeps = hasattr(parsed, "recipe")  # what runs a recipe has stages
        message = (
            "Finished stages are kept; run the same command again to go on from there." if keeps else "Run it again."
        )
        print(f"\nfieldtune: stopped. {message}", file=sys.stderr)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fieldtune",
        description="Fine-tune a Qwen model on small domain data, export it to GGUF and GPTQ, and measure the very "
        "files that ship, before and after.",
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    add_run(verbs)
    add_stages(verbs)
    add_validate(verbs)
    add_estimate(verbs)
    _add_schema(verbs)
    add_sweep(verbs)
    add_compare(verbs)
    add_device(verbs)
    add_fit(verbs)
    add_chat(verbs)
    add_batch(verbs)
    add_bundle(verbs)
    add_rehearse(verbs)
    _add_recipes(verbs)
    _add_init(verbs)
    return parser


def _add_schema(verbs: "Verbs") -> None:
    schema = verbs.add_parser("schema", help="print the recipe's JSON schema, for editors")
    schema.set_defaults(verb=_schema)


def _add_recipes(verbs: "Verbs") -> None:
    recipes = verbs.add_parser("recipes", help="list the shipped recipes, or copy one to start from")
    recipes.add_argument("name", nargs="?", help="a recipe to copy into the working directory")
    recipes.add_argument("--to", type=Path, metavar="FILE", help="where to copy it (default: ./<name>.yaml)")
    recipes.set_defaults(verb=_recipes)


def _add_init(verbs: "Verbs") -> None:
    init = verbs.add_parser("init", help="list the domains, or start a recipe, a template and sample rows from one")
    init.add_argument("domain", nargs="?", metavar="DOMAIN", help="a data template's name; without one all are listed")
    init.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="where the files go; nothing is overwritten")
    init.set_defaults(verb=_init)


def _schema(parsed: argparse.Namespace) -> int:
    import json

    from finetune.recipe import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


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
