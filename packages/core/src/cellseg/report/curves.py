"""Line charts as plain geometry; the template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]

WIDTH, HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 40
_MOST_POINTS = 300


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its points in the order of x; those that are not finite are left out."""

    name: str
    points: Sequence[Point]
    markers: bool = False
    """Draw each point: right for a few measurements, wrong for thousands of steps."""
    smooth: bool = False
    """Draw a moving average over the points: for noise."""
    best: float | None = None
    """The x of a point to single out."""
    style: int | None = None
    """Colour and dash pattern, 0 to 3; None counts up."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series in the pixels of the chart."""

    name: str
    style: int
    """Index of the colour and dash pattern."""
    path: str
    """The ``d`` of an SVG path."""
    faint: str
    """The same before smoothing; empty where nothing was smoothed."""
    markers: tuple[tuple[float, float, str], ...]
    """``(x, y, what it says)``."""
    best: tuple[float, float, str] | None


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything the template needs to draw one chart."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    description: str
    """What the chart shows, for those who cannot see it."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def chart(
    title: str, series: Iterable[Series], x_label: str = "step", *, whole: bool, wide: bool
) -> Chart | None:
    """Lay out a chart.

    Args:
        title: what is drawn.
        series: the lines, at most four that can be told apart.
        x_label: what x counts.
        whole: x counts whole things, so that only whole numbers are marked.
        wide: the y axis becomes logarithmic if the values span two orders of magnitude.

    Returns:
        The chart, or None where no series has a finite point.
    """
    kept = [(s, _finite(s.points)) for s in series]
    kept = [(s, points) for s, points in kept if points]
    if not kept:
        return None
    values = [y for _, points in kept for _, y in points]
    logarithmic = wide and min(values) > 0 and max(values) / min(values) > 100
    x_axis = _Axis.covering([x for _, p in kept for x, _ in p], _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis.covering(values, HEIGHT - _BOTTOM, _TOP, logarithmic)
    lines = tuple(_line(s, p, i, x_axis, y_axis) for i, (s, p) in enumerate(kept))
    return Chart(
        title=title,
        x_label=x_label,
        y_label="log scale" if logarithmic else "",
        x_ticks=x_axis.ticks(whole),
        y_ticks=y_axis.ticks(),
        lines=lines,
        description=". ".join(_in_words(s, p, x_label) for s, p in kept) + ".",
    )


def scatter(
    title: str,
    points: Sequence[tuple[float, float, str]],
    x_label: str,
    *,
    names: Sequence[str] = (),
    wide: bool = False,
    whole: bool = False,
    best: int | None = None,
) -> Chart | None:
    """Lay out points that are not joined.

    Args:
        title: what is drawn.
        points: ``(x, y, what it says)``; those that are not finite are left out.
        x_label: what x is.
        names: what stands at x 0, 1, 2, ...; empty where x is a number.
        wide: the x axis is logarithmic; all x are above 0.
        whole: x counts whole things, so that only whole numbers are marked.
        best: which of the points to single out.

    Returns:
        The chart, or None where no point is finite.
    """
    kept = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if not kept:
        return None
    xs, ys = [x for x, _, _ in kept], [y for _, y, _ in kept]
    start, stop = _LEFT, WIDTH - _RIGHT
    if names:
        x_axis = _Axis(-0.5, len(names) - 0.5, start, stop)
    else:
        x_axis = _Axis.covering(xs, start, stop, wide)
    y_axis = _Axis.covering(ys, HEIGHT - _BOTTOM, _TOP)
    placed = [(x_axis(x), y_axis(y), text) for x, y, text in kept]
    ring = None
    if best is not None and points[best] in kept:
        ring = placed[kept.index(points[best])]
    ticks = tuple(Tick(x_axis(i), name) for i, name in enumerate(names))
    return Chart(
        title=title,
        x_label=x_label,
        y_label="",
        x_ticks=ticks or x_axis.ticks(whole),
        y_ticks=y_axis.ticks(),
        lines=(Line("points", 0, "", "", tuple(placed), ring),),
        description=f"{len(kept)} points; lowest {min(ys):.4g}, highest {max(ys):.4g}.",
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    @classmethod
    def covering(
        cls, values: Sequence[float], start: float, stop: float, logarithmic: bool = False
    ) -> _Axis:
        """An axis that all values fit on; fractions on the vertical one start from 0."""
        low, high = min(values), max(values)
        if logarithmic:
            return cls(low / 1.15, high * 1.15, start, stop, True)
        room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
        # An axis of fractions ends at its natural limits rather than beyond them.
        fractions = low >= 0 and high <= 1
        top = 1.0 if fractions and high > 0.7 else high + room
        near_zero = low >= 0 and low - room < 0.35 * high
        bottom = 0.0 if near_zero or (fractions and stop < start) else low - room
        return cls(bottom, top, start, stop)

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        place = (value - low) / (high - low)
        return round(self.start + place * (self.stop - self.start), 1)

    def ticks(self, whole: bool = False) -> tuple[Tick, ...]:
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = len(powers) > 4
            marks = [m * 10.0**p for p in powers for m in ((1,) if few else (1, 3))]
        else:
            step = round_step((self.high - self.low) / 5)
            step = max(step, 1.0) if whole else step
            first = math.ceil(self.low / step - 1e-9)
            marks = [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        inside = [m for m in marks if self.low <= m * (1 + 1e-9) and m <= self.high * (1 + 1e-9)]
        return tuple(Tick(self(mark), _text(mark)) for mark in inside)


def _line(series: Series, points: list[Point], style: int, x: _Axis, y: _Axis) -> Line:
    def placed(point: Point) -> tuple[float, float, str]:
        return x(point[0]), y(point[1]), f"{series.name}: {point[1]:.4g} at {point[0]:g}"

    thinned = _thinned(points)
    smooth = series.smooth and len(thinned) > 30
    drawn = _smoothed(thinned) if smooth else thinned
    best = next((placed(p) for p in points if p[0] == series.best), None)
    return Line(
        name=series.name,
        style=style if series.style is None else series.style,
        path=_path(drawn, x, y),
        faint=_path(thinned, x, y) if smooth else "",
        markers=tuple(map(placed, thinned)) if series.markers else (),
        best=best,
    )


def _path(points: list[Point], x: _Axis, y: _Axis) -> str:
    return "M" + "L".join(f"{x(a):g},{y(b):g}" for a, b in points)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point[1])]


def _thinned(points: list[Point]) -> list[Point]:
    """Means of neighbouring points where there are more than a screen can show."""
    size = math.ceil(len(points) / _MOST_POINTS)
    if size == 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _smoothed(points: list[Point]) -> list[Point]:
    """Centred moving average over about a twentieth of the curve."""
    reach = max(len(points) // 40, 1)
    smooth = []
    for i, (x, _) in enumerate(points):
        near = points[max(i - reach, 0) : i + reach + 1]
        smooth.append((x, sum(y for _, y in near) / len(near)))
    return smooth


def round_step(rough: float) -> float:
    """The next 1, 2 or 5 times a power of ten that is not below ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def _text(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def _in_words(series: Series, points: list[Point], x_label: str) -> str:
    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    low, high = min(y for _, y in points), max(y for _, y in points)
    return (
        f"{series.name} goes from {first_y:.4g} at {x_label} {first_x:g} to {last_y:.4g} at "
        f"{x_label} {last_x:g}; lowest {low:.4g}, highest {high:.4g}"
    )
