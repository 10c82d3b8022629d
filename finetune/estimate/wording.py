"""An estimate in words: the table of `fieldtune estimate`, the line of `validate`, the lines that recipes open with.

A figure is never shown without its range, rounded to what the range allows.
"""

from collections.abc import Sequence

from export.reference import TOP_K
from export.wording.sizes import gigabytes
from finetune.estimate.estimating import Estimate
from finetune.estimate.memory import ERROR_SHARE, Range
from finetune.estimate.rows import ROWS_ASSUMED

_ALL_LINES = "fieldtune estimate"
_MINUTE, _HOUR = 60, 3600


def table(found: Estimate) -> tuple[str, ...]:
    """All parts, a line each, for one machine."""
    low, high = found.training_range
    held = f"{found.batch.rows} rows of {found.batch.tokens_per_row} tokens a pass"
    return (
        f"base: {found.base}, {found.parameters:,} parameters; {found.trained_parameters:,} are trained",
        f"rows: {_rows(found)}",
        f"machine: {found.hardware.title}, computing in {found.hardware.dtype}",
        f"memory of training ({held}):",
        *(f"  {gigabytes(part.size_bytes):>9}  {part.what}" for part in found.training if part.size_bytes > 0),
        f"  {gigabytes(found.training_bytes):>9}  in all, expected within {gigabytes(low)} and {gigabytes(high)}: "
        f"{_fit(found)}",
        *(f"  {gigabytes(stage.size_bytes):>9}  {stage.name}, the processor's memory" for stage in found.stages[:1]),
        *(f"  {gigabytes(stage.size_bytes):>9}  {stage.name}" for stage in found.stages[1:]),
        f"disk: {gigabytes(found.disk_bytes)} with the base, the merged folder and every export, within a fifth; and "
        f"{TOP_K * 8 / 1e3:.0f} kB in check/ for each scored token",
        f"time of training: {duration_text(found.seconds)}{_per_rows(found)}",
        f"speed: {found.hardware.flops_per_second / 1e12:,.3g} TFLOPS ({found.hardware.source}), of which a training "
        f"reaches {found.hardware.efficiency[0]:.0%} to {found.hardware.efficiency[1]:.0%}",
    )


def machines(estimates: Sequence[Estimate]) -> tuple[str, ...]:
    """A line for each machine: whether training fits, and how long it takes."""
    width = max(len(found.hardware.title) for found in estimates)
    return tuple(
        f"  {found.hardware.title:{width}}  {gigabytes(found.training_bytes):>9}  {duration_text(found.seconds):>20}"
        f"{_per_rows(found)}  {_fit(found)}"
        for found in estimates
    )


def summary(found: Estimate) -> str:
    """The line of `validate`."""
    low, high = found.training_range
    return (
        f"estimate: {found.parameters:,} parameters; training takes {gigabytes(low)} to {gigabytes(high)} on a GPU "
        f"({_ALL_LINES} tells the parts, other machines and the time)"
    )


def recipe_lines(estimates: Sequence[Estimate]) -> tuple[str, ...]:
    """The lines that a shipped recipe opens with; the memory is that of the first machine."""
    first = estimates[0]
    low, high = first.training_range
    times = "; ".join(f"{found.hardware.title} {duration_text(found.seconds)}" for found in estimates)
    rows = f"{ROWS_ASSUMED:,} rows of" if first.rows.count is None else f"its {first.rows.count:,} rows of"
    return (
        f"# Estimate: {first.parameters / 1e6:,.0f} million parameters; training takes {gigabytes(low)} to "
        f"{gigabytes(high)} of a GPU's memory, all of it {gigabytes(first.disk_bytes)} of disk;",
        f"#           training on {rows} {first.rows.padded_tokens:.0f} tokens, {_passes(first)}:",
        f"#           {times}",
    )


def duration_text(seconds: Range) -> str:
    """A range of time, in the unit of its higher end."""
    for size, unit in ((_HOUR, "h"), (_MINUTE, "min")):
        if seconds.high >= 2 * size:
            return f"{_figure(seconds.low / size)} to {_figure(seconds.high / size)} {unit}"
    return f"{_figure(seconds.low)} to {_figure(seconds.high)} s"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 3 else f"{value:.1f}"


def _rows(found: Estimate) -> str:
    rows = found.rows
    known = "not here" if rows.count is None else f"{rows.count:,} to train on"
    return (
        f"{known}; {rows.padded_tokens:.0f} tokens each with padding, the longest {rows.longest_tokens} ({rows.basis})"
    )


def _passes(found: Estimate) -> str:
    """How long is trained: so many times over the rows, or so many steps."""
    size = found.footprint
    if size.steps is not None:
        return f"in {size.steps:,} steps of {size.rows_per_step}"
    return "once" if size.epochs == 1 else f"{size.epochs:g} times"


def _per_rows(found: Estimate) -> str:
    return f" for each {ROWS_ASSUMED:,} rows" if found.rows.count is None else ""


def _fit(found: Estimate) -> str:
    has = gigabytes(found.hardware.memory_bytes)
    error = f"±{ERROR_SHARE[found.hardware.kind]:.0%}"
    return {True: f"fits {has}", False: f"more than {has}", None: f"may not fit {has} ({error})"}[found.fits]
