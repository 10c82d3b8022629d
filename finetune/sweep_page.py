"""The learning curve as a page, and as lines for a terminal. What it shows was worked out before (`finetune.sweep`)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from export import drawing
from export.artifacts import write_atomically
from export.checks import Measurement
from export.drawing.svg import Drawing, Scale, linear_ticks, named
from export.wording.values import check_name, plain, unit_of, value_text
from finetune.learning_curve import CurvePoint, CurveStep

if TYPE_CHECKING:
    from finetune.sweep import SweepReport

_WIDTH, _HEIGHT = 520.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 20.0, 34.0, 48.0
_CAP = 5.0


class _Curve(NamedTuple):
    """One check of the page: its name, its chart, and the rows of its two tables."""

    check: str
    name: str
    chart: Drawing
    base: str
    points: list[tuple[str, ...]]
    steps: list[tuple[str, ...]]


def write_sweep_page(report: "SweepReport", folder: Path) -> None:
    """Writes report.html into `folder`: one file that needs no network."""
    write_atomically(folder / "report.html", render(report))


def render(report: "SweepReport") -> str:
    """The page as HTML."""
    curves = [_curve(report, check) for check in dict.fromkeys(point.check for point in report.points)]
    return drawing.template(Path(__file__).parent / "sweep_page.html.jinja").render(
        title=f"{report.name}: what more rows are worth",
        style=drawing.style(),
        report=report,
        curves=curves,
        sentences=sentences(report),
        seeds=len(report.points[0].per_seed),
        n_rows=report.points[0].n_rows,
    )


def sentences(report: "SweepReport") -> list[str]:
    """What each check says of the last step, a line each: whether more rows still helped."""
    return [_sentence(step, _unit(report, step.check)) for step in report.steps if _is_last(report, step)]


def _is_last(report: "SweepReport", step: CurveStep) -> bool:
    return step.to_tokens == max(other.to_tokens for other in report.steps)


def _sentence(step: CurveStep, unit: str) -> str:
    said = {
        "better": "more rows still helped",
        "worse": "more rows made it worse",
        "cannot tell": "whether more rows helped cannot be told apart from chance",
    }[step.worth]
    what = f"{check_name(step.check)}, from {step.from_tokens:,} to {step.to_tokens:,} tokens"
    return f"{what}: {said} ({_change(step, unit)})"


def _change(step: CurveStep, unit: str) -> str:
    """A change with its 90 % interval."""
    factor, shown = unit_of(unit).factor, "points" if unit == "share" else unit_of(unit).shown
    interval = "no interval"
    if step.low is not None and step.high is not None:
        interval = f"90 % interval {step.low * factor:+.3g} to {step.high * factor:+.3g}"
    return f"{step.change * factor:+.3g} {shown}, {interval}".replace(" ,", ",")


def _unit(report: "SweepReport", check: str) -> str:
    return next(point.unit for point in report.points if point.check == check)


def _curve(report: "SweepReport", check: str) -> _Curve:
    points = [point for point in report.points if point.check == check]
    base = next((m for m in report.base if m.check == check), None)
    unit = points[0].unit
    return _Curve(
        check=check,
        name=check_name(check),
        chart=chart(f"curve-{check}", points, base, check_name(check)),
        base=value_text(base),
        points=[_point_row(point) for point in points],
        steps=[
            (f"{step.from_tokens:,} to {step.to_tokens:,}", _change(step, unit), step.worth)
            for step in report.steps
            if step.check == check
        ],
    )


def _point_row(point: CurvePoint) -> tuple[str, ...]:
    factor = unit_of(point.unit).factor
    interval = "–"
    if point.low is not None and point.high is not None:
        interval = f"{plain(point.low * factor)} to {plain(point.high * factor)}"
    seeds = ", ".join(plain(value * factor) for value in point.per_seed)
    shown = (f"{point.budget_tokens:,}", f"{point.tokens:,.0f}", f"{point.rows:,.0f}")
    return (*shown, plain(point.value * factor), interval, seeds)


def chart(identity: str, points: Sequence[CurvePoint], base: Measurement | None, name: str) -> Drawing:
    """A check over the tokens trained on, each point with its interval; a dashed line where the base stands.

    The x axis is logarithmic: each doubling is as wide as the last. The base is drawn where it does not flatten the
    curve: within three times the height of the points.
    """
    factor = unit_of(points[0].unit).factor
    ends = [end * factor for point in points for end in (point.low, point.high, point.value) if end is not None]
    low, high = min(ends), max(ends)
    room = max((high - low) * 0.1, abs(high) * 0.01, 1e-9)
    level = None if base is None or not math.isfinite(base.value) else base.value * factor
    if level is not None and low - 3 * (high - low) <= level <= high + 3 * (high - low):
        low, high = min(low, level), max(high, level)
    else:
        level = None
    description = "; ".join(f"{p.budget_tokens:,} tokens: {plain(p.value * factor)}" for p in points)
    drawn = Drawing(identity, _WIDTH, _HEIGHT, title=f"{name} over training tokens", description=description)
    bottom = _HEIGHT - _BOTTOM
    x = _tokens_scale([point.tokens for point in points])
    y = Scale(low - room, high + room, bottom, _TOP)
    drawn.left_axis(y, _LEFT, _WIDTH - _RIGHT, named(linear_ticks(y.low, y.high, 5), lambda v: f"{v:,.6g}"), name)
    drawn.line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "axis")
    drawn.bottom_axis(x, bottom, [(p.tokens, _short(p.tokens)) for p in points], "tokens of training rows")
    if level is not None:
        drawn.line(_LEFT, y.at(level), _WIDTH - _RIGHT, y.at(level), "line valid-line")
        drawn.text(_WIDTH - _RIGHT, y.at(level) - 4, "base", anchor="end", style="tick")
    drawn.polyline([(x.at(p.tokens), y.at(p.value * factor)) for p in points], "line train-line")
    for point in points:
        _whisker(drawn, x.at(point.tokens), y, point, factor)
        drawn.marker(x.at(point.tokens), y.at(point.value * factor), "circle", "point")
    return drawn


def _tokens_scale(tokens: Sequence[float]) -> Scale:
    low, high = min(tokens), max(tokens)
    if low == high:
        low, high = low / 2, high * 2
    return Scale(low, high, _LEFT + 24, _WIDTH - _RIGHT - 24, logarithmic=True)


def _whisker(drawn: Drawing, x: float, y: Scale, point: CurvePoint, factor: float) -> None:
    if point.low is None or point.high is None:
        return
    low, high = y.at(point.low * factor), y.at(point.high * factor)
    drawn.line(x, low, x, high, "axis")
    for end in (low, high):
        drawn.line(x - _CAP, end, x + _CAP, end, "axis")


def _short(tokens: float) -> str:
    """A number of tokens as an axis has room for it: 950, 25k, 1.2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g}{letter}"
    return f"{tokens:.0f}"
