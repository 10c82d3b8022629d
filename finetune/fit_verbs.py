"""The verbs `device` and `fit` of the command line: their arguments, and what they print. Nothing heavy is imported."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import RecipeError
from finetune.verb_arguments import above_nothing, positive

if TYPE_CHECKING:
    from finetune.verb_arguments import Verbs

_EXIT_STATUS_OF_FIT = {"fits": 0, "does not": 1, "may": 3}


def add_device(verbs: "Verbs") -> None:
    """Adds the verb `device` to the command line."""
    device = verbs.add_parser("device", help="list the device profiles, or measure this machine")
    actions = device.add_subparsers(title="actions", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="the profiles that ship with it")
    listed.set_defaults(verb=_device_list)
    probe = actions.add_parser(
        "probe",
        help="measure this machine: memory, and what llama.cpp gets through of each tensor type",
        description="Runs small models without knowledge, one for each tensor type, in turns: a minute or two. Let the "
        "machine be idle.",
    )
    probe.add_argument("--out", type=Path, metavar="FILE", help="where the profile goes (default: it is printed)")
    probe.set_defaults(verb=_device_probe)


def add_fit(verbs: "Verbs") -> None:
    """Adds the verb `fit` to the command line."""
    fit = verbs.add_parser(
        "fit",
        help="tell which files of a model fit a device, before anything is quantized",
        description="Tells the exact size of each GGUF file, its peak memory and its speed on a device. Exit status: 0 "
        "something fits, 1 nothing does, 3 the errors of the predictions leave it open; 2 when it could not be done.",
    )
    fit.add_argument("model", metavar="MODEL", help="a model folder, a run's folder, a .gguf file, or a known hub id")
    fit.add_argument(
        "--device", required=True, metavar="NAME", help="a shipped profile, a profile's path, or this_machine"
    )
    fit.add_argument("--context", type=positive, required=True, metavar="N", help="tokens of prompt and answer")
    fit.add_argument("--min-tps", type=above_nothing, metavar="T", help="tokens per second it must reach")
    fit.add_argument(
        "--prompt-tokens", type=positive, metavar="P", help="length of a prompt (256, or half of a shorter context)"
    )
    fit.add_argument("--types", default="", metavar="A,B", help="GGUF file types to look at (default: the usual ones)")
    fit.add_argument("--cache", default="", metavar="A,B", help="types of cache: f16, q8_0, q4_0 (default: all)")
    fit.add_argument("--json", action="store_true", help="print all of it as JSON")
    fit.add_argument("--html", type=Path, metavar="FILE", help="write it as a page too, with a plot")
    fit.set_defaults(verb=_fit)


def _device_list(_parsed: argparse.Namespace) -> int:
    from finetune.devices import device_lines

    for line in device_lines():
        print(line)
    return 0


def _device_probe(parsed: argparse.Namespace) -> int:
    from export.device.probing import probe
    from finetune.devices import device_text, write_device
    from finetune.terminal import say

    if parsed.out is not None:
        _require_a_new_file(parsed.out)
    device = probe(lambda line: print(line, file=sys.stderr, flush=True))
    if parsed.out is None:
        print(device_text(device), end="")
        return 0
    write_device(device, parsed.out)
    say(f"{parsed.out}: give it to --device")
    return 0


def _require_a_new_file(path: Path) -> None:
    """Raises RecipeError, before anything is measured, for a file that is there or that cannot be written."""
    if path.exists():
        raise RecipeError(f"--out {path}: is there already, and would be replaced. Give another name, or remove it.")
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"--out {path}: there is no folder {path.parent}. Make it, or choose another place.")


def _fit(parsed: argparse.Namespace) -> int:
    from export.device.budget import Limits
    from finetune.devices import find_device
    from finetune.fit_wording import as_json, lines
    from finetune.fitting import fit_model, parse_caches, parse_types
    from finetune.terminal import quiet_libraries

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    quiet_libraries()
    prompt_tokens = parsed.prompt_tokens or min(256, max(1, parsed.context // 2))
    if parsed.prompt_tokens is not None and prompt_tokens >= parsed.context:
        raise RecipeError(
            f"--prompt-tokens {prompt_tokens} leaves no room for an answer in a --context of {parsed.context}. "
            "Ask for a longer context, or a shorter prompt."
        )
    limits = Limits(context_tokens=parsed.context, min_tokens_per_second=parsed.min_tps, prompt_tokens=prompt_tokens)
    found = fit_model(
        parsed.model,
        find_device(parsed.device, say),
        limits,
        types=parse_types(parsed.types),
        caches=parse_caches(parsed.cache),
        say=say,
    )
    print(as_json(found) if parsed.json else "\n".join(lines(found)))
    if parsed.html is not None:
        from finetune.fit_page import write_fit_page

        write_fit_page(found, parsed.html)
        say(f"page: {parsed.html}")
    return _EXIT_STATUS_OF_FIT[found.fit.verdict]
