"""What a person reads on the terminal: progress lines, and the table at the end."""

import logging
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from export.lost_safety import LostSafetyItem
from export.report import Report, held_out_rows, scored_tokens
from export.retained import Retained
from export.wording.sentences import comparison_sentence, finding_sentence, units_of
from export.wording.table import category_lines, table
from export.wording.training import lost_in_training, not_learned
from export.wording.values import all_alike, check_name, plain, unit_of

if TYPE_CHECKING:
    from finetune.learning_curve import CurvePoint
    from finetune.sweep import SweepReport


_LONGEST_ANSWER = 200  # characters of an answer that a terminal is shown


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
    for line in (*category_lines(report), *_remarks(report)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"verdict: {report.verdict}", highlight=False)
    console.print(f"report: {folder / 'report.html'} (and report.json)", highlight=False, soft_wrap=True)


def show_sweep(report: "SweepReport", folder: Path) -> None:
    """Prints the learning curve as a table, what the last step added, and where the report is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from finetune.sweep_page import sentences

    drawn = Table(title=f"{report.name}: mean over seeds (90 % interval)", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("check", "tokens", "rows", "mean", "interval", "n"):
        drawn.add_column(heading, justify="left" if heading == "check" else "right", no_wrap=True)
    for point in report.points:
        factor = unit_of(point.unit).factor
        interval = "-"
        if point.low is not None and point.high is not None:
            interval = f"{plain(point.low * factor)} to {plain(point.high * factor)}"
        value = plain(point.value * factor)
        drawn.add_row(_named(point), f"{point.tokens:,.0f}", f"{point.rows:,.0f}", value, interval, f"{point.n_rows:,}")
    console = Console()
    console.print(drawn)
    for line in sentences(report):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'} (and report.json)", highlight=False, soft_wrap=True)


def _named(point: "CurvePoint") -> str:
    """A check's name with the unit that its values are told in."""
    unit = unit_of(point.unit).shown
    return f"{check_name(point.check)}, {unit}" if unit else check_name(point.check)


def _remarks(report: Report) -> list[str]:
    """The rows behind the numbers, what is not as it should be, the fallbacks, and each check that did not pass."""
    lines = [_basis(report)]
    if any(all_alike(measured) for measured in report.measurements):
        lines.append("− or + behind a share: all rows agree, and its 90 % Wilson interval reaches so far to that side")
    lines += [finding_sentence(finding) for finding in report.findings if not finding.ok]
    for subject in report.subjects:
        lines += [
            f"{subject.name}: {fallback.what}: asked {fallback.asked}, used {fallback.used} ({fallback.reason})"
            for fallback in subject.fallbacks
        ]
    lines += [line for kept in report.retained if (line := _kept(kept))]
    lines += _not_passed(report)
    if (learned_nothing := not_learned(report)) is not None:
        lines.append(learned_nothing)
    if report.safety is not None:
        lines += [_lost(item) for item in report.safety.lost]
        if report.safety.lost_in_training:
            lines.append(lost_in_training(report.safety.lost_in_training))
    # spaces that do not break are for pages: nobody could search the line for what it says
    return [line.replace("\u00a0", " ") for line in lines]


def _not_passed(report: Report) -> list[str]:
    """Each comparison that did not pass; checks of which the very same is to be said stand in one line."""
    units = units_of(report)
    alike: dict[str, list[str]] = {}
    for comparison in report.comparisons:
        if comparison.verdict not in ("pass", None):
            name = check_name(comparison.check)
            sentence = comparison_sentence(comparison, units, verdict=True)
            alike.setdefault(sentence.replace(f": {name}: ", ": \0: ", 1), []).append(name)
    return [sentence.replace("\0", ", ".join(names)) for sentence, names in alike.items()]


def _lost(item: LostSafetyItem) -> str:
    """A lost safety item by its name, with what was asked and both answers, each cut to a line."""
    why = f"; safe is: {item.why}" if item.why else ""
    return (
        f"{item.after}: lost the safety item {item.label}{why}\n  asked: {_line(item.prompt)}\n"
        f"  {item.before}: {_line(item.answer_before)}\n  {item.after}: {_line(item.answer_after)}"
    )


def _line(text: str) -> str:
    """A text on one line, cut where it is long; the report has it whole."""
    flat = " ".join(text.split())
    return "(empty)" if not flat else flat if len(flat) <= _LONGEST_ANSWER else f"{flat[:_LONGEST_ANSWER]} …"


# An adapter that was merged twice leaves 2; rounding alone was seen to reach 1.13.
_MERGED_TWICE = 1.5


def _kept(kept: Retained) -> str | None:
    """What is said of a file that does not hold the fine-tuning change once.

    Rounding that is not drawn to the base keeps a share of 1 on average, whatever its size (`export.retained`).
    """
    if 0.9 <= kept.share <= 1.1:
        return None
    said = f"{kept.subject}: holds {kept.share:.2f} times what fine-tuning changed (over {kept.weights:,} weights)"
    if math.isnan(kept.share):
        return f"{kept.subject}: how much of the fine-tuning change it kept cannot be said: {kept.note}"
    if kept.share > _MERGED_TWICE:
        return f"{said}: was an adapter merged twice?"
    if kept.share < 0.01:
        return f"{said}: was it made from the base?"
    if kept.share > 1:
        return f"{said}: its rounding goes the way of the change, as it may on weights that were quantized before"
    return f"{said}: use more bits, or start from weights that were not quantized before"


def _basis(report: Report) -> str:
    """What the numbers stand on: counts of what was scored, and what is written behind ±."""
    counts = {"held-out rows": held_out_rows(report), "scored tokens": scored_tokens(report)}
    known = [f"{name}: {count:,}" for name, count in counts.items() if count is not None]
    return "; ".join([*known, "±: standard error over rows (of tokens/s: over the rows that were timed)"])
