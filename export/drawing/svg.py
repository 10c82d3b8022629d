"""Drawing inline SVG: scales, axes and shapes, coloured by the page's CSS classes. What is drawn is not known here.

Text is escaped by the XML library, and a drawing always has a title and a description for those who cannot see it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple
from xml.etree import ElementTree

from export.wording.values import power_of_ten

Marker = Literal["diamond", "circle", "square", "triangle"]
# Half the width of a marker, in the drawing's units.
_MARKER = 5.0


class Scale(NamedTuple):
    """Values to positions: the domain's ends, where they lie, and whether equal factors are equally far apart."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value lies; one outside the domain lies at its end."""
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values between two ends, at most so many: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def decade_ticks(low: float, high: float, most: int) -> list[int]:
    """Exponents of ten between two positive ends, at most so many."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    return list(range(first, last + 1, every))


class Drawing:
    """An SVG that grows: every method adds one thing to it. Positions are in its own units, y downwards."""

    def __init__(self, identity: str, width: float, height: float, *, title: str, description: str) -> None:
        """`identity` must be the page's only one of its kind: the title and description are named by it."""
        self.width = width
        self.height = height
        self._root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {width:g} {height:g}",
                "role": "img",
                "aria-labelledby": f"{identity}-title {identity}-description",
            },
        )
        ElementTree.SubElement(self._root, "title", {"id": f"{identity}-title"}).text = title
        ElementTree.SubElement(self._root, "desc", {"id": f"{identity}-description"}).text = description

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", style: str = "label") -> None:
        """A line of text whose anchor (start, middle or end) lies at x."""
        self._add("text", {"x": _n(x), "y": _n(y), "text-anchor": anchor, "class": style}).text = text

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A straight line."""
        self._add("line", {"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2), "class": style})

    def rectangle(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """A filled rectangle."""
        self._add("rect", {"x": _n(x), "y": _n(y), "width": _n(width), "height": _n(height), "class": style})

    def polyline(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Straight lines from point to point."""
        self._add("polyline", {"points": " ".join(f"{_n(x)},{_n(y)}" for x, y in points), "class": style})

    def marker(self, x: float, y: float, shape: Marker, style: str) -> None:
        """A small shape centred on a point."""
        if shape == "circle":
            self._add("circle", {"cx": _n(x), "cy": _n(y), "r": _n(_MARKER), "class": style})
            return
        corners = {
            "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
            "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        }[shape]
        points = " ".join(f"{_n(x + _MARKER * a)},{_n(y + _MARKER * b)}" for a, b in corners)
        self._add("polygon", {"points": points, "class": style})

    def bottom_axis(self, scale: Scale, y: float, ticks: Sequence[tuple[float, str]], name: str) -> None:
        """An axis along the bottom, its ticks named, and what it shows below it."""
        self.line(scale.start, y, scale.end, y, "axis")
        for value, label in ticks:
            self.line(scale.at(value), y, scale.at(value), y + 4, "axis")
            self.text(scale.at(value), y + 17, label, anchor="middle", style="tick")
        self.text((scale.start + scale.end) / 2, y + 36, name, anchor="middle", style="axis-name")

    def left_axis(self, scale: Scale, x: float, right: float, ticks: Sequence[tuple[float, str]], name: str) -> None:
        """An axis on the left with a faint line across for each tick; what it shows stands above it."""
        for value, label in ticks:
            self.line(x, scale.at(value), right, scale.at(value), "grid")
            self.text(x - 7, scale.at(value) + 4, label, anchor="end", style="tick")
        self.text(4, scale.end - 12, name, style="axis-name")

    def __str__(self) -> str:
        """The drawing as it stands in a page."""
        return ElementTree.tostring(self._root, encoding="unicode")

    def _add(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        return ElementTree.SubElement(self._root, tag, attributes)


def named(ticks: Sequence[float], name: Callable[[float], str]) -> list[tuple[float, str]]:
    """Ticks with their labels."""
    return [(value, name(value)) for value in ticks]


def named_decades(exponents: Sequence[int]) -> list[tuple[float, str]]:
    """Ticks at powers of ten with their labels."""
    return [(10.0**exponent, power_of_ten(exponent)) for exponent in exponents]


def _n(value: float) -> str:
    """A coordinate to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")
