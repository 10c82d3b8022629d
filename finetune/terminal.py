"""What a person reads on the terminal: progress lines, and the table at the end."""

import logging
import math
import os
import warnings
from pathlib import Path

from export.compare import Comparison
from export.report import Report, held_out_rows, scored_tokens, table
from export.retained import Retained


def say(line: str) -> None:
    """Prints one line of progress at once, also into a pipe."""
    print(line, flush=True)


def quiet_libraries() -> None:
    """Keeps the libraries' chatter off the terminal for this process: advice to developers, telemetry, load bars.

    Called by the command line alone; as a library, this project changes no one's logging. Errors still show.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in ("torchao", "torch.utils._pytree", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "gguf"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|trl|optimum|gptqmodel|bitsandbytes)\b.*")


def show_report(report: Report, folder: Path) -> None:
    """Prints the before/after table, what was done otherwise than asked, the verdict and where the report is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    headings, rows = table(report)
    title = f"{report.recipe['name']}: before and after (value ± standard error)"
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        drawn.add_column(
            heading, justify="left" if heading.strip() in ("subject", "verdict") else "right", no_wrap=True
        )
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    # a pipe or a narrow terminal would cut the numbers: the table then keeps the width it needs
    needed = Measurement.get(Console(width=500), Console(width=500).options, drawn).maximum
    console = console if console.is_terminal and console.width >= needed else Console(width=needed)
    console.print(drawn)
    for line in _remarks(report):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"verdict: {report.verdict}", highlight=False)
    console.print(f"report: {folder / 'report.html'} (and report.json)", highlight=False, soft_wrap=True)


def _remarks(report: Report) -> list[str]:
    """The rows behind the numbers, what is not as it should be, the fallbacks, and each check that did not pass."""
    lines = [_basis(report)]
    lines += [
        f"{finding.subject}: {finding.what}: found {finding.found}; expected {finding.expected}"
        for finding in report.findings
        if not finding.ok
    ]
    for subject in report.subjects:
        lines += [
            f"{subject.name}: {fallback.what}: asked {fallback.asked}, used {fallback.used} ({fallback.reason})"
            for fallback in subject.fallbacks
        ]
    lines += [line for kept in report.retained if (line := _kept(kept))]
    lines += [_undecided(c) if c.verdict == "cannot tell" else _judged(c) for c in report.comparisons if not _passed(c)]
    return lines


def _kept(kept: Retained) -> str | None:
    """What is said of a file that does not hold the fine-tuning change once.

    Rounding that is not drawn to the base keeps a share of 1 on average, whatever its size (`export.retained`).
    """
    if 0.9 <= kept.share <= 1.1:
        return None
    said = f"{kept.subject}: holds {kept.share:.2f} times what fine-tuning changed (over {kept.weights:,} weights)"
    if math.isnan(kept.share):
        return f"{kept.subject}: how much of the fine-tuning change it kept cannot be said: {kept.note}"
    if kept.share > 1.1:
        return f"{said}: was the adapter merged twice?"
    if kept.share < 0.01:
        return f"{said}: was it made from the base?"
    return f"{said}: use more bits, or start from weights that were not quantized before"


def _passed(comparison: Comparison) -> bool:
    return comparison.verdict in ("pass", None)


def _judged(c: Comparison) -> str:
    """A comparison in a line: what changed by how much, and what was allowed."""
    interval = "" if c.interval is None else f" [{c.interval[0]:.4f}, {c.interval[1]:.4f}]"
    limit = "" if c.limit is None else f", limit {c.limit:g}"
    flips = ""
    if c.flips is not None:
        flips = f", {c.flips.lost} rows lost and {c.flips.gained} gained (p {c.flips.p_value:.2g})"
    note = f" ({c.note})" if c.note else ""
    return (
        f"{c.after} against {c.before}: {c.check} {c.verdict}: {c.scale} {c.delta:.4f}{interval}{limit}, "
        f"n {c.n:,}{flips}{note}"
    )


def _undecided(c: Comparison) -> str:
    """The same, and how many rows would settle it."""
    return _judged(c) + ("" if c.rows_needed is None else f"; about {c.rows_needed:,} rows would settle it")


def _basis(report: Report) -> str:
    """What the numbers stand on: counts of what was scored, and what is written behind ±."""
    counts = {"held-out rows": held_out_rows(report), "scored tokens": scored_tokens(report)}
    known = [f"{name}: {count:,}" for name, count in counts.items() if count is not None]
    return "; ".join([*known, "±: standard error over rows (of tokens/s: over the rows that were timed)"])
