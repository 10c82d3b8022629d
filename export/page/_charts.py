"""The page's charts: quality against size, the spread of divergences, the loss curve, a change within its limit.

Each can be read without colour: subjects are named beside their marker, lines differ in their dashes, and what lies
beyond a limit is hatched. Each stands beside a table of the same numbers.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from export.drawing.svg import Drawing, Marker, Scale, decade_ticks, linear_ticks, named, named_decades
from export.page.details import LossPoint
from export.wording.sentences import Strip
from export.wording.values import plain

_WIDTH = 520.0
_LEFT = 58.0
_RIGHT = 14.0
_TOP = 34.0
_BOTTOM = 48.0
_CHARACTER = 7.4  # a label's width per character, for placing it; fonts differ
_SMALLEST_LOSS = 1e-6
_SMALLEST_DIVERGENCE = 1e-12  # of float32 arithmetic itself; what is less is drawn here
_MOST_LOSS_POINTS = 300
# Divergences are counted per quarter of a power of ten; what is less than the first bin's start is counted in it.
_BINS_PER_DECADE = 4
_SMALLEST_DECADE, _LARGEST_DECADE = -10, 2
_STRIP_WIDTH, _STRIP_HEIGHT = 150.0, 20.0
_STRIP_FROM, _STRIP_TO = -0.5, 1.5


class Point(NamedTuple):
    """A subject in a scatter chart; `limit` is the value it may reach at most, where there is one."""

    name: str
    marker: Marker
    is_reference: bool
    size_megabytes: float
    value: float
    low: float
    high: float
    limit: float | None = None


class Spread(NamedTuple):
    """A file's divergences, token by token, and what its limits say; a limit is None where there is none."""

    name: str
    values: Sequence[float]
    mean: float
    percentile_99: float
    limit_mean: float | None
    limit_99: float | None


def scores_against_size(identity: str, points: Sequence[Point], name: str) -> Drawing:
    """A share per subject, with its interval, over its size. The y axis is as long as the intervals, no longer."""
    low, high = min(p.low for p in points), max(p.high for p in points)
    room = max((high - low) * 0.12, 0.004)
    y = Scale(max(0.0, low - room), min(1.0, high + room), _height() - _BOTTOM, _TOP)
    ticks = named(linear_ticks(y.low, y.high, 6), lambda value: f"{value * 100:g}")
    description = "; ".join(f"{p.name}: {p.value:.1%} at {p.size_megabytes:,.1f} MB" for p in points)
    return _scatter(identity, points, y, ticks, (f"{name}, %", f"{name} against size", description))


def divergence_against_size(identity: str, points: Sequence[Point], name: str) -> Drawing:
    """A divergence per subject on a logarithmic scale, with its interval and its limit, over its size."""
    values = [v for p in points for v in (p.low, p.value, p.high, p.limit or 0.0) if v > 0]
    low = 10.0 ** math.floor(math.log10(max(min(values), _SMALLEST_DIVERGENCE)))
    high = 10.0 ** math.ceil(math.log10(max(values)))
    y = Scale(low, high if high > low else low * 10, _height() - _BOTTOM, _TOP, logarithmic=True)
    ticks = named_decades(decade_ticks(y.low, y.high, 8))
    description = "; ".join(f"{p.name}: {plain(p.value)} nats at {p.size_megabytes:,.1f} MB" for p in points)
    return _scatter(identity, points, y, ticks, (f"{name}, nats per token", f"{name} against size", description))


def _height() -> float:
    return 330.0


def _scatter(
    identity: str,
    points: Sequence[Point],
    y: Scale,
    ticks: Sequence[tuple[float, str]],
    words: tuple[str, str, str],
) -> Drawing:
    axis_name, title, description = words
    drawing = Drawing(identity, _WIDTH, _height(), title=title, description=description)
    largest = max(p.size_megabytes for p in points) * 1.06
    x = Scale(0, largest, _LEFT, _WIDTH - _RIGHT)
    drawing.left_axis(y, _LEFT, _WIDTH - _RIGHT, ticks, axis_name)
    sizes = named(linear_ticks(0, largest, 7), lambda value: f"{value:,g}")
    drawing.bottom_axis(x, _height() - _BOTTOM, sizes, "size, MB")
    taken: list[_Box] = []
    # the reference last, so that no file hides it
    for p in sorted(points, key=lambda point: point.is_reference):
        left, level = x.at(p.size_megabytes), y.at(p.value)
        drawing.line(left, y.at(p.low), left, y.at(p.high), "interval")
        for end in (p.low, p.high):
            drawing.line(left - 4, y.at(end), left + 4, y.at(end), "interval")
        if p.limit is not None:
            drawing.line(left - 14, y.at(p.limit), left + 14, y.at(p.limit), "limit")
        drawing.marker(left, level, p.marker, "point-reference" if p.is_reference else "point")
        taken += [_Box(left - 9, level - 9, left + 9, level + 9), _Box(left - 4, y.at(p.high), left + 4, y.at(p.low))]
    for p in points:
        _place_label(drawing, x.at(p.size_megabytes), y.at(p.value), p.name, taken)
    return drawing


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def hits(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _place_label(drawing: Drawing, x: float, y: float, name: str, taken: list[_Box]) -> None:
    """Writes a name beside its point, at the first of several places that is free and inside the drawing."""
    width = len(name) * _CHARACTER
    shifts = (0.0, -15.0, 15.0, -29.0, 29.0, -43.0, 43.0, -57.0, 57.0, -71.0, 71.0)
    boxes = [
        _Box(left, y + shift - 8, left + width, y + shift + 5) for shift in shifts for left in (x + 12, x - 12 - width)
    ]

    def cost(box: _Box) -> tuple[bool, int]:
        outside = (
            box.left < _LEFT
            or box.right > drawing.width
            or box.top < _TOP - 10
            or box.bottom > drawing.height - _BOTTOM
        )
        return outside, sum(box.hits(other) for other in taken)

    best = min(boxes, key=cost)
    taken.append(best)
    is_right, base = best.left > x, best.bottom - 1
    if abs(base - 4 - y) > 10:  # far enough from its point to need a leader
        drawing.line(x, y, best.left - 2 if is_right else best.right + 2, base - 4, "leader")
    drawing.text(
        best.left if is_right else best.right, base, name, anchor="start" if is_right else "end", style="point-name"
    )


def divergence_histogram(identity: str, spread: Spread, decades: tuple[int, int], highest: float) -> Drawing:
    """How many of a file's tokens diverged by how much, on a logarithmic scale, with its mean, 99 % and limits.

    `decades` are the exponents the x axis runs between and `highest` is the largest share of any bin, so that the
    histograms of several files can be compared.
    """
    finite = [value for value in spread.values if math.isfinite(value)]
    bins = bin_shares(finite, decades)
    description = (
        f"{len(finite):,} tokens; half of them below {plain(_median(finite))} nats; mean {plain(spread.mean)}, "
        f"99 % below {plain(spread.percentile_99)}."
    )
    title = f"{spread.name}: KL divergence per token"
    height = 156.0
    drawing = Drawing(identity, _WIDTH, height, title=title, description=description)
    bottom, top = height - 30.0, 38.0
    x = Scale(10.0 ** decades[0], 10.0 ** decades[1], 22.0, _WIDTH - 76.0, logarithmic=True)
    width = (x.end - x.start) / len(bins)
    for index, share in enumerate(bins):
        bar = (bottom - top) * share / highest if highest else 0.0
        if share:
            drawing.rectangle(x.start + index * width + 0.5, bottom - bar, width - 1, bar, "bar")
    exponents = decade_ticks(x.low, x.high, 9)
    drawing.line(x.start, bottom, x.end, bottom, "axis")
    for value, label in named_decades(exponents):
        drawing.line(x.at(value), bottom, x.at(value), bottom + 4, "axis")
        drawing.text(x.at(value), bottom + 17, label, anchor="middle", style="tick")
    _mark(drawing, x, (spread.mean, "mean", "end"), bottom, top, "value-line")
    _mark(drawing, x, (spread.percentile_99, "99 %", "start"), bottom, top, "value-line")
    for limit, label, anchor in ((spread.limit_mean, "limit of mean", "end"), (spread.limit_99, "of 99 %", "start")):
        if limit is not None and x.low < limit <= x.high:
            _mark(drawing, x, (limit, label, anchor), bottom, top - 15, "limit")
    return drawing


def _mark(drawing: Drawing, x: Scale, marked: tuple[float, str, str], bottom: float, top: float, style: str) -> None:
    """A line up from the axis with its name at the top; nothing for a value that is not finite or not positive."""
    value, label, anchor = marked
    if not math.isfinite(value) or value <= 0:
        return
    at = x.at(value)
    drawing.line(at, bottom, at, top - 14, style)
    drawing.text(at + (-4 if anchor == "end" else 4), top - 6, label, anchor=anchor, style="tick")


def bin_shares(values: Sequence[float], decades: tuple[int, int]) -> list[float]:
    """The share of values in each bin between two powers of ten; what lies outside is counted in the nearest bin."""
    count = (decades[1] - decades[0]) * _BINS_PER_DECADE
    indexes = Counter(
        0 if value <= 0 else math.floor((math.log10(value) - decades[0]) * _BINS_PER_DECADE) for value in values
    )
    shares = [0.0] * count
    for index, number in indexes.items():
        shares[min(max(index, 0), count - 1)] += number / len(values)
    return shares


def decades_of(values: Sequence[float]) -> tuple[int, int]:
    """The exponents of ten that hold all positive finite values, within what is worth showing."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not positive:
        return -6, 0
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    low = min(max(low, _SMALLEST_DECADE), _LARGEST_DECADE - 1)
    return low, max(low + 1, min(high, _LARGEST_DECADE))


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else math.nan


def loss_curve(identity: str, points: Sequence[LossPoint]) -> Drawing:
    """Training and validation loss over steps, on a logarithmic scale: validation dashed, with its points marked."""
    train = [(p.step, p.loss) for p in points if p.loss is not None and math.isfinite(p.loss)]
    valid = [(p.step, p.valid_loss) for p in points if p.valid_loss is not None and math.isfinite(p.valid_loss)]
    both = [(step, max(loss, _SMALLEST_LOSS)) for step, loss in (*train, *valid)]
    losses = [loss for _, loss in both]
    description = "; ".join(
        f"{name} loss from {plain(series[0][1])} to {plain(series[-1][1])}"
        for name, series in (("training", train), ("validation", valid))
        if series
    )
    drawing = Drawing(identity, _WIDTH, _height(), title="Loss against training steps", description=description)
    y = Scale(min(losses) * 0.8, max(losses) * 1.25, _height() - _BOTTOM, _TOP, logarithmic=True)
    x = Scale(0, max(step for step, _ in both), _LEFT, _WIDTH - 96)
    drawing.left_axis(y, _LEFT, x.end, _loss_ticks(y.low, y.high), "loss, nats per token")
    steps = named(linear_ticks(0, x.high, 6), lambda value: f"{value:,g}")
    drawing.bottom_axis(x, _height() - _BOTTOM, steps, "training step")
    every = max(1, math.ceil(len(train) / _MOST_LOSS_POINTS))
    kept = [point for index, point in enumerate(train) if index % every == 0 or index == len(train) - 1]
    ends: list[float] = []
    for series, name, style in ((kept, "training", "train-line"), (valid, "validation", "valid-line")):
        placed = [(x.at(step), y.at(max(loss, _SMALLEST_LOSS))) for step, loss in series]
        if not placed:
            continue
        drawing.polyline(placed, style)
        if name == "validation":
            for left, level in placed:
                drawing.marker(left, level, "diamond", "point-reference")
        level = placed[-1][1] + 4
        level += 14 if any(abs(level - other) < 14 and level >= other for other in ends) else 0
        level -= 14 if any(abs(level - other) < 14 for other in ends) else 0
        ends.append(level)
        drawing.text(x.end + 10, level, name, style="point-name")
    return drawing


def _loss_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten, and 2 and 5 times them where there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    return [(value, f"{value:g}") for value in values if low <= value <= high]


def limit_strip(identity: str, strip: Strip, name: str) -> Drawing:
    """A change and its interval on a strip whose hatched end begins at the bound; beyond its ends it has an arrow."""
    description = (
        f"The change uses {strip.change / strip.limit if strip.limit else 0:.0%} of its limit; its interval reaches "
        f"{strip.unfavourable:.0%} of the bound."
    )
    drawing = Drawing(identity, _STRIP_WIDTH, _STRIP_HEIGHT, title=name, description=description)
    x = Scale(_STRIP_FROM, _STRIP_TO, 2, _STRIP_WIDTH - 2)
    middle = _STRIP_HEIGHT / 2
    drawing.rectangle(x.start, 3, x.end - x.start, _STRIP_HEIGHT - 6, "strip")
    drawing.rectangle(x.at(1), 3, x.end - x.at(1), _STRIP_HEIGHT - 6, "strip-beyond")
    for position in range(int(x.at(1)) + 3, int(x.end), 5):
        drawing.line(position, _STRIP_HEIGHT - 3, min(position + 5, x.end), 3, "hatch")
    drawing.line(x.at(0), 1, x.at(0), _STRIP_HEIGHT - 1, "strip-zero")
    drawing.line(x.at(1), 1, x.at(1), _STRIP_HEIGHT - 1, "strip-bound")
    if strip.limit < 1:
        drawing.line(x.at(strip.limit), 3, x.at(strip.limit), _STRIP_HEIGHT - 3, "limit")
    drawing.line(x.at(strip.favourable), middle, x.at(strip.unfavourable), middle, "interval")
    if strip.unfavourable > _STRIP_TO:
        drawing.polyline([(x.end - 9, 3), (x.end - 1, middle), (x.end - 9, _STRIP_HEIGHT - 3)], "arrow")
    if strip.favourable < _STRIP_FROM:
        drawing.polyline([(x.start + 9, 3), (x.start + 1, middle), (x.start + 9, _STRIP_HEIGHT - 3)], "arrow")
    if _STRIP_FROM <= strip.change <= _STRIP_TO:
        drawing.marker(x.at(strip.change), middle, "circle", "strip-point")
    return drawing
