"""Polygons as users draw them: whether they are sound, and which pixels they cover.

Coordinates are continuous, ``(y, x)`` in pixels: pixel ``i`` reaches from ``i`` to ``i + 1``. Which
pixels are covered is decided here rather than by a library, because those at hand count what lies
on an outline to both of its sides (scikit-image, OpenCV) or to none (Shapely).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import DataError

if TYPE_CHECKING:
    import shapely

Ring: TypeAlias = "NDArray[np.float64]"
"""``(n, 2)``, ``(y, x)``; its last vertex may repeat its first."""
Polygon: TypeAlias = tuple[Ring, ...]
"""Its outside, then its holes."""
_ROUND = 360
"""Vertices of an ellipse."""


def check_polygons(polygons: Sequence[Polygon], where: str) -> None:
    """Refuse what has no clear inside. Rings may touch themselves, as those around pixels do.

    Args:
        polygons: of one object.
        where: what errors call it.

    Raises:
        DataError: a ring crosses itself, a hole or another polygon of the object, or has no area.
    """
    import shapely

    made, area = [], 0.0
    for polygon in polygons:
        rings = [_shapely_ring(ring, where) for ring in polygon]
        areas = [_enclosed(ring) for ring in rings]
        for ring, enclosed in zip(rings, areas, strict=True):
            if not _alike(abs(_signed(ring)), enclosed):
                raise _unclear(ring, where)
        made.append(shapely.Polygon(rings[0].exterior, [ring.exterior for ring in rings[1:]]))
        area += areas[0] - sum(areas[1:])
    whole = made[0] if len(made) == 1 else shapely.MultiPolygon(made)
    # With holes inside, and pieces beside each other, areas add up; that they touch is no harm.
    if not whole.is_valid and not _alike(area, _enclosed(whole)):
        raise _unclear(whole, where)


def covered(
    polygons: Sequence[Polygon],
) -> tuple[NDArray[np.bool_], tuple[int, int]] | None:
    """The pixels whose centres lie inside polygons, by the even-odd rule.

    A centre on an outline lies inside where the inside is to its right, or else below it. So
    polygons that share an edge share no pixel, and leave none out between them.

    Args:
        polygons: of one object.

    Returns:
        A mask ``(y, x)``, cut to what is covered, and its first row and column; None where no
        centre is.
    """
    first, last = [], []
    for polygon in polygons:
        for ring in polygon:
            first.append(ring)
            last.append(np.roll(ring, -1, 0))
    one, other = np.concatenate(first), np.concatenate(last)
    one, other = one[one[:, 0] != other[:, 0]], other[one[:, 0] != other[:, 0]]
    # Seen from above in either polygon, so that both find the same crossings of a shared edge.
    down = (one[:, 0] < other[:, 0])[:, None]
    upper, lower = np.where(down, one, other), np.where(down, other, one)
    begin = np.ceil(upper[:, 0] - 0.5).astype(np.int64)
    count = np.ceil(lower[:, 0] - 0.5).astype(np.int64) - begin
    edge = np.repeat(np.arange(len(count)), count)
    if not len(edge):
        return None
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + begin[edge]
    (y0, x0), (y1, x1) = upper[edge].T, lower[edge].T
    x = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
    column = np.ceil(x - 0.5).astype(np.int64)
    top, left = int(row.min()), int(column.min())
    crossings = np.zeros((int(row.max()) - top + 1, int(column.max()) - left + 1), np.uint8)
    np.bitwise_xor.at(crossings, (row - top, column - left), np.uint8(1))
    return cropped(np.bitwise_xor.accumulate(crossings, 1).astype(bool), (top, left))


def cropped(
    mask: NDArray[np.bool_], corner: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]] | None:
    """A mask cut to its box, and where that begins; None where it is empty.

    Args:
        mask: ``(y, x)``.
        corner: row and column of its first pixel.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    (top, bottom), (left, right) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    cut = np.ascontiguousarray(mask[top : bottom + 1, left : right + 1])
    return cut, (corner[0] + top, corner[1] + left)


def rectangle(y0: float, x0: float, y1: float, x1: float) -> Polygon:
    """The polygon between two opposite corners."""
    return (np.array([(y0, x0), (y0, x1), (y1, x1), (y1, x0)], np.float64),)


def ellipse(corners: NDArray[np.floating[Any]]) -> Polygon:
    """The polygon of an ellipse.

    Args:
        corners: ``(4, 2)``, ``(y, x)`` of the rectangle around it, which may be turned.
    """
    angle = np.linspace(0, 2 * np.pi, _ROUND, endpoint=False)[:, None]
    centre = (corners[0] + corners[2]) / 2
    along, across = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    return (centre + np.cos(angle) * along + np.sin(angle) * across,)


def _shapely_ring(ring: Ring, where: str) -> shapely.Polygon:
    """In the order ``(x, y)``, as messages have it."""
    import shapely

    if len(np.unique(ring, axis=0)) >= 3:
        made = shapely.Polygon(ring[:, ::-1])
        if shapely.make_valid(made).area > 0:
            return made
    y, x = ring[0].tolist()
    raise DataError(f"{where}: the polygon at x {x:g}, y {y:g} has no area.")


def _signed(ring: shapely.Polygon) -> float:
    """Its area, counted as often as it winds around it, and in the direction in which it does."""
    xy = np.asarray(ring.exterior.coords) - ring.exterior.coords[0]
    return float((xy[:-1, 0] * xy[1:, 1] - xy[1:, 0] * xy[:-1, 1]).sum()) / 2


def _enclosed(shape: shapely.Geometry) -> float:
    """The area inside, by the even-odd rule."""
    import shapely

    return float(shape.area if shape.is_valid else shapely.make_valid(shape).area)


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-9 * max(one, other)


def _unclear(shape: shapely.Geometry, where: str) -> DataError:
    """The error for a shape without a clear inside; says where, if it can be said."""
    import shapely

    reason = str(shapely.is_valid_reason(shape))
    place = re.search(r"\[(\S+) (\S+)\]", reason)
    at = f" at x {float(place[1]):g}, y {float(place[2]):g}" if place else ""
    said = reason.partition("[")[0].lower()
    what = "its outline crosses itself" if "self-intersection" in said else said
    return DataError(f"{where}: {what}{at}.", hint="Draw it so that it is clear what is inside.")
