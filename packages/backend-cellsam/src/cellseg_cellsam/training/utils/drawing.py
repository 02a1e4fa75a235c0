"""Charts of the report as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cellseg.files import write_atomic
from cellseg.report.curves import Chart, Line, Tick

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_DASHES = (0, 7, 3, 12)
_INK, _GRID, _FAINT = "#222222", "#dddddd", "#c8d8e4"
_SCALE = 2
_TITLE, _LEGEND = 24, 18


def write_charts(charts: Sequence[Chart], path: Path) -> Path:
    """Draw charts one below the other.

    Args:
        charts: at least one.
        path: the PNG file to write, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    from PIL import Image

    heights = [_TITLE + _LEGEND + chart.height for chart in charts]
    width = max(chart.width for chart in charts)
    picture = Image.new("RGB", (width * _SCALE, sum(heights) * _SCALE), "white")
    top = 0
    for chart, height in zip(charts, heights, strict=True):
        _Canvas(picture, top).draw(chart)
        top += height
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    write_atomic(path, stream.getvalue())
    return path


class _Canvas:
    """A part of the picture, in the pixels of a chart."""

    def __init__(self, picture: object, top: int) -> None:
        from PIL import ImageDraw, ImageFont

        self._pen = ImageDraw.Draw(picture)  # type: ignore[arg-type]
        self._font = ImageFont.load_default(12 * _SCALE)
        self._top = top

    def draw(self, chart: Chart) -> None:
        self._text((chart.left, self._top + 4), chart.title, "la")
        left = float(chart.left)
        for line in chart.lines:
            y = self._top + _TITLE + 8
            colour = _COLOURS[line.style % len(_COLOURS)]
            self._dashed([(left, y), (left + 22, y)], colour, _DASHES[line.style % len(_DASHES)])
            left = self._text((left + 27, y), line.name, "lm") + 18
        self._top += _TITLE + _LEGEND
        for tick in chart.y_ticks:
            self._line([(chart.left, tick.at), (chart.right, tick.at)], _GRID, 1)
            self._text((chart.left - 6, self._top + tick.at), tick.text, "rm")
        for tick in chart.x_ticks:
            self._mark(tick, chart.bottom)
        frame = [(chart.left, chart.top), (chart.left, chart.bottom), (chart.right, chart.bottom)]
        self._line(frame, _INK, 1)
        middle = (chart.left + chart.right) / 2
        said = f"{chart.x_label} ({chart.y_label})" if chart.y_label else chart.x_label
        self._text((middle, self._top + chart.height - 4), said, "md")
        for line in chart.lines:
            self._series(line)

    def _series(self, line: Line) -> None:
        colour = _COLOURS[line.style % len(_COLOURS)]
        if line.faint:
            self._line(_points(line.faint), _FAINT, 1)
        self._dashed(
            [(x, self._top + y) for x, y in _points(line.path)],
            colour,
            _DASHES[line.style % len(_DASHES)],
        )
        for x, y, _ in line.markers:
            self._dot(x, y, 2.5, colour, colour)
        if line.best is not None:
            self._dot(line.best[0], line.best[1], 5, colour, None)

    def _mark(self, tick: Tick, bottom: int) -> None:
        self._line([(tick.at, bottom), (tick.at, bottom + 4)], _INK, 1)
        self._text((tick.at, self._top + bottom + 6), tick.text, "ma")

    def _text(self, at: tuple[float, float], text: str, anchor: str) -> float:
        """Write; where the text ends."""
        place = (at[0] * _SCALE, at[1] * _SCALE)
        self._pen.text(place, text, fill=_INK, font=self._font, anchor=anchor)
        return at[0] + self._pen.textlength(text, font=self._font) / _SCALE

    def _line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        placed = [(x * _SCALE, (self._top + y) * _SCALE) for x, y in points]
        self._pen.line(placed, fill=colour, width=width * _SCALE, joint="curve")

    def _dot(self, x: float, y: float, radius: float, colour: str, filled: str | None) -> None:
        y += self._top
        box = [(v * _SCALE) for v in (x - radius, y - radius, x + radius, y + radius)]
        self._pen.ellipse(box, outline=colour, fill=filled, width=_SCALE)

    def _dashed(self, points: Sequence[tuple[float, float]], colour: str, dash: int) -> None:
        """A line in pixels of the picture; ``dash`` pixels drawn, as many left out; 0 is solid."""
        width = 2 * _SCALE
        if not dash or len(points) < 2:
            placed = [(x * _SCALE, y * _SCALE) for x, y in points]
            self._pen.line(placed, fill=colour, width=width, joint="curve")
            return
        done = 0.0
        for (x0, y0), (x1, y1) in pairwise(points):
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
            start = 0.0
            while start < length:
                phase = (done + start) % (2 * dash)
                stop = min(length, start + (dash - phase if phase < dash else 2 * dash - phase))
                if phase < dash:
                    ends = [
                        ((x0 + (x1 - x0) * t / length) * _SCALE,
                         (y0 + (y1 - y0) * t / length) * _SCALE)
                        for t in (start, stop)
                    ]  # fmt: skip
                    self._pen.line(ends, fill=colour, width=width)
                start = stop if stop > start else length
            done += length


def _points(path: str) -> list[tuple[float, float]]:
    """The points of an SVG path of straight lines."""
    return [
        (float(x), float(y))
        for x, y in (pair.split(",") for pair in path.removeprefix("M").split("L"))
    ]
