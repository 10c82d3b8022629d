"""The verbs `bundle` and `rehearse` of the command line: their arguments, and what they print."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.exit_status import EXIT_STATUS_OF
from finetune.verb_arguments import above_nothing, positive

if TYPE_CHECKING:
    from finetune.verb_arguments import Verbs


def add_bundle(verbs: "Verbs") -> None:
    """Adds `fieldtune bundle`."""
    bundle = verbs.add_parser(
        "bundle",
        help="pack a run's GGUF file for a device: grammar, client, server script, certificate",
        description="Makes a folder and its .tar.gz that hold all a device needs: the GGUF file, the schema and its "
        "grammar, the prompt with its state, a client that checks every action, scripts for llama-server and Ollama, "
        "an install note, checksums and the certificate. Exit status: 0 made, 2 it could not be done.",
    )
    bundle.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    bundle.add_argument("--for", dest="name", metavar="NAME", help="what it is for: its name (default: the recipe's)")
    bundle.add_argument(
        "--file", metavar="SUBJECT", help="the file to ship, such as gguf/q8_0 (default: the smallest that passed)"
    )
    bundle.add_argument("--schema", type=Path, metavar="FILE", help="JSON schema of answers (default: the recipe's)")
    bundle.add_argument(
        "--context",
        type=positive,
        metavar="N",
        help="tokens of context (default: the target's, else what the rows need)",
    )
    bundle.add_argument(
        "--cache-type", choices=["f16", "q8_0"], help="type of the KV cache (default: the target's, else f16)"
    )
    bundle.add_argument("--rows", type=positive, default=200, metavar="N", help="held-out rows that ship with it (200)")
    bundle.add_argument(
        "--accept-unproven", action="store_true", help="take a file of which the verdict is 'cannot tell'"
    )
    bundle.add_argument("--out", type=Path, metavar="DIR", help="where it goes (default: RUN/bundle)")
    bundle.set_defaults(verb=_bundle)


def add_rehearse(verbs: "Verbs") -> None:
    """Adds `fieldtune rehearse`."""
    rehearse = verbs.add_parser(
        "rehearse",
        help="run a bundle's own client under a hard limit on memory and processors",
        description="Unpacks a bundle in an empty folder, compares it with its checksums and runs its client under a "
        "hard limit: peak memory, first-token time, tokens/s, answers that break the schema, growth of memory, and "
        "restarts after kill -9. Exit status: 0 pass, 1 fail, 3 cannot tell; 2 when it could not be done.",
    )
    rehearse.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder, or its .tar.gz")
    rehearse.add_argument("--memory", type=_memory, required=True, metavar="SIZE", help="such as 1GB or 900MiB")
    rehearse.add_argument("--cpus", type=positive, default=1, metavar="N", help="processors (1)")
    rehearse.add_argument(
        "--minutes", type=above_nothing, default=6.0, metavar="N", help="of asking; each row at least once (6)"
    )
    rehearse.add_argument(
        "--rows", type=Path, metavar="FILE", help="lines of command and answer (default: the bundle's)"
    )
    rehearse.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="the interpreter of the client (default: this one)"
    )
    rehearse.add_argument("--keep", type=Path, metavar="DIR", help="a new or empty folder to unpack in, and to leave")
    rehearse.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the result goes (default: beside the bundle, under the limit's name)",
    )
    rehearse.set_defaults(verb=_rehearse)


def _memory(text: str) -> int:
    from export.rehearsal.limits import parse_memory

    try:
        return parse_memory(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a size such as 1GB; found {text!r}") from None


def _bundle(parsed: argparse.Namespace) -> int:
    from finetune.bundling import BundleSettings, bundle_run, summary
    from finetune.earlier_run import BUNDLES
    from finetune.terminal import quiet_libraries, say

    quiet_libraries()
    settings = BundleSettings(
        run=parsed.run,
        out=parsed.out or parsed.run / BUNDLES,
        name=parsed.name,
        file=parsed.file,
        json_schema=parsed.schema,
        context_tokens=parsed.context,
        cache_type=parsed.cache_type,
        rows=parsed.rows,
        accept_unproven=parsed.accept_unproven,
    )
    for line in summary(bundle_run(settings, say)):
        say(line)
    return 0


def _rehearse(parsed: argparse.Namespace) -> int:
    from export.artifacts import write_atomically
    from export.rehearsal import RehearsalSettings, rehearse
    from finetune.rehearsal_table import lines
    from finetune.terminal import say

    # a path as it is written from here: the client runs in its own folder, and a venv's link must not be followed
    python = str(Path(parsed.python).absolute()) if Path(parsed.python).name != parsed.python else parsed.python
    settings = RehearsalSettings(
        bundle=parsed.bundle,
        memory_bytes=parsed.memory,
        cpus=parsed.cpus,
        minutes=parsed.minutes,
        rows=parsed.rows,
        python=python,
        keep=parsed.keep,
    )
    found = rehearse(settings, say)
    limit = f"{parsed.memory / 1e6:.0f}mb-{parsed.cpus}cpu"
    out = parsed.out or parsed.bundle.absolute().parent / f"{found.bundle}.rehearsal-{limit}.json"
    write_atomically(out, found.model_dump_json(indent=2) + "\n")
    for line in (*lines(found), f"verdict: {found.verdict}", f"report: {out}"):
        say(line)
    return EXIT_STATUS_OF[found.verdict]
