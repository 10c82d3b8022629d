"""What `fieldtune fit` found as a page: memory and speed of each file drawn, and all of it in tables.

What it shows was worked out before (`export.device.budget`), and is said in words by `finetune.fit_wording`.
"""

from collections.abc import Sequence
from pathlib import Path

from export import drawing
from export.artifacts import write_atomically
from export.device.budget import Candidate, Fit
from export.device.memory import MEMORY_ERROR_SHARE
from export.drawing.svg import Drawing, Scale, linear_ticks, named
from finetune.fit_wording import best_of_each, ending, figure, megabytes, notes, verdict_text
from finetune.fitting import Fitted

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 640.0, 140.0, 24.0, 30.0, 46.0
_ROW, _BAR, _CAP = 26.0, 14.0, 4.0
# Usable memory may be many times what is needed: the axis then ends where the drawing still tells files apart.
_WIDEST = 3.0


def write_fit_page(found: Fitted, path: Path) -> None:
    """Writes one file that needs no network."""
    write_atomically(path, render(found))


def render(found: Fitted) -> str:
    """The page as HTML."""
    fit = found.fit
    return drawing.template(Path(__file__).parent / "fit_page.html.jinja").render(
        title=f"{Path(found.model).name} on {found.device.title}",
        style=drawing.style(),
        device=found.device,
        limits=fit.limits,
        usable=megabytes(fit.usable_bytes),
        ending=ending(found),
        notes=notes(found),
        memory=memory_chart(fit),
        speed=speed_chart(fit),
        rows=[_row(candidate, found) for candidate in fit.candidates],
    )


def _row(candidate: Candidate, found: Fitted) -> tuple[str, ...]:
    speed, memory = candidate.speed, candidate.memory
    return (
        candidate.file_type,
        candidate.cache_type,
        ("" if found.is_exact else "≈") + megabytes(candidate.size_bytes),
        f"{candidate.bits_per_weight:.2f}",
        megabytes(memory.cache_bytes),
        f"{megabytes(memory.needed_bytes)} ±{MEMORY_ERROR_SHARE:.0%}",
        megabytes(memory.peak_bytes),
        f"{figure(speed.tokens_per_second)} ±{speed.tokens_error_share:.0%}",
        f"{figure(speed.first_token_seconds)} ±{speed.first_token_error_share:.0%}",
        verdict_text(candidate),
    )


def memory_chart(fit: Fit) -> Drawing:
    """A bar for each file type with the cache that suits it best, its error, and a line where usable memory ends."""
    best = best_of_each(fit)
    most = max(candidate.memory.peak_bytes for candidate in best) * (1 + MEMORY_ERROR_SHARE)
    is_beyond = fit.usable_bytes > _WIDEST * most
    x = Scale(0.0, (most if is_beyond else max(most, fit.usable_bytes * 1.03)) / 1e6, _LEFT, _WIDTH - _RIGHT)
    description = "; ".join(f"{_label(c)}: {megabytes(c.memory.needed_bytes)} MB" for c in best)
    drawn, bottom = _frame("memory", best, "memory needed by file type", description)
    for y, candidate in _rows(best):
        needed, peak = candidate.memory.needed_bytes / 1e6, candidate.memory.peak_bytes / 1e6
        drawn.rectangle(x.at(needed), y, x.at(peak) - x.at(needed), _BAR, "bar-dropped")
        drawn.rectangle(x.start, y, x.at(needed) - x.start, _BAR, "bar")
        _whisker(drawn, x, y + _BAR / 2, needed, MEMORY_ERROR_SHARE)
    name = "MB needed (pale: pages that can be dropped)"
    if is_beyond:
        drawn.text(_WIDTH - _RIGHT, _TOP - 12, f"usable: {megabytes(fit.usable_bytes)} MB, far beyond", anchor="end")
    else:
        _limit(drawn, x, bottom, fit.usable_bytes / 1e6, f"usable: {megabytes(fit.usable_bytes)} MB")
    drawn.bottom_axis(x, bottom, named(linear_ticks(x.low, x.high, 6), lambda v: f"{v:,.6g}"), name)
    return drawn


def speed_chart(fit: Fit) -> Drawing:
    """A point for each file type with the cache that suits it best, its error, and a line at the speed asked for."""
    best, wanted = best_of_each(fit), fit.limits.min_tokens_per_second
    most = max(c.speed.tokens_per_second * (1 + c.speed.tokens_error_share) for c in best)
    x = Scale(0.0, max(most, 1.05 * (wanted or 0.0)), _LEFT, _WIDTH - _RIGHT)
    description = "; ".join(f"{_label(c)}: {figure(c.speed.tokens_per_second)}" for c in best)
    drawn, bottom = _frame("speed", best, "tokens per second by file type", description)
    for y, candidate in _rows(best):
        _whisker(drawn, x, y + _BAR / 2, candidate.speed.tokens_per_second, candidate.speed.tokens_error_share)
        drawn.marker(x.at(candidate.speed.tokens_per_second), y + _BAR / 2, "circle", "point")
    if wanted is not None:
        _limit(drawn, x, bottom, wanted, f"asked for: {wanted:g}")
    ticks = named(linear_ticks(x.low, x.high, 6), lambda v: f"{v:,.6g}")
    drawn.bottom_axis(x, bottom, ticks, f"tokens per second with {fit.limits.context_tokens:,} tokens in the cache")
    return drawn


def _frame(identity: str, best: Sequence[Candidate], title: str, description: str) -> tuple[Drawing, float]:
    """A drawing with a named row for each candidate, and where its bottom axis lies."""
    bottom = _TOP + len(best) * _ROW
    drawn = Drawing(identity, _WIDTH, bottom + _BOTTOM, title=title, description=description)
    for y, candidate in _rows(best):
        drawn.text(_LEFT - 8, y + _BAR - 2, _label(candidate), anchor="end")
    return drawn, bottom


def _rows(best: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
    """Each candidate with the top of its bar."""
    return [(_TOP + index * _ROW + (_ROW - _BAR) / 2, candidate) for index, candidate in enumerate(best)]


def _label(candidate: Candidate) -> str:
    return (
        candidate.file_type
        if candidate.cache_type == "f16"
        else f"{candidate.file_type} ({candidate.cache_type} cache)"
    )


def _whisker(drawn: Drawing, x: Scale, y: float, value: float, error_share: float) -> None:
    low, high = x.at(value * (1 - error_share)), x.at(value * (1 + error_share))
    drawn.line(low, y, high, y, "value-line")
    for end in (low, high):
        drawn.line(end, y - _CAP, end, y + _CAP, "value-line")


def _limit(drawn: Drawing, x: Scale, bottom: float, value: float, name: str) -> None:
    drawn.line(x.at(value), _TOP - 6, x.at(value), bottom, "line valid-line")
    anchor = "end" if x.at(value) > (x.start + x.end) / 2 else "start"
    drawn.text(x.at(value), _TOP - 12, name, anchor=anchor)
