"""Sets that are measured beside the held-out rows: general rows that show what was forgotten, or an earlier turn.

Each has items and checks of its own and is measured on every subject like the held-out rows (`export.measure`). What is
told of it is its task scores and its perplexity, under names that say whose they are (`export.check_names`). Which sets
there are, and what each may cost, is the caller's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from export.check_names import of_companion
from export.checks import Check, Items, Measurement
from export.compare import NONE_LOST, Comparison
from export.measure import Candidate, measure

T = TypeVar("T", Measurement, Comparison)
Compare = Callable[[Mapping[str, Sequence[Measurement]]], tuple[Comparison, ...]]


class CompanionSet(NamedTuple):
    """A set's name (a word or two), its rows, what is measured on them, and how its subjects are compared."""

    name: str
    items: Items
    checks: tuple[Check, ...]
    compare: Compare


class CompanionNumbers(NamedTuple):
    """What was measured on one set or several, under names that say on which; and why a file could not be run."""

    measurements: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    broken: Mapping[str, str] = {}


def measure_companions(
    sets: Sequence[CompanionSet],
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    tokenizer: Path,
    threads: int,
    say: Callable[[str], None],
) -> CompanionNumbers:
    """Measures every set on every candidate, the first of which is the reference. Raises what `measure` raises."""
    found = CompanionNumbers()
    for companion in sets:
        say(f"{companion.name}: measuring {len(companion.items.items):,} rows beside the held-out ones")
        place = folder / f"beside-{companion.name.replace(' ', '-')}"
        measured = measure(
            candidates, companion.items, companion.checks, place, tokenizer=tokenizer, threads=threads, say=say
        )
        told = {name: [m for m in ms if _is_told(m)] for name, ms in measured.measurements.items()}
        found = CompanionNumbers(
            (*found.measurements, *(_renamed(m, companion.name) for ms in told.values() for m in ms)),
            (*found.comparisons, *(_renamed(c, companion.name) for c in companion.compare(told))),
            {**measured.broken, **found.broken},
        )
    return found


def _is_told(measured: Measurement) -> bool:
    """Whether it is a number of what the model can do: stops, loops and cost are those of the held-out rows."""
    scores = measured.unit == "share" and measured.check not in NONE_LOST | {"same_top_token"}
    return bool(measured.sample) and (measured.check == "perplexity" or (scores and measured.judged))


def _renamed(one: T, companion: str) -> T:
    return one.model_copy(update={"check": of_companion(companion, one.check)})
