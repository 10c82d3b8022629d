"""The report's charts: what became of the rows, and how many values lie in which range.

Both can be read without colour: every bar has its name and its number, and what was dropped is an outline.
"""

from collections.abc import Sequence
from typing import NamedTuple

from export.drawing.svg import Drawing, Scale, linear_ticks, named
from finetune.data.account import Histogram

_WIDTH = 520.0
_FLOW_WIDTH, _FLOW_LEFT, _FLOW_RIGHT, _FLOW_ROW = 420.0, 166.0, 346.0, 24.0
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 52.0, 14.0, 34.0, 48.0, 220.0
# More bars than these have no room for their counts above them; narrower ones none for a label each.
_MOST_COUNTED = 12
_LABEL_WIDTH = 44.0
_THINNEST = 1.5


class Part(NamedTuple):
    """A part of the rows: its name, where in the rows it begins, how many it holds, and whether it was used."""

    name: str
    begin: int
    rows: int
    is_kept: bool


def flow(identity: str, parts: Sequence[Part], read: int) -> Drawing:
    """Bars below one another, each where its rows stand among all that were read: filled for kept, else outlined."""
    description = "; ".join(f"{part.name}: {part.rows:,} rows" for part in parts)
    height = len(parts) * _FLOW_ROW + 8
    drawing = Drawing(identity, _FLOW_WIDTH, height, title="What became of the rows", description=description)
    x = Scale(0, max(read, 1), _FLOW_LEFT, _FLOW_RIGHT)
    for index, part in enumerate(parts):
        top = 6 + index * _FLOW_ROW
        begin = x.at(part.begin)
        width = max(_THINNEST if part.rows else 0.0, x.at(part.begin + part.rows) - begin)
        begin = min(begin, _FLOW_RIGHT - width)
        drawing.text(_FLOW_LEFT - 10, top + 13, part.name, anchor="end")
        drawing.line(_FLOW_LEFT, top + 18, _FLOW_RIGHT, top + 18, "grid")
        drawing.rectangle(begin, top + 2, width, 14, "bar" if part.is_kept else "bar-dropped")
        drawing.text(_FLOW_RIGHT + 10, top + 13, f"{part.rows:,}")
    return drawing


class Bin(NamedTuple):
    """A range of values: from `low` to below `high`, which is None where it has no end; and how many lie in it."""

    low: int
    high: int | None
    rows: int


def bins(histogram: Histogram) -> tuple[Bin, ...]:
    """The ranges from the first that is not empty to the last."""
    highs = (*histogram.edges[1:], None)[: len(histogram.edges)]
    found = [Bin(*each) for each in zip(histogram.edges, highs, histogram.counts, strict=True)]
    filled = [index for index, each in enumerate(found) if each.rows]
    return tuple(found[filled[0] : filled[-1] + 1]) if filled else ()


def range_text(each: Bin) -> str:
    """A range in words."""
    if each.high is None:
        return f"{each.low:,} and more"
    return f"{each.low:,}" if each.high == each.low + 1 else f"{each.low:,} to {each.high - 1:,}"


def histogram_chart(identity: str, shown: Sequence[Bin], *, title: str, axis: str) -> Drawing:
    """Rows (height) per range, all bars equally wide. Single values are named below their bar, ranges at its borders.

    `shown` must not be empty.
    """
    description = "; ".join(f"{range_text(each)}: {each.rows:,} rows" for each in shown)
    drawing = Drawing(identity, _WIDTH, _HEIGHT, title=title, description=description)
    bottom = _HEIGHT - _BOTTOM
    y = Scale(0, max(each.rows for each in shown) * 1.08, bottom, _TOP)
    ticks = [tick for tick in linear_ticks(0, y.high, 4) if tick == int(tick)]
    drawing.left_axis(y, _LEFT, _WIDTH - _RIGHT, named(ticks, lambda value: f"{value:,g}"), "rows")
    width = (_WIDTH - _RIGHT - _LEFT) / len(shown)
    for index, each in enumerate(shown):
        if each.rows:
            height = max(_THINNEST, bottom - y.at(each.rows))
            drawing.rectangle(_LEFT + index * width + 1, bottom - height, width - 2, height, "bar")
        if len(shown) <= _MOST_COUNTED and each.rows:
            middle = _LEFT + (index + 0.5) * width
            drawing.text(middle, y.at(each.rows) - 4, f"{each.rows:,}", anchor="middle", style="tick")
    drawing.line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "axis")
    _name_bars(drawing, shown, width, bottom)
    drawing.text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, axis, anchor="middle", style="axis-name")
    return drawing


def _name_bars(drawing: Drawing, shown: Sequence[Bin], width: float, bottom: float) -> None:
    """Labels below the bars, as many as have room."""
    every = max(1, -(-int(_LABEL_WIDTH) // max(1, int(width))))
    if all(each.high in (None, each.low + 1) for each in shown):
        for index in range(0, len(shown), every):
            each = shown[index]
            text = f"{each.low:,}+" if each.high is None else f"{each.low:,}"
            drawing.text(_LEFT + (index + 0.5) * width, bottom + 17, text, anchor="middle", style="tick")
        return
    ends = [each.low for each in shown] + [shown[-1].high]
    for index in range(0, len(ends), every):
        at, end = _LEFT + index * width, ends[index]
        drawing.line(at, bottom, at, bottom + 4, "axis")
        # the last range may have no end
        anchor = "end" if end is None else "middle"
        drawing.text(at, bottom + 17, "more" if end is None else f"{end:,}", anchor=anchor, style="tick")
