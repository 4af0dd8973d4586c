"""Charts as inline SVG: axes, lines, dots and bars in the page's own colours, each with a text alternative (no torch).

Colours are classes of the page's style sheet, so that they follow light, dark and print. A chart is 400 wide and
shown from 300 to 560 pixels wide, so that its letters can be read on a phone and are not huge on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["WIDTH", "Axis", "Chart", "Key", "Plot", "framed", "short"]

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 48, 22, 26, 38
TICKS = 5


@dataclass(frozen=True)
class Key:
    """One line of a legend: a mark of the chart and what it stands for."""

    mark: str
    style: str
    text: str

    @property
    def svg(self) -> str:
        """The mark alone."""
        return f'<svg class="key" viewBox="0 0 24 16" aria-hidden="true">{mark(self.mark, 12, 8, self.style)}</svg>'


@dataclass(frozen=True)
class Chart:
    """A finished chart.

    Attributes:
        title: What it shows.
        told: The same in words, with its main numbers: what is read aloud instead of it.
        svg: The picture.
        keys: Its legend.
        columns: Titles of its table of numbers. rows: Those.
    """

    title: str
    told: str
    svg: str
    keys: tuple[Key, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Axis:
    """One axis: its title, its ends; whether its numbers are shares of 1 shown as percentages, or counted."""

    title: str
    low: float
    high: float
    percent: bool = False
    counted: bool = False

    @classmethod
    def over(
        cls, title: str, values: Sequence[float], *, percent: bool = False, zero: bool = False, counted: bool = False
    ) -> Axis:
        """The axis that holds these values with some room; from 0 where wanted."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(title, 0.0 if zero else low - room, high + room, percent, counted)

    def ticks(self) -> list[float]:
        """Round numbers between its ends; whole ones of what is counted."""
        step = _round_step((self.high - self.low) / TICKS)
        step = math.ceil(step) if self.counted else step
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def label(self, value: float) -> str:
        """A tick's text."""
        return f"{100 * value:.4g} %" if self.percent else short(value)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= step * (1 - 1e-9))


def short(value: float) -> str:
    """A number for an axis: `"2.5k"`, `"0.3M"`, `"0.25"`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"


@dataclass
class Plot:
    """A chart that is being drawn."""

    x: Axis
    y: Axis
    parts: list[str] = field(default_factory=list)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pair of values is in the picture."""
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Sequence[tuple[float, float]], style: str, *, steps: bool = False) -> None:
        """A line through the points; in steps, each at the height of the one before."""
        placed = [self.place(*point) for point in points]
        if steps:
            placed = [p for k, each in enumerate(placed) for p in ([(each[0], placed[k - 1][1])] if k else []) + [each]]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        self.parts.append(f'<polyline class="line {style}" points="{text}"/>')

    def dot(
        self, x: float, y: float, shape: str, style: str, told: str, *, error: float = 0.0, faint: float = 1
    ) -> None:
        """A mark with its text on hovering, and a bar of one standard error to both sides."""
        across, down = self.place(x, y)
        if error:
            _, top = self.place(x, y + error)
            _, bottom = self.place(x, y - error)
            self.parts.append(f'<path class="bar {style}" d="M{across:.1f},{top:.1f}V{bottom:.1f}"/>')
        opacity = "" if faint == 1 else f' opacity="{faint:.2f}"'
        self.parts.append(f"<g{opacity}><title>{escape(told)}</title>{mark(shape, across, down, style)}</g>")

    def box(self, x: tuple[float, float], y: tuple[float, float], style: str, told: str) -> None:
        """A filled box between two values of each axis."""
        left, top = self.place(x[0], y[1])
        right, bottom = self.place(x[1], y[0])
        size = f'width="{max(0.0, right - left):.1f}" height="{max(0.0, bottom - top):.1f}"'
        self.parts.append(
            f'<rect class="fill {style}" x="{left:.1f}" y="{top:.1f}" {size}><title>{escape(told)}</title></rect>'
        )

    def upright(self, x: float, style: str) -> None:
        """A line from bottom to top."""
        across, _ = self.place(x, self.y.low)
        self.parts.append(f'<path class="line {style}" d="M{across:.1f},{TOP}V{HEIGHT - BOTTOM}"/>')

    def svg(self, name: str, title: str, told: str) -> str:
        """The picture. `name` is unique on the page."""
        return framed(name, title, told, self._axes() + "".join(self.parts), height=HEIGHT)

    def _axes(self) -> str:
        found = [f'<path class="axis" d="M{LEFT},{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']
        for value in self.x.ticks():
            x, _ = self.place(value, self.y.low)
            found.append(f'<path class="tick" d="M{x:.1f},{HEIGHT - BOTTOM}v4"/>')
            found.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{self.x.label(value)}</text>'
            )
        for value in self.y.ticks():
            _, y = self.place(self.x.low, value)
            found.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>')
            found.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{self.y.label(value)}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        found.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(self.x.title)}</text>')
        found.append(f'<text x="4" y="14">{escape(self.y.title)}</text>')
        return "".join(found)


def framed(name: str, title: str, told: str, inside: str, *, height: float) -> str:
    """A picture with its text alternative: a title and a description. `name` is unique on the page."""
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(told)}</desc>{inside}</svg>'
    )


def mark(shape: str, x: float, y: float, style: str) -> str:
    """A mark around a place of the picture."""
    if shape == "dot":
        return f'<circle class="mark {style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    if shape == "ring":
        return f'<circle class="ring {style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if shape == "line":
        return f'<path class="line {style}" d="M{x - 10:.1f},{y:.1f}h20"/>'
    if shape == "block":
        return f'<rect class="fill {style}" x="{x - 7:.1f}" y="{y - 5:.1f}" width="14" height="10"/>'
    points = " ".join(f"{x + 6 * dx:.1f},{y + 6 * dy:.1f}" for dx, dy in SHAPES[shape])
    return f'<polygon class="mark edged {style}" points="{points}"/>'


def _star() -> tuple[tuple[float, float], ...]:
    radii = [(1.45, 0.6)[k % 2] for k in range(10)]
    return tuple((r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in enumerate(radii))


SHAPES = {
    "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
    "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "up": ((0, -1), (0.95, 0.8), (-0.95, 0.8)),
    "down": ((0, 1), (0.95, -0.8), (-0.95, -0.8)),
    "right": ((1, 0), (-0.8, 0.95), (-0.8, -0.95)),
    "star": _star(),
}  # fmt: skip
